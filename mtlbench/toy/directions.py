"""Asks balancers for directions: one balancer for each start, each with a state of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Aggregator, Balancer, Scalarizer, TaskSpec, Weighting
from mtlbench.toy.problem import TASKS, Array


class Directions:
    """The balanced directions of S starts.

    The two coordinates are all the shared parameters there are, and of one layer. A balancer that takes several
    batches a step gets the same gradients for each.

    Args:
        starts: their names.
        make: makes a balancer from num_tasks, seed and tasks.
        seed: of every balancer, so that a start's path does not depend on the others.

    Attributes:
        own: the balancers' own parameters; a call writes their gradients.
        degenerate: by start, how many calls had no balanced direction.

    Raises:
        ValueError: the balancer does not take these two tasks; in a call, these losses.
        RuntimeError: in a call, a problem was not solved to its tolerance.
    """

    def __init__(self, starts: Sequence[str], make: Callable[..., Balancer], *, seed: int) -> None:
        specs = [TaskSpec(task, "regression") for task in TASKS]
        self.starts = tuple(starts)
        self.balancers = [make(num_tasks=len(TASKS), seed=seed, tasks=specs) for _ in starts]
        self.own = [p for balancer in self.balancers for p in balancer.parameters() if p.requires_grad]
        self.degenerate = dict.fromkeys(starts, 0)
        self.needs_after_step = self.balancers[0].needs_after_step
        self._transforms = type(self.balancers[0]).transform is not Balancer.transform

    def __call__(self, losses: Array, gradients: Array) -> Array:
        """(S, 2) losses and (S, 2, 2) gradients, a row for each task -> (S, 2) directions."""
        given = torch.from_numpy(losses)
        if isinstance(self.balancers[0], Scalarizer):
            directions = _combine(self._slopes(given, lambda one, row: one(one.transform(row)))[1], gradients)
        else:
            if self._transforms:
                rows, slopes = self._slopes(given, lambda one, row: one.transform(row))
                given, gradients = torch.stack(rows), gradients * slopes[..., None]
            with torch.inference_mode():
                directions = self._ask(given, gradients)
        for start, balancer in zip(self.starts, self.balancers, strict=True):
            self.degenerate[start] += balancer.status == "degenerate"
        return directions

    def after_step(self, before: Array, after: Array) -> None:
        """(S, 2) losses before and after the update."""
        self._each(lambda one, *rows: one.after_step(*rows), torch.from_numpy(before), torch.from_numpy(after))

    def end_epoch(self, means: Array) -> None:
        """(S, 2) mean losses of the steps since the last call."""
        self._each(lambda one, row: one.end_epoch(row), torch.from_numpy(means))

    def _ask(self, losses: Tensor, gradients: Array) -> Array:
        if isinstance(self.balancers[0], Aggregator):
            found = self._each(lambda one, rows, row: one(rows, row), torch.from_numpy(gradients), losses)
            return torch.stack(found).numpy()
        assert isinstance(self.balancers[0], Weighting)
        gramians = torch.from_numpy(gradients @ gradients.swapaxes(1, 2))[:, None]  # one group
        weights = self._each(lambda one, products, row: one(products, row), gramians, losses)
        return _combine(torch.cat(weights).numpy(), gradients)

    def _slopes(self, losses: Tensor, call: Callable[[Balancer, Tensor], Tensor]) -> tuple[list[Tensor], Array]:
        """What `call` makes of each start's losses, and its derivative (S, 2); writes the own parameters' gradients."""
        leaf = losses.clone().requires_grad_()
        found = self._each(call, leaf)
        slopes, *own = torch.autograd.grad(torch.stack(found).sum(), [leaf, *self.own], allow_unused=True)
        for parameter, gradient in zip(self.own, own, strict=True):
            parameter.grad = gradient
        return [one.detach() for one in found], slopes.numpy()

    def _each(self, call: Callable[..., Any], *rows: Tensor) -> list[Any]:
        """`call` on each start's balancer and rows; an error names the start."""
        found = []
        for start, balancer, *given in zip(self.starts, self.balancers, *(row.unbind() for row in rows), strict=True):
            try:
                found.append(call(balancer, *given))
            except (ValueError, RuntimeError) as error:
                raise type(error)(f"from {start}: {error}") from error
        return found


def _combine(weights: Array, gradients: Array) -> Array:
    """(S, 2) weights and (S, 2, 2) gradients -> (S, 2) their combinations."""
    return (weights[:, None] @ gradients)[:, 0]
