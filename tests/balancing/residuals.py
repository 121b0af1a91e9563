"""How far weights are from optimal: relative KKT residuals, comparable between exact and iterative solvers.

All are over max diag G times |w|. Of a product that exceeds the level and the weight on it, which an optimum does not
have both, the smaller counts: an interior point or Frank-Wolfe weight that is nearly zero is no error of itself.
"""

from __future__ import annotations

import torch
from torch import Tensor


def conditions(gramian: Tensor, multipliers: Tensor, weights: Tensor, *, level: float | None = None) -> float:
    """y >= level, and y = level where multipliers > 0, for y = G weights; level None: the multipliers' mean of y."""
    if not weights.any():
        return torch.inf
    products = gramian @ weights / (gramian.diagonal().max() * weights.norm())
    shares = multipliers / (weights.norm() if level is not None else multipliers.sum())
    gap = products - (shares @ products if level is None else level)
    return float(torch.stack([-gap, torch.minimum(gap, shares), -shares]).max())


def mgda(gramian: Tensor, weights: Tensor) -> float:
    return conditions(gramian, weights, weights)


def cagrad(gramian: Tensor, weights: Tensor, *, c: float = 0.5) -> float:
    """Of max min_i g_i.d over |d - g0| <= c |g0|; also how far d is from the sphere."""
    mean = torch.full_like(weights, 1 / len(weights))
    step = weights - mean
    sphere = abs(float(step @ gramian @ step - c * c * mean @ gramian @ mean)) / float(gramian.diagonal().max())
    return max(conditions(gramian, step, weights), sphere)


def projections(gramian: Tensor, weights: Tensor, given: Tensor) -> float:
    """Of projections on the dual cone: weights (K, T) of those of the combinations `given` (K, T)."""
    return max(conditions(gramian, w - u, w, level=0.0) for w, u in zip(weights, given, strict=True))


def dualproj(gramian: Tensor, weights: Tensor) -> float:
    return projections(gramian, weights[None], torch.full_like(weights, 1 / len(weights))[None])


def alpha_fair(gramian: Tensor, weights: Tensor, *, alpha: float) -> float:
    """Of G w = c w^(-1/alpha), with c = 1 but for alpha = 1: TorchJD's Nash-MTL has another length."""
    if not weights.any():
        return torch.inf
    wanted = weights ** (-1 / alpha)
    factor = (gramian @ weights @ weights) / len(weights) if alpha == 1 else 1.0
    return float((gramian @ weights - factor * wanted).abs().max() / (gramian.diagonal().max() * weights.norm()))
