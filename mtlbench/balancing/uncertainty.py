"""Weights from learned homoscedastic uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Property, Scalarizer, TaskSpec, select
from mtlbench.balancing.checks import number, one_of

Form = Literal["half", "sum", "sigma", "liebel"]


def uncertainty_objective(
    losses: Tensor, scales: Tensor, *, form: Form = "half", factors: Tensor | None = None
) -> Tensor:
    """The uncertainty-weighted sum of the losses.

    Args:
        losses: (A,) losses.
        scales: (A,) s = ln sigma^2 for the forms half and sum; sigma for sigma and liebel.
        form: see `Uncertainty`.
        factors: (A,) factors of the losses: 2 for a classification likelihood, 1 otherwise; None: 1 each.

    Returns:
        () the objective.
    """
    if factors is not None:
        losses = factors * losses
    if form == "half":
        return 0.5 * (losses * torch.exp(-scales) + scales).sum()
    if form == "sum":
        return (losses * torch.exp(-scales) + scales).sum()
    square = scales.square()
    penalty = scales.abs().log() if form == "sigma" else torch.log1p(square)
    return (losses / (2 * square) + penalty).sum()


class Uncertainty(Scalarizer):
    """Uncertainty weighting: the noise of each task is learned with the model.

        half:   1/2 sum_i (e^(-s_i) l_i + s_i), s_i = ln sigma_i^2           the default
        sum:    sum_i (e^(-s_i) l_i + s_i), twice that: Gal's code
        sigma:  sum_i (l_i / (2 sigma_i^2) + ln sigma_i), learning sigma_i: the paper's equation 7
        liebel: sum_i (l_i / (2 sigma_i^2) + ln(1 + sigma_i^2)), learning sigma_i

    At the optimum of the first three a task's weighted loss is the same for all tasks. The sums run over
    the active tasks; a task without labels in a step keeps its scale. The weights sum to nothing in
    particular.

    Args:
        form: half, sum, sigma or liebel.
        init: initial s = ln sigma^2, for every form; 0 is that of the Nash-MTL code.
        by_kind: tasks other than regression enter with l / sigma^2 instead of l / (2 sigma^2): the
            paper's classification likelihood (equation 10).

    Raises:
        ValueError: a wrong option, or `by_kind` without task specs.

    Paper: Kendall, Gal, Cipolla 2018, arXiv:1705.07115; form liebel: Liebel, Koerner 2018, arXiv:1805.06334.

    Note:
        The paper tells classification from regression losses (`by_kind`); the default treats all alike,
        as the published comparisons do. LibMTL starts at s = -0.5 and decays s; here `scales` is a
        parameter of its own group without weight decay.
    """

    needs_all_tasks = False
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})
    linear = True

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        form: Form = "half",
        init: float = 0.0,
        by_kind: bool = False,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        one_of(form, ("half", "sum", "sigma", "liebel"), option="form")
        number(init, option="init")
        if by_kind and tasks is None:
            raise ValueError("Uncertainty with by_kind=true needs tasks, the task specs with their kinds.")
        self.form = form
        initial = torch.full((num_tasks,), float(init))
        self.scales = nn.Parameter(initial if form in ("half", "sum") else torch.exp(initial / 2))
        kinds = [task.kind for task in tasks] if by_kind and tasks is not None else []
        factors = torch.tensor([1.0 if kind == "regression" else 2.0 for kind in kinds])
        self.factors: Tensor | None
        self.register_buffer("factors", factors if kinds else None)

    def forward(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        scales = select(self.scales, active)
        factors = None if self.factors is None else select(self.factors, active)
        return uncertainty_objective(losses, scales, form=self.form, factors=factors)
