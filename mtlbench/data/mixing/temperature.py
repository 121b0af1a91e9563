"""Between proportional and uniform, by a temperature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.data.mixing.sampled import Sampled


class Temperature(Sampled):
    """p_i in proportion to N_i^(1/T) for dataset sizes N.

    T = 1 is proportional; the higher, the nearer to uniform.

    Args:
        temperature: T, above 0.
        common: see `Scheduled`.

    Raises:
        ValueError: the temperature is not above 0.

    Paper: Arivazhagan et al. 2019, arXiv:1907.05019.
    """

    def __init__(self, *, temperature: float, **common: Any) -> None:
        super().__init__(**common)
        if not temperature > 0:
            raise ValueError(f"Mixing: the temperature must be above 0, got {temperature}.")
        self.temperature = temperature

    def weights(self, epoch: int) -> Mapping[str, float]:
        largest = max(self.sizes.values())  # so that a cold temperature does not overflow
        return {name: (size / largest) ** (1 / self.temperature) for name, size in self.sizes.items()}
