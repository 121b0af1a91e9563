"""All datasets alike."""

from __future__ import annotations

from collections.abc import Mapping

from mtlbench.data.mixing.sampled import Sampled


class Uniform(Sampled):
    """p_i = 1 / D for D datasets, whatever their sizes."""

    def weights(self, epoch: int) -> Mapping[str, float]:
        return dict.fromkeys(self.sizes, 1.0)
