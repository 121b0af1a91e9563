"""Heads that give one vector of logits for each example: classification and multi-label."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtlbench.models.heads.base import Activation, Pooling, State, perceptron, pool


class ClassificationHead(nn.Module):
    """Pools over positions where there are any, then a perceptron: (B, outputs) logits."""

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        pooling: Pooling,
        hidden: Sequence[int] = (),
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.layers = perceptron(features, outputs, hidden=hidden, activation=activation, dropout=dropout)

    def forward(self, state: State) -> Tensor:
        return self.layers(pool(state, self.pooling))
