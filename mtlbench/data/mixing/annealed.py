"""From proportional towards uniform, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.data.mixing.sampled import Sampled


class Annealed(Sampled):
    """p_i in proportion to N_i^a for dataset sizes N; a falls linearly from `start` in the first epoch to `end`.

    With a from 1 to 0.2 over E epochs this is the paper's a = 1 - 0.8 (e - 1) / (E - 1) in epoch e of 1 to E. A
    falling exponent is a rising temperature 1 / a.

    Args:
        start: exponent of the first epoch.
        end: exponent of epoch number `epochs` and of all after it.
        epochs: E, at least 1.
        common: see `Scheduled`.

    Raises:
        ValueError: an exponent is negative, or `epochs` is not positive.

    Paper: Stickland, Murray 2019, arXiv:1902.02671, section 3.
    """

    def __init__(self, *, start: float, end: float, epochs: int | None, **common: Any) -> None:
        super().__init__(**common)
        if min(start, end) < 0:
            raise ValueError(f"Mixing: the exponents must be at least 0, got start={start} and end={end}.")
        if epochs is None or epochs < 1:
            raise ValueError(f"Mixing: annealing needs a number of epochs, got {epochs}. Give mixing.epochs.")
        self.start, self.end, self.epochs = start, end, epochs

    def weights(self, epoch: int) -> Mapping[str, float]:
        part = min(epoch / (self.epochs - 1), 1.0) if self.epochs > 1 else 0.0
        exponent = self.start + part * (self.end - self.start)
        largest = max(self.sizes.values())
        return {name: (size / largest) ** exponent for name, size in self.sizes.items()}
