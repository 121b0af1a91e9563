"""A multi-layer perceptron on vectors, or on anything flattened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from mtlbench.data.tables import InputSpec
from mtlbench.models.encoders.base import Encoder, Stage


def mlp(*, spec: InputSpec, hidden: Sequence[int], dropout: float = 0.0) -> Encoder:
    """One stage for each hidden layer: Linear, ReLU, dropout.

    Raises:
        ValueError: the inputs are text, or there is no hidden layer.
    """
    if spec.type == "text":
        raise ValueError("encoder=mlp takes vectors or images, and this benchmark has text; try encoder=transformer.")
    if not hidden:
        raise ValueError("encoder=mlp needs at least one hidden layer, got hidden=[].")
    widths = [math.prod(spec.shape), *hidden]
    stages = []
    for index, (before, after) in enumerate(pairwise(widths)):
        layers: list[nn.Module] = [] if index else [nn.Flatten()]
        layers += [nn.Linear(before, after), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        stages.append(Stage(nn.Sequential(*layers)))
    return Encoder(stages, features=hidden[-1])
