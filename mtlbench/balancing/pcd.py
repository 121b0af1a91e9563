"""PCD: the primary task's gradient, changed no more than the others' progress needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.balancing.base import TaskSpec, Weighting
from mtlbench.balancing.checks import by_task, number, one_of
from mtlbench.balancing.groups import to_array
from mtlbench.linalg.halfspaces import least_change
from mtlbench.linalg.points import EPS, Array


def pcd_weights(gramian: Array, scales: Array, shares: Array, *, primary: int) -> tuple[Array, bool]:
    """Weights of the primary gradient after the least change.

    Args:
        gramian: (A, A) inner products of the gradients.
        scales: (A,) what the gradients are multiplied by before the change is sought.
        shares: (A,) of the progress along its own gradient that each other task is to make.
        primary: index of the primary task.

    Returns:
        (A,) weights, and whether the change exists. Where it does not, the primary gradient alone; where the
        primary gradient, or the changed one, is zero, zeros.
    """
    weights = np.zeros_like(scales)
    if gramian[primary, primary] == 0:
        return weights, False
    scaled = gramian * scales[:, None] * scales
    changed = least_change(scaled, shares, center=primary)
    if changed is None:
        weights[primary] = 1.0
        return weights, False
    square, lengths = changed @ scaled @ changed, changed @ np.sqrt(scaled.diagonal())
    if square <= 4 * len(scales) * EPS * lengths * lengths:  # zero, as far as a float64 Gramian can tell
        return weights, False
    return changed * scales * np.sqrt(gramian[primary, primary] / square), True


class PCD(Weighting):
    """Priority-constrained descent: one task comes first, the others are served as it can bear.

        s_i = 1 / sqrt(v_i + epsilon), v_i the moving average of |g_i|^2 with decay beta, bias-corrected
        d = argmin |d - s_1 g_1|^2 over d with s_j g_j.d >= tau_j |s_j g_j|^2 for all other tasks j
        the result is d rescaled to the length of g_1

    The status is degenerate where the constraints contradict each other (the result is g_1), and where g_1 or
    d is zero (the result is zero), as in a step without labels of the primary task. The minimum is exact
    (`linalg.halfspaces`). Constraints and averages are those of the active tasks.

    Args:
        primary: name of the primary task; None: the first.
        tau: share of the progress along its own gradient that each other task makes at least, in [0, 1]: one
            for all, or by task name, 0.02 where none is given.
        beta: of the moving average, in [0, 1).
        epsilon: added to it.

    Raises:
        ValueError: a wrong option, or `primary` is no task's name.
        RuntimeError: the solution misses its tolerance.

    Paper: Varam, AlHajri 2026, arXiv:2606.29521.

    Note:
        Rule and defaults are TorchJD's. The paper enumerates the sets of tight constraints.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        primary: str | None = None,
        tau: float | Mapping[str, float] = 0.02,
        beta: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(beta, option="beta", least=0, below=1)
        number(epsilon, option="epsilon", above=0)
        names = tuple(task.name for task in tasks) if tasks is not None else ()
        if primary is not None:
            one_of(primary, names, option="primary")
        self.primary = 0 if primary is None else names.index(primary)
        self.beta, self.epsilon = beta, epsilon
        self.tau: Tensor
        self.squares: Tensor  # moving average, without correction
        self.steps: Tensor  # of each task
        shares = by_task(tau, tasks, num_tasks=num_tasks, option="tau", default=0.02, least=0, most=1)
        self.register_buffer("tau", shares)
        self.register_buffer("squares", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(num_tasks, dtype=torch.int64))

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        (products,) = to_array(gramian)
        index = slice(None) if active is None else active.cpu().numpy()
        scales = self._scales(products.diagonal(), index)
        tasks = np.arange(self.num_tasks)[index].tolist()
        weights, solved = np.zeros_like(scales), False
        if self.primary in tasks:
            shares = self.tau.cpu().numpy()[index]
            weights, solved = pcd_weights(products, scales, shares, primary=tasks.index(self.primary))
        self.status = "solved" if solved else "degenerate"
        return torch.from_numpy(weights).to(gramian)[None]

    def _scales(self, squares: Array, index: slice | NDArray[np.int64]) -> Array:
        """(A,) the active tasks' s_i, after a step with these squared lengths."""
        steps, averages = self.steps.cpu().numpy(), self.squares.cpu().numpy()
        steps[index] += 1
        averages[index] = self.beta * averages[index] + (1 - self.beta) * squares
        self.steps.copy_(torch.from_numpy(steps))
        self.squares.copy_(torch.from_numpy(averages))
        corrected = averages[index] / (1 - self.beta ** steps[index].astype(np.float64))
        scales: Array = 1 / np.sqrt(corrected + self.epsilon)
        return scales
