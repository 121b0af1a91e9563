"""The head of a regression task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtlbench.models.heads.base import Activation, Pooling, State, perceptron, pool


class RegressionHead(nn.Module):
    """Pools, then a perceptron: (B,) in units of the training targets' standard deviation, around their mean."""

    def __init__(
        self,
        features: int,
        *,
        pooling: Pooling,
        hidden: Sequence[int] = (),
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.layers = perceptron(features, 1, hidden=hidden, activation=activation, dropout=dropout)

    def forward(self, state: State) -> Tensor:
        return self.layers(pool(state, self.pooling)).squeeze(-1)
