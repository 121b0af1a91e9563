"""Proportional, with large datasets counted as smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.data.mixing.sampled import Sampled


class SizeCapped(Sampled):
    """p_i in proportion to min(N_i, K) for dataset sizes N.

    By itself an epoch has as many batches as min(N_i, K) rows of each dataset make. All rows of a large dataset may
    come up all the same, others in each epoch.

    Args:
        cap: K, in rows, at least 1.
        common: see `Scheduled`.

    Raises:
        ValueError: the cap is not positive.

    Paper: "examples-proportional mixing" of Raffel et al. 2020, arXiv:1910.10683, section 3.5.2.
    """

    def __init__(self, *, cap: int, **common: Any) -> None:
        if cap < 1:
            raise ValueError(f"Mixing: the cap must be at least 1, got {cap}.")
        self.cap = cap
        super().__init__(**common)

    def passes(self) -> int:
        return sum(self.batches(min(size, self.cap)) for size in self.sizes.values())

    def weights(self, epoch: int) -> Mapping[str, float]:
        return {name: min(size, self.cap) for name, size in self.sizes.items()}
