"""Mixings whose steps draw from some of the datasets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtlbench.data.mixing.base import Draw, Mixing


class Scheduled(Mixing):
    """Each step draws `group_steps` batches, each of one dataset.

    By itself an epoch draws as many batches as one pass over all datasets has (`passes`), whichever datasets they then
    come from. Batches are always full: a dataset that is through begins again, newly shuffled.

    Args:
        group_steps: batches that make one step: the balancer sees one gradient for each task, the mean over all
            of the task's labels in them. Batches of one dataset are drawn as a single larger one.
        steps_per_epoch: None for `passes` / `group_steps`, rounded up.
        common: see `Mixing`.

    Raises:
        ValueError: `group_steps` is not positive.
    """

    def __init__(self, *, group_steps: int = 1, steps_per_epoch: int | None = None, **common: Any) -> None:
        super().__init__(steps_per_epoch=steps_per_epoch, **common)
        if group_steps < 1:
            raise ValueError(f"Mixing: group_steps must be at least 1, got {group_steps}.")
        self.group_steps = group_steps
        self.every_dataset = group_steps >= len(self.sizes)
        self.steps_per_epoch = -(-self.passes() // group_steps) if steps_per_epoch is None else steps_per_epoch
        self._held: tuple[int, np.ndarray] | None = None

    def passes(self) -> int:
        """Batches of an epoch: one pass over each dataset."""
        return sum(self.batches(size) for size in self.sizes.values())

    def batches(self, rows: int) -> int:
        return -(-rows // self.batch_size)

    @abstractmethod
    def counts(self, epoch: int) -> np.ndarray:
        """(S, D) int64 batches of each of D datasets in each of an epoch's S steps; rows sum to `group_steps`."""

    def plan(self, epoch: int, step: int) -> Draw:
        if self._held is None or self._held[0] != epoch:  # the last one is kept: steps follow each other
            ends = np.zeros((self.steps_per_epoch + 1, len(self.sizes)), dtype=np.int64)
            np.cumsum(self.counts(epoch), axis=0, out=ends[1:])
            self._held = epoch, ends * self.batch_size
        starts, stops = self._held[1][step : step + 2].tolist()
        return {
            name: self.draw(name, epoch=epoch, start=start, stop=stop)
            for name, start, stop in zip(self.sizes, starts, stops, strict=True)
            if stop > start
        }


class Sampled(Scheduled):
    """Draws datasets at random, independently from step to step, with probability in proportion to `weights`.

    Where a step has a batch for every dataset (`group_steps` at least their number), it draws each at least once, and
    the others so that in expectation every dataset still gets its proportion p. That is exact where all
    p * `group_steps` are at least 1; a dataset below gets its one batch, and the others share what remains.
    """

    @abstractmethod
    def weights(self, epoch: int) -> Mapping[str, float] | np.ndarray:
        """Dataset -> weight in this epoch, or (S, D) where it changes from step to step; any positive scale."""

    def probabilities(self, epoch: int) -> np.ndarray:
        """(S, D), or (1, D) where all S steps are alike: the weights, scaled to a sum of 1.

        Raises:
            ValueError: a weight is negative or not finite, or all weights of a step are 0.
        """
        found = self.weights(epoch)
        weights = found if isinstance(found, np.ndarray) else np.array([[found[name] for name in self.sizes]], float)
        for step, row in enumerate(weights):
            if not (np.isfinite(row).all() and (row >= 0).all() and row.any()):
                raise ValueError(
                    f"Mixing: at step {step} of epoch {epoch} the weights are {dict(zip(self.sizes, row, strict=True))}"
                    ": expected finite numbers from 0 on, one of them above 0."
                )
        return weights / weights.sum(1, keepdims=True)

    def counts(self, epoch: int) -> np.ndarray:
        p, n = self.probabilities(epoch), self.group_steps
        always = 0
        if self.every_dataset:
            always, n = 1, n - len(self.sizes)
            rest = np.maximum(p * self.group_steps - 1, 0)
            total = rest.sum(1, keepdims=True)
            p = np.where(total > 0, rest, p) / np.where(total > 0, total, 1)  # 0 only where nothing is left to draw
        generator = np.random.default_rng(self.key("datasets", epoch))
        return always + generator.multinomial(n, np.broadcast_to(p, (self.steps_per_epoch, len(self.sizes))))
