"""What heads share: pooling over positions, and a small perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
Pooling = Literal["first", "mean", "max", "last"]
Activation = Literal["relu", "tanh", "gelu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def perceptron(
    features: int, outputs: int, *, hidden: Sequence[int] = (), activation: Activation = "relu", dropout: float = 0.0
) -> nn.Sequential:
    """Linear layers with an activation between; dropout before each."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [*_dropout(dropout), nn.Linear(features, width), _ACTIVATIONS[activation]()]
        features = width
    return nn.Sequential(*layers, *_dropout(dropout), nn.Linear(features, outputs))


def pool(state: State, pooling: Pooling) -> Tensor:
    """(B, D) from a state whose `x` is (B, D) as it is, or (B, L, D) with an `attention_mask` (B, L)."""
    x = state["x"]
    if x.ndim == 2:
        return x
    if pooling == "first":
        return x[:, 0]
    mask = state["attention_mask"].to(x.dtype)[..., None]
    if pooling == "mean":
        return (x * mask).sum(1) / mask.sum(1).clamp(min=1)
    if pooling == "max":
        return x.masked_fill(mask == 0, torch.finfo(x.dtype).min).amax(1)
    if pooling == "last":
        position = torch.arange(x.shape[1], device=x.device)
        last = (position * state["attention_mask"]).argmax(1)
        return x[torch.arange(len(x), device=x.device), last]
    raise ValueError(f"pooling is first, mean, max or last; got {pooling!r}.")


def _dropout(rate: float) -> list[nn.Module]:
    return [nn.Dropout(rate)] if rate else []
