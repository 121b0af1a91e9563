"""The head of a regression task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlbench.models.heads.base import Pooling, State, perceptron, pool


class RegressionHead(nn.Module):
    """Pools, then a perceptron whose output is mapped to the target's own units: (B,).

    Args:
        mean, std: of the training targets, kept with the weights so that a saved head predicts in target units.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: int,
        *,
        pooling: Pooling,
        mean: float = 0.0,
        std: float = 1.0,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.layers = perceptron(features, 1, hidden=hidden, dropout=dropout)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, state: State) -> Tensor:
        return self.layers(pool(state, self.pooling)).squeeze(-1) * self.std + self.mean
