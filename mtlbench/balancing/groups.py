"""Weightings that solve the same problem in every group of shared parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Status
from mtlbench.linalg import Array


def to_array(given: Tensor) -> Array:
    """The numbers in float64, on the CPU."""
    array: Array = given.detach().to("cpu", torch.float64).numpy()
    return array


def by_group(gramian: Tensor, solve: Callable[..., tuple[Array, bool]], **options: Any) -> tuple[Tensor, Status]:
    """Solves each group's problem by itself.

    Args:
        gramian: (G, A, A) inner products of the gradients, on any device.
        solve: takes an (A, A) Gramian and `options`; gives (A,) weights and whether there is a balanced direction.

    Returns:
        (G, A) weights in `gramian`'s dtype and on its device, and the status: degenerate where no group has a
        balanced direction.
    """
    solved = [solve(group, **options) for group in to_array(gramian)]
    weights = torch.from_numpy(np.array([weights for weights, _ in solved])).to(gramian)
    return weights, "solved" if any(regular for _, regular in solved) else "degenerate"
