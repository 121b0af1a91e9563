"""The head of a token tagging task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtlbench.models.heads.base import Activation, State, perceptron


class TaggingHead(nn.Module):
    """A perceptron at each position: (B, L, D) to (B, L, outputs) logits."""

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        hidden: Sequence[int] = (),
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = perceptron(features, outputs, hidden=hidden, activation=activation, dropout=dropout)

    def forward(self, state: State) -> Tensor:
        if state["x"].ndim != 3:
            raise ValueError(f"Tagging needs features (B, L, D) of tokens, got shape {tuple(state['x'].shape)}.")
        return self.layers(state["x"])
