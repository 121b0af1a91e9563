"""Datasets as often as they are large."""

from __future__ import annotations

from collections.abc import Mapping

from mtlbench.data.mixing.sampled import Sampled


class Proportional(Sampled):
    """p_i = N_i / sum_j N_j for dataset sizes N: every row is as likely as any other."""

    def weights(self, epoch: int) -> Mapping[str, float]:
        return self.sizes
