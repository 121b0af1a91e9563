"""What balancers share whose weights wander over the simplex."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.linalg import Array


def project(point: Array) -> Array:
    """(A,) -> (A,) the nearest point with non-negative coordinates that sum to 1."""
    if len(point) == 2:
        first, second = point.tolist()
        share = min(max((1 + first - second) / 2, 0.0), 1.0)
        return np.array([share, 1 - share])
    shifted = point - point.max()  # the projection is the same, and huge coordinates keep their digits
    falling = np.sort(shifted)[::-1]
    levels = (falling.cumsum() - 1) / np.arange(1, len(point) + 1)
    level = levels[np.count_nonzero(falling > levels) - 1]
    return np.maximum(shifted - level, 0.0)


class SimplexState(nn.Module):
    """Weights (T,) that sum to 1, equal at first. In a step with some of the tasks, theirs are scaled to a sum of 1."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.weights: Tensor
        self.register_buffer("weights", torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64))

    def read(self, active: Tensor | None) -> Array:
        """(A,) the active tasks' weights; equal where these are all 0."""
        weights = self._of(active).cpu().numpy()
        total = weights.sum()
        return weights / total if total > 0 else np.full_like(weights, 1 / len(weights))

    def write(self, weights: Array, active: Tensor | None) -> None:
        """Replaces the active tasks' weights (A,), keeping the sum that they have among all."""
        if active is None:
            self.weights.copy_(torch.from_numpy(weights))
        else:
            index = active.to(self.weights.device)
            self.weights[index] = torch.from_numpy(weights).to(self.weights) * self._of(active).sum()

    def _of(self, active: Tensor | None) -> Tensor:
        return self.weights if active is None else self.weights[active.to(self.weights.device)]
