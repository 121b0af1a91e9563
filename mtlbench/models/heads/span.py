"""The head of extractive question answering."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtlbench.models.heads.base import State, perceptron


class SpanHead(nn.Module):
    """A perceptron at each position: (B, L, D) to (B, L, 2) logits of an answer's first and last token.

    Pads get the lowest number: no answer begins or ends there.
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: tuple[int, ...] = (),
        activation: Literal["relu", "tanh", "gelu"] = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = perceptron(features, 2, hidden=hidden, activation=activation, dropout=dropout)

    def forward(self, state: State) -> Tensor:
        if state["x"].ndim != 3:
            raise ValueError(f"Answers need features (B, L, D) of tokens, got shape {tuple(state['x'].shape)}.")
        logits = self.layers(state["x"])
        return logits.masked_fill(state["attention_mask"][..., None] == 0, torch.finfo(logits.dtype).min)
