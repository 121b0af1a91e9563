"""The solvers of `mtlbench.linalg`, and the rules of balancers, on tensors: what the tests compute with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench import linalg
from mtlbench.balancing.groups import to_array
from mtlbench.linalg.halfspaces import least_change as _least_change


def _to_tensor(found: Any) -> Any:
    if isinstance(found, tuple):
        return tuple(_to_tensor(one) for one in found)
    if isinstance(found, list):
        return torch.tensor(found, dtype=torch.float64)
    return torch.from_numpy(found) if isinstance(found, np.ndarray) else found


def on_tensors(solve: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of tensors, with tensors for the arrays and lists in its result."""

    @functools.wraps(solve)
    def solved(*given: Any, **options: Any) -> Any:
        return _to_tensor(solve(*(to_array(one) if isinstance(one, Tensor) else one for one in given), **options))

    return solved


alpha_fair = on_tensors(linalg.alpha_fair)
bisector = on_tensors(linalg.bisector)
conflict_averse = on_tensors(linalg.conflict_averse)
dual_cone = on_tensors(linalg.dual_cone)
is_zero = on_tensors(linalg.is_zero)
kkt_residual = on_tensors(linalg.kkt_residual)
least_change = on_tensors(_least_change)


def min_norm(gramian: Tensor) -> Tensor:
    weights: Tensor = _to_tensor(linalg.min_norm(to_array(gramian))[0])
    return weights
