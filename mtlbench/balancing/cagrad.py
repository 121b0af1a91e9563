"""CAGrad: the direction near the mean gradient that serves the worst-off task best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from mtlbench.balancing.base import Property, TaskSpec, Weighting
from mtlbench.balancing.checks import number, one_of
from mtlbench.balancing.groups import by_group
from mtlbench.linalg import Array, conflict_averse


def cagrad_weights(
    gramian: Array, *, c: float = 0.5, rescale: bool = False, scale: Literal["mean", "sum"] = "mean"
) -> tuple[Array, bool]:
    """(A, A) Gramian -> (A,) weights, and whether the problem is regular (see `CAGrad`)."""
    weights, regular = conflict_averse(gramian, c=c)
    factor = (len(gramian) if scale == "sum" else 1) / (1 + c * c if rescale else 1)
    return weights * factor, regular


class CAGrad(Weighting):
    """Conflict-averse gradient descent.

        d = argmax min_i g_i.d over |d - g0| <= c |g0|, g0 the mean gradient
        w = argmin g0.g_w + c |g0| |g_w| over the simplex, g_w = sum_i w_i g_i
        d = g0 + c |g0| g_w / |g_w|

    g0 is the mean over the active tasks. The minimum is exact (`linalg.conflict_averse`). The weights sum
    to nothing in particular: 1 + c |g0| / |g_w|. The status is degenerate where g0 = 0, with d = 0, and
    where g_w = 0: no direction within c |g0| of g0 improves every task (a zero gradient among them is
    enough), and d is the one nearest g0 of those that harm none.

    Args:
        c: radius of the ball, relative to |g0|; 0 is the mean gradient, 1 and more turns towards MGDA.
            0.5 is the official code's.
        rescale: divide d by 1 + c^2, as the official training code does.
        scale: mean, or sum: d times the number of active tasks, as the official training code has it.

    Raises:
        ValueError: a wrong option.
        RuntimeError: the solution misses its tolerance.

    Paper: Liu, Liu, Jin, Stone, Liu 2021, arXiv:2110.14048.

    Note:
        The official code adds 1e-4 to |g_w| and so returns about g0 where g_w = 0; TorchJD returns 0.
    """

    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        c: float = 0.5,
        rescale: bool = False,
        scale: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(c, option="c", least=0)
        one_of(rescale, (True, False), option="rescale")
        one_of(scale, ("mean", "sum"), option="scale")
        self.c, self.rescale, self.scale = c, rescale, scale

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        options = {"c": self.c, "rescale": self.rescale, "scale": self.scale}
        weights, self.status = by_group(gramian, cagrad_weights, **options)
        return weights
