"""GradVac: gradients turned towards each other, as far as they usually agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from mtlbench.balancing.base import TaskSpec, Weighting
from mtlbench.balancing.checks import number, one_of
from mtlbench.balancing.groups import to_array
from mtlbench.balancing.state import GroupState
from mtlbench.linalg import Array, is_zero

Rows = list[list[float]]

# A target cosine of 1 is out of any correction's reach: the length of the correction grows without bound.
_CLOSEST = 1 - 1e-4
_EPS = float(np.finfo(np.float64).eps)


def gradvac_weights(gramian: Array, targets: Array, *, beta: float, generator: Generator | None) -> tuple[Array, Array]:
    """Weights of the sum of the corrected gradients, and the next targets.

    Args:
        gramian: (G, A, A) inner products; each group is corrected by itself.
        targets: (G, A, A) the cosines phi_ij that gradients i, being corrected, and j are to have at least.
        beta: share of the cosines just seen in the next targets.
        generator: draws the order of the corrections, one for each task, shared by the groups; None: ascending.

    Returns:
        (G, A) weights and (G, A, A) targets.
    """
    size = gramian.shape[-1]
    if size == 2:  # there is one order
        pairs = [_of_two(*given, beta=beta) for given in zip(gramian.tolist(), targets.tolist(), strict=True)]
        return np.array([weights for weights, _ in pairs]), np.array([updated for _, updated in pairs])
    if generator is None:
        order = np.tile(np.arange(size), (size, 1))
    else:
        order = torch.stack([torch.randperm(size, generator=generator) for _ in range(size)]).numpy()
    phi = targets.copy()
    lengths = np.sqrt(np.diagonal(gramian, axis1=-2, axis2=-1))
    # All in units of the gradients' own lengths: a correction changes a gradient as much whatever their scales.
    units = np.where(lengths > 0, lengths, 1.0)
    between = gramian / units[:, :, None] / units[:, None]
    rows, steps = np.arange(size), np.ascontiguousarray(order.T)
    had = phi[:, rows, steps].swapaxes(0, 1)  # (A, G, A), and so the next five: every pair meets once
    angled = (lengths[:, steps].swapaxes(0, 1) > 0) & (rows != steps)[:, None]
    wanted = np.minimum(had, _CLOSEST)
    stretch = 1 / np.sqrt(np.where(wanted > -1, 1 - wanted * wanted, 1.0))
    slope = wanted * stretch
    cosines = np.empty_like(had)
    # combined[:, i] are the weights of task i's corrected gradient; all tasks take their next step at once.
    combined = np.tile(np.eye(size), (len(gramian), 1, 1))
    length = np.sign(lengths)  # of the corrected gradients
    bound = length  # what it would be at most, were all corrections in one direction
    least = 2 * math.sqrt(size * _EPS)
    for k, others in enumerate(steps):
        # A gradient that corrections have cancelled is zero up to rounding, and has no angle.
        angled[k] &= length > least * bound
        inner = np.vecdot(between.take(others, 1), combined)
        cosine = cosines[k] = np.minimum(np.maximum(inner / np.where(angled[k], length, 1.0), -1), 1)
        turned = angled[k] & (cosine < wanted[k])
        sine = np.sqrt(1 - cosine * cosine)
        step = np.where(turned, length * (slope[k] * sine - cosine), 0.0)
        combined[:, rows, others] += step
        length = np.where(turned, length * sine * stretch[k], length)
        bound = bound + np.abs(step)
    phi[:, rows, steps] = np.where(angled, had + beta * (cosines - had), had).swapaxes(0, 1)
    weights = np.einsum("gi,gij->gj", units, combined) / units
    return weights, phi


def _of_two(gramian: Rows, phi: Rows, *, beta: float) -> tuple[list[float], Rows]:
    """(2, 2) Gramian and targets -> (2,) weights and the next targets."""
    (first, inner), (_, second) = gramian
    lengths, weights = (math.sqrt(first), math.sqrt(second)), [1.0, 1.0]
    if first > 0 and second > 0:
        cosine = min(max(inner / lengths[0] / lengths[1], -1.0), 1.0)
        for task, other in ((0, 1), (1, 0)):
            wanted = min(phi[task][other], _CLOSEST)
            if cosine < wanted:
                step = wanted * math.sqrt((1 - cosine * cosine) / (1 - wanted * wanted)) - cosine
                weights[other] += step * lengths[task] / lengths[other]
            phi[task][other] += beta * (cosine - phi[task][other])
    return weights, phi


class GradVac(Weighting):
    """Gradient vaccine.

        for each task i: p <- g_i; for the other tasks j in random order, with c = cos(p, g_j):
            if c < phi_ij: p <- p + |p| (phi_ij sqrt(1 - c^2) - c sqrt(1 - phi_ij^2)) / (|g_j| sqrt(1 - phi_ij^2)) g_j
            phi_ij <- (1 - beta) phi_ij + beta c; d = sum_i p_i

    A correction gives p the cosine phi_ij with g_j, and phi starts at 0: there GradVac is PCGrad. Corrections are
    towards the original g_j of the active tasks alone; the phi of a pair that did not meet stays. A zero gradient
    neither changes nor is changed. The status is degenerate where d = 0 (two opposite gradients). The weights sum
    to T or more.

    Args:
        beta: share of the cosine just seen in phi; 0.5 is LibMTL's and TorchJD's, the paper's experiments have 0.01.
        order: random (from the balancer's own generator), or fixed: ascending.
        groups: all, the whole gradient with one phi a pair, or layer: each layer's part by itself, in one order.

    Raises:
        ValueError: a wrong option.

    Paper: Wang, Tsvetkov, Firat, Cao 2020, arXiv:2010.05874.

    Note:
        A phi above 1 - 1e-4 counts as that in a correction, whose length is unbounded as phi nears 1 (identical
        gradients bring it there); TorchJD adds 1e-8 to the denominators instead.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        beta: float = 0.5,
        order: Literal["random", "fixed"] = "random",
        groups: Literal["all", "layer"] = "all",
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(beta, option="beta", least=0, most=1)
        one_of(order, ("random", "fixed"), option="order")
        one_of(groups, ("all", "layer"), option="groups")
        self.beta, self.order, self.groups = beta, order, groups
        self.targets = GroupState(num_tasks, num_tasks, value=0.0)

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        targets = self.targets.read(gramian)
        index = slice(None) if active is None else (slice(None), active.cpu()[:, None], active.cpu())
        products, generator = to_array(gramian), self.generator if self.order == "random" else None
        weights, updated = gradvac_weights(products, to_array(targets[index]), beta=self.beta, generator=generator)
        targets[index] = torch.from_numpy(updated).to(targets)
        self.status = "degenerate" if is_zero(products, weights) else "solved"
        return torch.from_numpy(weights).to(gramian)
