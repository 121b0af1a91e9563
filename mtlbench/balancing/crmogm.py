"""CR-MOGM: the weights of another balancer, smoothed over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Property, TaskSpec, Weighting, index_of
from mtlbench.balancing.checks import number
from mtlbench.balancing.state import GroupState


def crmogm_weights(before: Tensor, found: Tensor, *, alpha: float = 0.9) -> Tensor:
    """Smoothed weights (...) from those of the step before, NaN for a task not seen yet, and those just found."""
    return torch.where(before.isnan(), found, alpha * before + (1 - alpha) * found)


class CRMOGM(Weighting):
    """Multi-objective gradient manipulation with smoothed weights.

        v(t) = the inner Weighting's weights at step t
        w(t) = alpha w(t-1) + (1 - alpha) v(t), w(0) = v(0)
        d = sum_i w_i g_i

    A task that is not active keeps its w, and one seen for the first time takes its v as it is. The sum of the
    weights is the inner Weighting's, as long as all tasks are active, and so is the status: where that is
    degenerate, d need not be zero. Everything else that is asked of a balancer is asked of the inner one.

    Args:
        weighting: makes the inner Weighting from num_tasks, seed and tasks: a `_partial_: true` node in YAML.
        alpha: share of the weights before; 0 is the inner Weighting itself.

    Raises:
        ValueError: a wrong option, or an inner balancer that is no Weighting.

    Paper: Zhou, Zhang, Jiang, Zhong, Gu, Zhu 2022, "On the convergence of stochastic multi-objective gradient
        manipulation and beyond", NeurIPS 2022.

    Note:
        The paper lets 1 - alpha fall with the learning rate; here alpha is constant, 0.9 as TorchJD recommends.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        weighting: Callable[..., Balancer],
        alpha: float = 0.9,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(alpha, option="alpha", least=0, most=1)
        inner = weighting(num_tasks=num_tasks, seed=seed, tasks=tasks)
        if not isinstance(inner, Weighting):
            raise ValueError(f"CRMOGM smooths the weights of a Weighting, and {type(inner).__name__} is none.")
        self.alpha, self.inner = alpha, inner
        self.groups, self.measure, self.num_batches = inner.groups, inner.measure, inner.num_batches
        self.needs_all_tasks, self.needs_after_step = inner.needs_all_tasks, inner.needs_after_step
        self.weights_sum = inner.weights_sum
        self.properties = inner.properties & {Property.PERMUTATION_EQUIVARIANT}
        self.weights = GroupState(num_tasks, value=torch.nan)

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        found = self.inner(gramian, losses, active=active)
        self.status = self.inner.status
        state = self.weights.read(gramian)
        index = index_of(active, state)
        state[:, index] = crmogm_weights(state[:, index], found.to(state), alpha=self.alpha)
        return state[:, index].to(gramian)

    def transform(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return self.inner.transform(losses, active=active)

    def after_step(self, before: Tensor, after: Tensor) -> None:
        self.inner.after_step(before, after)

    def end_epoch(self, mean_losses: Tensor) -> None:
        self.inner.end_epoch(mean_losses)
