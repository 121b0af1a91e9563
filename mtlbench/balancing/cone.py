"""What DualProj and UPGrad share: gradients are projected so that they harm no task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.balancing.base import Property, TaskSpec, Weighting
from mtlbench.balancing.checks import number
from mtlbench.linalg import dual_cone, is_zero


def regularized(gramian: Tensor, regularization: float) -> Tensor:
    """The Gramian plus a multiple of the identity, relative to its trace."""
    if regularization == 0:
        return gramian
    return gramian + regularization * gramian.trace() * torch.eye(len(gramian)).to(gramian)


class ConeProjection(Weighting):
    """The sum of projections on the dual cone of the gradients.

    Args:
        regularization: added to the diagonal of the Gramian, relative to its trace; above 0 the
            projections may conflict.

    Raises:
        ValueError: a wrong option.
    """

    properties = frozenset({Property.NON_CONFLICTING, Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self, *, num_tasks: int, seed: int, tasks: Sequence[TaskSpec] | None = None, regularization: float = 0.0
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(regularization, option="regularization", least=0)
        self.regularization = regularization
        if regularization > 0:
            self.properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    @abstractmethod
    def projected(self, size: int) -> Tensor:
        """(K, A) combinations of the gradients of `size` = A tasks, each of which is projected; float64."""

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        given = self.projected(gramian.shape[-1])
        found = [dual_cone(regularized(group, self.regularization), given).sum(0) for group in gramian]
        weights = torch.stack(found).to(gramian)
        self.status = "degenerate" if is_zero(gramian, weights) else "solved"
        return weights
