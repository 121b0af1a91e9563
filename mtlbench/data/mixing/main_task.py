"""One main dataset, and a fraction of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mtlbench.data.mixing.sampled import Sampled


class MainTask(Sampled):
    """For M batches of the main dataset, `ratio` x M of the others, as often as those are large.

    The others together get no more than one pass over them, min(ratio x M, R) for their R batches. By itself an epoch
    has M + min(ratio x M, R) batches, rounded up.

    Args:
        main: the main dataset.
        ratio: batches of the others for one of the main dataset, at least 0.
        common: see `Scheduled`.

    Raises:
        ValueError: there is no dataset of that name, or the ratio is negative.

    Paper: `--ratio` of the code of Liu, He, Chen, Gao 2019, arXiv:1901.11504.

    Note: That code draws once an epoch from a shuffled list with every batch of the main dataset; here each step
        draws by itself, so that the numbers hold in expectation.
    """

    def __init__(self, *, main: str, ratio: float, **common: Any) -> None:
        sizes = common["sizes"]
        if main not in sizes:
            raise ValueError(f"Mixing: main={main!r} is no dataset of this run: {list(sizes)}.")
        if not ratio >= 0:
            raise ValueError(f"Mixing: the ratio must be at least 0, got {ratio}.")
        self.main, self.ratio = main, ratio
        super().__init__(**common)

    def passes(self) -> int:
        return math.ceil(self.batches(self.sizes[self.main]) + self._others())

    def weights(self, epoch: int) -> Mapping[str, float]:
        rows = sum(size for name, size in self.sizes.items() if name != self.main)
        weights = {name: self._others() * size / max(rows, 1) for name, size in self.sizes.items()}
        return weights | {self.main: self.batches(self.sizes[self.main])}

    def _others(self) -> float:
        """Batches of all other datasets for one pass over the main one."""
        whole = sum(self.batches(size) for name, size in self.sizes.items() if name != self.main)
        return min(self.ratio * self.batches(self.sizes[self.main]), whole)
