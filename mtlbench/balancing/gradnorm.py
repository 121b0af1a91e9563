"""GradNorm: weights that train all tasks at similar rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Literal

import torch
from torch import Tensor

from mtlbench.balancing.base import Property, Status, TaskSpec, Weighting, index_of, select
from mtlbench.balancing.checks import number, one_of

Parametrization = Literal["weights", "softmax"]


def gradnorm_targets(norms: Sequence[float], ratios: Sequence[float], *, alpha: float = 1.5) -> list[float]:
    """(A,) norms to aim at: the mean norm times r^alpha, r the loss ratios L(t)/L(0) over their mean."""
    level, mean = sum(norms) / len(norms), sum(ratios) / len(ratios)
    return [level * _power(ratio / mean if mean > 0 else 1.0, alpha) for ratio in ratios]


def _power(base: float, exponent: float) -> float:
    try:
        return base**exponent
    except OverflowError:
        return math.inf


def gradnorm_update(
    weights: Sequence[float],
    lengths: Sequence[float],
    ratios: Sequence[float],
    *,
    alpha: float = 1.5,
    lr: float = 0.025,
    parametrization: Parametrization = "weights",
    minimum: float = 1e-6,
) -> list[float]:
    """One step of gradient descent on the weights, whose sum is kept.

    Args:
        weights: (A,) positive weights.
        lengths: (A,) norms of the unweighted gradients.
        ratios: (A,) losses over their initial values, at least 0.
        alpha: exponent of the rates in the targets.
        lr: of the descent.
        parametrization: descend on the weights, or on v where weights = total * softmax(v).
        minimum: floor of the weights before they are rescaled.

    Returns:
        (A,) the next step's weights.
    """
    norms = [weight * length for weight, length in zip(weights, lengths, strict=True)]
    targets = gradnorm_targets(norms, ratios, alpha=alpha)
    gradient = [
        length if norm > target else -length if norm < target else 0.0
        for norm, target, length in zip(norms, targets, lengths, strict=True)
    ]
    total = sum(weights)
    if parametrization == "softmax":
        mean = sum(map(mul, gradient, weights)) / total
        logits = [
            (math.log(weight) if weight else -math.inf) - lr * weight * (slope - mean)
            for weight, slope in zip(weights, gradient, strict=True)
        ]
        top = max(logits)
        updated = [math.exp(logit - top) for logit in logits]
    else:
        updated = [max(weight - lr * slope, minimum) for weight, slope in zip(weights, gradient, strict=True)]
    share = total / sum(updated)
    return [weight * share for weight in updated]


class GradNorm(Weighting):
    """GradNorm.

        n_i = w_i |g_i|, target_i = mean(n) (R_i / mean R)^alpha with R_i = L_i(t) / L_i(0), held constant
        w <- w - lr d/dw sum_i |n_i - target_i|, then rescaled to sum to T
        the step itself uses the weights from before this update, w(t), as in the paper's algorithm 1

    |g_i| is the norm of task i's gradient where `measure` says. Means and sums run over the active tasks:
    their weights keep the sum they had, and those of the others are untouched. The status is degenerate
    where all gradients, or all losses, are zero: the weights then stay as they are.

    Args:
        alpha: strength of the pull towards equal rates; 1.5 is the paper's on NYUv2.
        lr: of the weights; 0.025 is the paper's.
        parametrization: weights, or softmax (w = T softmax(v), descent on v: LibMTL).
        initial: L_i(0) is the loss of the first_step in which task i has labels (the paper), or its mean
            over the first_epoch, in which the weights stay equal (LibMTL).
        measure: last_layer, the last shared layer (the paper), or parameters, all shared ones (LibMTL).
        minimum: what no weight falls below in an update, before rescaling.

    Raises:
        ValueError: a wrong option; a negative loss, or one that is zero at first.

    Paper: Chen, Badrinarayanan, Lee, Rabinovich 2018, arXiv:1711.02257.

    Note:
        The paper lets weights become negative where lr |g_i| exceeds w_i; here they stop at `minimum`.
        It does not name the weights' optimizer: here it is plain SGD. LibMTL trains v with the model's
        optimizer, weight decay included.
    """

    measure: Literal["parameters", "last_layer"] = "last_layer"
    weights_sum = "T"
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        alpha: float = 1.5,
        lr: float = 0.025,
        parametrization: Parametrization = "weights",
        initial: Literal["first_step", "first_epoch"] = "first_step",
        measure: Literal["last_layer", "parameters"] = "last_layer",
        minimum: float = 1e-6,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(alpha, option="alpha", least=0)
        number(lr, option="lr", above=0)
        number(minimum, option="minimum", above=0)
        one_of(parametrization, ("weights", "softmax"), option="parametrization")
        one_of(initial, ("first_step", "first_epoch"), option="initial")
        one_of(measure, ("last_layer", "parameters"), option="measure")
        self.alpha, self.lr, self.minimum = alpha, lr, minimum
        self.parametrization, self.initial, self.measure = parametrization, initial, measure
        self.names = [task.name for task in tasks] if tasks is not None else [str(i) for i in range(num_tasks)]
        self.weights: Tensor
        self.initial_losses: Tensor  # NaN until seen
        self.register_buffer("weights", torch.ones(num_tasks, dtype=torch.float64))
        self.register_buffer("initial_losses", torch.full((num_tasks,), torch.nan, dtype=torch.float64))

    def known_weights(self, *, active: Tensor | None = None) -> Tensor:
        return select(self.weights, active)

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        # Plain floats: for so few numbers, and not in the cache after a backward, tensors and numpy take longer.
        weights, first = (select(state, active).tolist() for state in (self.weights, self.initial_losses))
        current = losses.tolist()
        if self.initial == "first_step" and any(map(math.isnan, first)):
            first = [now if math.isnan(then) else then for then, now in zip(first, current, strict=True)]
            self.initial_losses[index_of(active, self.initial_losses)] = self.initial_losses.new_tensor(first)
        status: Status = "solved"
        if not any(map(math.isnan, first)):
            self._check(current, first, active)
            squares = [sum(each) for each in zip(*gramian.diagonal(dim1=1, dim2=2).tolist(), strict=True)]
            if any(squares) and any(current):
                updated = gradnorm_update(
                    weights,
                    [math.sqrt(max(square, 0.0)) for square in squares],
                    [now / then for now, then in zip(current, first, strict=True)],
                    alpha=self.alpha,
                    lr=self.lr,
                    parametrization=self.parametrization,
                    minimum=self.minimum,
                )
                self.weights[index_of(active, self.weights)] = self.weights.new_tensor(updated)
            else:
                status = "degenerate"
        if status != self.status:  # a module's attributes take long to set
            self.status = status
        return gramian.new_tensor([weights] * len(gramian))  # the step's own

    def end_epoch(self, mean_losses: Tensor) -> None:
        if self.initial == "first_epoch":
            means = mean_losses.to(self.initial_losses)
            self.initial_losses.copy_(torch.where(self.initial_losses.isnan(), means, self.initial_losses))

    def _check(self, current: Sequence[float], first: Sequence[float], active: Tensor | None) -> None:
        for place, (now, then) in enumerate(zip(current, first, strict=True)):
            if now < 0 or then <= 0:
                task = place if active is None else int(active[place])
                raise ValueError(
                    "GradNorm divides losses by their first values and needs them positive; task "
                    f"{self.names[task]!r} has {now:.6g}, and {then:.6g} at first. Use a loss bounded below by 0, or "
                    "another balancer."
                )
