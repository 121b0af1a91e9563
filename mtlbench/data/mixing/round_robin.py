"""One dataset after another."""

from __future__ import annotations

import numpy as np

from mtlbench.data.mixing.sampled import Scheduled


class RoundRobin(Scheduled):
    """Batch b of the run is of dataset b mod D, in the benchmark's order; an epoch goes on where the last one ended."""

    def counts(self, epoch: int) -> np.ndarray:
        steps, group, datasets = self.steps_per_epoch, self.group_steps, len(self.sizes)
        turns = (epoch * steps * group + np.arange(steps * group)) % datasets
        return np.eye(datasets, dtype=np.int64)[turns].reshape(steps, group, datasets).sum(1)
