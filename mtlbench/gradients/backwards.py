"""Backwards of a step's losses, one by one or some together, through each head once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mtlbench.gradients.choice import before_relu
from mtlbench.gradients.graph import Graph, Shape, dtype_of, shape_of
from mtlbench.gradients.parts import Asked

# At the representation, of the tasks in one batched backward: what a cache holds, and what a large memory holds.
NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 26}
ALL_AT_ONCE = 2  # times so many, of all tasks: beyond, they are taken as they are needed


class Backwards:
    """Gradients of the losses times a factor.

    Attributes:
        private: for each task so far the gradients of the private parameters that it reaches, by index.
        cut: the result where all losses meet, or that before its ReLU once all gradients were taken there together;
            None where they do not meet.

    Args:
        graph: of the losses.
        losses: of the active tasks, A of T.
        stacked: (A,) the same in one tensor.
        factor: on each.
        private: parameters.
        again: whether the losses are gone back from once more at the end, by `weighted`.
    """

    def __init__(
        self,
        graph: Graph,
        losses: Sequence[Tensor],
        stacked: Tensor,
        factor: float,
        private: Sequence[nn.Parameter],
        *,
        again: bool,
    ) -> None:
        self._graph, self._losses, self._together = graph, losses, stacked
        self._factor, self._parameters = factor, private
        self.again = again
        self._at_cut: dict[int, Tensor | None] = {}
        self._stack: Tensor | None = None  # (A, ...) all of them in one
        self._first: Tensor | None = None  # what came there first
        self._plain = True  # no hook changes gradients there
        self.private: list[dict[int, Tensor]] = []
        self.cut = graph.cut

    def __len__(self) -> int:
        return len(self._losses)

    def at_cut(self, task: int) -> Tensor | None:
        """The gradient where all losses meet; None where this one is not there."""
        if task not in self._at_cut and not self._all_at_cut():
            self._at_cut[task] = self._one_at_cut(task)
        return self._at_cut[task]

    def _one_at_cut(self, task: int) -> Tensor | None:
        """The same by a backward of its own, before hooks on the representation: autograd applies them further on."""
        cut = self.cut
        assert cut is not None
        parts: list[Tensor] = []
        if self._losses[task].grad_fn is cut.node:
            parts.append(torch.full_like(self._losses[task], self._factor))

        def note(slot: int, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...]) -> None:
            part = inputs[slot]
            if part is not None:
                parts.append(part)

        hooks = [node.register_hook(partial(note, slot)) for node, slot in self._graph.heads]
        try:
            # What lies before the cut is kept: it is little, and the first step's check goes through it again.
            self._of_loss(task, [cut], retain=True)
        finally:
            for hook in hooks:
                hook.remove()
        return sum(parts[1:], parts[0]) if parts else None

    def _all_at_cut(self) -> bool:
        """The same of all losses by one backward, where their ways to the cut are apart; whether it was done."""
        cut = self.cut
        assert cut is not None
        if self.private or self._graph.mixed or cut.node in {loss.grad_fn for loss in self._losses}:
            return False
        size, most = len(self) * math.prod(_shape(cut)), ALL_AT_ONCE * NUMBERS[self._losses[0].device.type]
        if size > most and not self.again:  # where they are gone back from again, all are kept however they are taken
            return False
        self._at_cut = dict.fromkeys(range(len(self)))
        self._stack = self._losses[0].new_empty(len(self), *_shape(cut), dtype=_dtype(cut))
        before = before_relu(cut) if self._plain else None
        passes = None if before is None else cut.node._saved_result  # type: ignore[attr-defined]
        hooks = [
            node.register_hook(partial(self._note, self._graph.tasks(node).bit_length() - 1, slot, passes))
            for node, slot in self._graph.heads
        ]
        reach = self._graph.reach
        own = [i for i, p in enumerate(self._parameters) if reach.get(id(p), 0)]
        try:
            grads = torch.autograd.grad(
                self._together,
                [cut, *(self._parameters[i] for i in own)],  # type: ignore[arg-type]
                torch.full_like(self._together, self._factor),
                retain_graph=True,
                allow_unused=True,
            )
        finally:
            for hook in hooks:
                hook.remove()
        changed = self._first is not None and (grads[0] is None or grads[0].data_ptr() != self._first.data_ptr())
        if changed and self._plain:  # by a hook on the representation, which autograd is to apply to each gradient
            self._plain, self._first = False, None
            return self._all_at_cut()
        self.cut = before or cut
        for task, found in self._at_cut.items():
            if found is None:
                self._stack[task].zero_()
        self.private.extend({} for _ in self._losses)
        for index, grad in zip(own, grads[1:], strict=True):
            if grad is not None:
                self.private[reach[id(self._parameters[index])].bit_length() - 1][index] = grad
        return True

    def _note(
        self,
        task: int,
        slot: int,
        passes: Tensor | None,
        inputs: tuple[Tensor | None, ...],
        outputs: tuple[Tensor, ...],
    ) -> tuple[Tensor | None, ...] | None:
        """Takes one task's part of the gradient at the cut, and all but the first out of their way to a sum there."""
        assert self._stack is not None
        row, part = self._stack[task], inputs[slot]
        if part is None:
            return None
        if self._at_cut[task] is None:
            self._at_cut[task] = _through(passes, part, row)
        else:
            row += _through(passes, part, torch.empty_like(row))
        if self._first is None:
            self._first = part
            return None
        return (*inputs[:slot], None, *inputs[slot + 1 :])

    def one(self, task: int, asked: Sequence[Asked], *, retain: bool) -> Sequence[Tensor | None]:
        """One task's gradients of what is asked for."""
        if self.again and self.cut is not None:
            self.at_cut(task)
        if task not in self._at_cut:
            return self._of_loss(task, asked, retain=retain or self.again)
        cotangent = self._at_cut[task] if self.again else self._at_cut.pop(task)
        return self._of_cut(cotangent, asked, retain=retain or self.again)

    def chunk(
        self, start: int, size: int | None, asked: Sequence[Asked], *, keep: bool
    ) -> tuple[slice, Sequence[Tensor | None]]:
        """Gradients (n, ...) of what is asked for, of so many tasks or as many as have `NUMBERS` numbers at the cut."""
        assert self.cut is not None
        if size is None:
            most = max(1, NUMBERS[self._losses[0].device.type] // max(1, math.prod(_shape(self.cut))))
            size = -(-len(self) // -(-len(self) // most))  # as few chunks as that takes, of one size
        tasks = slice(start, min(start + size, len(self)))
        stacked = self._stacked(tasks)
        try:
            grads = torch.autograd.grad(
                [self.cut],
                asked,
                [stacked],
                is_grads_batched=True,
                retain_graph=keep or self.again or tasks.stop < len(self),
                allow_unused=True,
            )
        except RuntimeError as error:
            error.add_note("A backward of several tasks at once: hooks that read numbers need engine.route=sequential.")
            raise
        return tasks, grads

    def _stacked(self, tasks: slice) -> Tensor:
        """(n, ...) gradients at the cut, which are let go where they are not gone back from again."""
        assert self.cut is not None
        found = [self.at_cut(task) for task in range(tasks.start, tasks.stop)]
        if not self.again:
            for task in range(tasks.start, tasks.stop):
                del self._at_cut[task]
        if self._stack is not None:
            return self._stack[tasks]
        known = next((one for one in found if one is not None), self._losses[0])
        return torch.stack([known.new_zeros(_shape(self.cut)) if one is None else one for one in found])

    def there(self, asked: Sequence[Asked]) -> Tensor | None:
        """(A, ...) all tasks' gradients of what is asked for, where those are the gradients at the cut, all kept."""
        if self.again and self.cut is not None:
            self.at_cut(0)
        at_cut = all(isinstance(one, GradientEdge) and one == self.cut for one in asked)
        return self._stack if self.again and self._plain and at_cut else None

    def sum_at_cut(self, weights: Tensor | None = None) -> Tensor | None:
        """Of all tasks, with weights (A,)."""
        if self._stack is not None and self._first is not None:
            rows = self._stack.flatten(1)
            return (rows.sum(0) if weights is None else weights.to(rows) @ rows).view_as(self._stack[0])
        total: Tensor | None = None
        for task, factor in enumerate([1.0] * len(self) if weights is None else weights.tolist()):
            one = self.at_cut(task)
            if one is not None:
                total = one * factor if total is None else total.add_(one, alpha=factor)
        return total

    def weighted(self, weights: Tensor, parameters: Sequence[Tensor], *, retain: bool) -> Sequence[Tensor | None]:
        """The gradients of the losses' sum with weights (A,)."""
        if self.cut is not None:
            return self._of_cut(self.sum_at_cut(weights), parameters, retain=retain)
        cotangent = (weights * self._factor).to(self._together)
        return torch.autograd.grad(self._together, parameters, cotangent, retain_graph=retain, allow_unused=True)

    def _of_cut(self, cotangent: Tensor | None, asked: Sequence[Asked], *, retain: bool) -> Sequence[Tensor | None]:
        if cotangent is None or self.cut is None or not asked:
            return [None] * len(asked)
        return torch.autograd.grad([self.cut], asked, [cotangent], retain_graph=retain, allow_unused=True)

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


def _shape(edge: GradientEdge) -> Shape:
    return shape_of(edge.node, edge.output_nr)


def _dtype(edge: GradientEdge) -> torch.dtype:
    return dtype_of(edge.node, edge.output_nr)


def _through(passes: Tensor | None, grad: Tensor, out: Tensor) -> Tensor:
    """Writes a gradient as a ReLU with a given result passes it back, or as it is."""
    if passes is None:
        return out.copy_(grad)
    return torch.ops.aten.threshold_backward.grad_input(grad, passes, 0, grad_input=out)
