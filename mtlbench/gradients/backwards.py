"""Backwards of a step's losses, one by one or some together, through each head once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mtlbench.gradients.graph import Graph
from mtlbench.gradients.parts import Asked

# At the representation, of the tasks in one batched backward: what a cache holds, and what a large memory holds.
NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 26}
ALL_AT_ONCE = 2  # times so many, of all tasks: beyond, they are taken as they are needed


class Backwards:
    """Gradients of the losses times a factor.

    Attributes:
        private: for each task so far the gradients of the private parameters that it reaches, by index.

    Args:
        graph: of the losses.
        losses: of the active tasks, A of T.
        factor: on each.
        private: parameters.
        again: whether the losses are gone back from once more at the end, by `weighted`.
    """

    def __init__(
        self, graph: Graph, losses: Sequence[Tensor], factor: float, private: Sequence[nn.Parameter], *, again: bool
    ) -> None:
        self._graph, self._losses, self._factor, self._parameters = graph, losses, factor, private
        self.again = again
        self._at_cut: dict[int, Tensor | None] = {}
        self.private: list[dict[int, Tensor]] = []

    def __len__(self) -> int:
        return len(self._losses)

    def at_cut(self, task: int) -> Tensor | None:
        """The gradient where all losses meet; None where this one is not there."""
        if task not in self._at_cut and not self._all_at_cut():
            # What lies before the cut is kept: it is little, and the first step's check goes through it again.
            (self._at_cut[task],) = self._of_loss(task, [self._graph.cut], retain=True)
        return self._at_cut[task]

    def _all_at_cut(self) -> bool:
        """The same of all losses by one backward, where their ways to the cut are apart; whether it was done."""
        cut, nodes = self._graph.cut, self._graph.nodes
        assert cut is not None
        most = ALL_AT_ONCE * NUMBERS[self._losses[0].device.type]
        if self.private or self._graph.mixed or cut.node in {loss.grad_fn for loss in self._losses}:
            return False
        if len(self) * math.prod(_shape(cut)) > most:
            return False
        self._at_cut = dict.fromkeys(range(len(self)))
        hooks = [
            use.node.register_hook(partial(self._note, nodes[use.node].bit_length() - 1, use.slot))
            for use in self._graph.heads
        ]
        reach = self._graph.reach
        own = [i for i, p in enumerate(self._parameters) if reach.get(id(p), 0)]
        try:
            grads = torch.autograd.grad(
                self._losses,
                [cut, *(self._parameters[i] for i in own)],  # type: ignore[arg-type]
                [torch.full_like(loss, self._factor) for loss in self._losses],
                retain_graph=True,
                allow_unused=True,
            )
        finally:
            for hook in hooks:
                hook.remove()
        self.private.extend({} for _ in self._losses)
        for index, grad in zip(own, grads[1:], strict=True):
            if grad is not None:
                self.private[reach[id(self._parameters[index])].bit_length() - 1][index] = grad
        return True

    def _note(self, task: int, slot: int, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...]) -> None:
        """Takes one task's part of the gradient at the cut on its way there."""
        old, new = self._at_cut[task], inputs[slot]
        self._at_cut[task] = new if old is None else old if new is None else old + new

    def one(self, task: int, asked: Sequence[Asked], *, retain: bool) -> Sequence[Tensor | None]:
        """One task's gradients of what is asked for."""
        if self.again and self._graph.cut is not None:
            self.at_cut(task)
        if task not in self._at_cut:
            return self._of_loss(task, asked, retain=retain or self.again)
        cotangent = self._at_cut[task] if self.again else self._at_cut.pop(task)
        return self._of_cut(cotangent, asked, retain=retain or self.again)

    def chunk(
        self, start: int, size: int | None, asked: Sequence[Asked], *, keep: bool
    ) -> tuple[slice, Sequence[Tensor | None]]:
        """Gradients (n, ...) of what is asked for, of so many tasks or as many as have `NUMBERS` numbers at the cut."""
        assert self._graph.cut is not None
        shape = _shape(self._graph.cut)
        if size is None:
            most = max(1, NUMBERS[self._losses[0].device.type] // math.prod(shape))
            size = -(-len(self) // -(-len(self) // most))  # as few chunks as that takes, of one size
        tasks = range(start, min(start + size, len(self)))
        found = [self.at_cut(task) for task in tasks]
        if not self.again:
            for task in tasks:
                del self._at_cut[task]
        known = next((one for one in found if one is not None), self._losses[0])
        grads = torch.autograd.grad(
            [self._graph.cut],
            asked,
            [torch.stack([known.new_zeros(shape) if one is None else one for one in found])],
            is_grads_batched=True,
            retain_graph=keep or self.again or tasks.stop < len(self),
            allow_unused=True,
        )
        return slice(start, tasks.stop), grads

    def sum_at_cut(self, weights: Tensor | None = None) -> Tensor | None:
        """Of all tasks, with weights (A,)."""
        factors = [1.0] * len(self) if weights is None else weights.tolist()
        found = [(self.at_cut(task), factor) for task, factor in enumerate(factors)]
        parts = [one if factor == 1 else one * factor for one, factor in found if one is not None]
        return sum(parts[1:], parts[0]) if parts else None

    def weighted(self, weights: Tensor, parameters: Sequence[Tensor], *, retain: bool) -> Sequence[Tensor | None]:
        """The gradients of the losses' sum with weights (A,)."""
        if self._graph.cut is not None:
            return self._of_cut(self.sum_at_cut(weights), parameters, retain=retain)
        factors = (weights * self._factor).tolist()
        cotangents = [torch.full_like(loss, factor) for loss, factor in zip(self._losses, factors, strict=True)]
        return torch.autograd.grad(self._losses, parameters, cotangents, retain_graph=retain, allow_unused=True)

    def _of_cut(self, cotangent: Tensor | None, asked: Sequence[Asked], *, retain: bool) -> Sequence[Tensor | None]:
        if cotangent is None or self._graph.cut is None or not asked:
            return [None] * len(asked)
        return torch.autograd.grad([self._graph.cut], asked, [cotangent], retain_graph=retain, allow_unused=True)

    def _of_loss(self, task: int, asked: Sequence[Asked], *, retain: bool) -> Sequence[Tensor | None]:
        """From the loss itself; the private parameters' gradients are kept."""
        own = [i for i, p in enumerate(self._parameters) if self._graph.reach.get(id(p), 0) >> task & 1]
        loss = self._losses[task]
        wanted = [*asked, *(self._parameters[i] for i in own)]
        cotangent = torch.full_like(loss, self._factor)
        grads: Sequence[Tensor | None] = []
        if wanted:
            grads = torch.autograd.grad(loss, wanted, cotangent, retain_graph=retain, allow_unused=True)
        found = zip(own, grads[len(asked) :], strict=True)
        self.private.append({index: grad for index, grad in found if grad is not None})
        return grads[: len(asked)]


def _shape(edge: GradientEdge) -> Sequence[int]:
    shape: Sequence[int] = edge.node._input_metadata[edge.output_nr].shape
    return shape
