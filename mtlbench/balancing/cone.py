"""What DualProj and UPGrad share: gradients are projected so that they harm no task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mtlbench.balancing.base import Property, TaskSpec, Weighting
from mtlbench.balancing.checks import number
from mtlbench.balancing.groups import by_group
from mtlbench.linalg import Array, dual_cone, is_zero


def cone_weights(gramian: Array, projected: Array, *, regularization: float = 0.0) -> tuple[Array, bool]:
    """Weights of the sum of projections.

    Args:
        gramian: (A, A) inner products of the gradients.
        projected: (K, A) combinations of them.
        regularization: of the Gramian, by a multiple of the identity relative to its trace.

    Returns:
        (A,) weights, and whether the sum is not zero.
    """
    used = gramian + regularization * gramian.trace() * np.eye(len(gramian)) if regularization else gramian
    weights = dual_cone(used, projected).sum(0)
    return weights, not is_zero(gramian, weights)


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
    def projected(self, size: int) -> Array:
        """(K, A) combinations of the gradients of `size` = A tasks, each of which is projected."""

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        projected = self.projected(gramian.shape[-1])
        options = {"projected": projected, "regularization": self.regularization}
        weights, self.status = by_group(gramian, cone_weights, **options)
        return weights
