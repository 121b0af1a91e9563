"""Asks a balancer in its own terms: about the active tasks alone, on its device, with its own parameters' gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Balancer, Scalarizer, Weighting
from mtlbench.gradients.writing import write


def own_parameters(balancer: Balancer) -> list[nn.Parameter]:
    """Those that the main optimizer trains."""
    return [p for p in balancer.parameters() if p.requires_grad]


def objective_weights(balancer: Scalarizer, active: list[int], means: Tensor, factor: float) -> Tensor:
    """(1, A) d objective / d losses at the step's losses; writes the balancer's own `.grad`, of the same derivative."""
    _, weights = _derive(balancer, means, factor, lambda losses: objective(balancer, active, losses))
    return weights[None]


def transform(balancer: Balancer, active: list[int], means: Tensor, factor: float) -> tuple[Tensor, Tensor | None]:
    """Transformed losses (A,) and their slopes (A,), None for the identity; writes the balancer's own `.grad`."""
    if type(balancer).transform is Balancer.transform:
        return means, None
    losses, slopes = _derive(
        balancer, means, factor, lambda found: balancer.transform(found, active=subset(balancer, active, found.device))
    )
    return losses.detach().cpu(), slopes.cpu()


def known_weights(balancer: Balancer, active: list[int]) -> list[float] | None:
    """(A,) the weights of a Weighting's step, where it knows them before its gradients; else None."""
    if not isinstance(balancer, Weighting) or type(balancer).transform is not Balancer.transform:
        return None
    known = balancer.known_weights(active=subset(balancer, active, torch.device("cpu")))
    return None if known is None else known.tolist()


def weigh(balancer: Weighting, gramian: Tensor, losses: Tensor, active: list[int]) -> Tensor:
    """(G, A) the weights for a Gramian (G, A, A).

    Raises:
        RuntimeError: the balancer did not solve its problem, or returned weights of another shape.
    """
    with torch.no_grad():
        weights: Tensor = balancer(gramian, losses.to(gramian.device), active=subset(balancer, active, gramian.device))
    if weights.shape != gramian.shape[:2]:
        expected, name = tuple(gramian.shape[:2]), type(balancer).__name__
        raise RuntimeError(f"{name} returned weights of shape {tuple(weights.shape)}, expected {expected}.")
    return weights


def subset(balancer: Balancer, active: list[int], device: torch.device) -> Tensor | None:
    """The active tasks as balancers are told of them: None for all."""
    return None if len(active) == balancer.num_tasks else torch.tensor(active, device=device)


def objective(balancer: Scalarizer, active: list[int], losses: Tensor) -> Tensor:
    """() what a Scalarizer minimises, of losses (A,)."""
    chosen = subset(balancer, active, losses.device)
    value: Tensor = balancer(balancer.transform(losses, active=chosen), active=chosen)
    return value


def _derive(
    balancer: Balancer, means: Tensor, factor: float, function: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """A function of the losses (A,) and the derivative of its sum (A,), on the device of the balancer's parameters."""
    own = own_parameters(balancer)
    leaf = means.to(own[0].device if own else means.device).detach().requires_grad_()  # `means` itself is recorded
    value = function(leaf)
    slopes, *grads = torch.autograd.grad(value.sum(), [leaf, *own], allow_unused=True)
    write(own, [None if grad is None else grad * factor for grad in grads])
    return value, slopes
