"""One backward for a whole step whose weights are known before it: task gradients are measured as they pass.

A weighted backward sums the tasks' gradients where their heads meet. Right before, each is there by itself, and still
in the cache: enough for the norm that it will have at the layer behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from mtlbench.gradients.choice import before_relu, factor_of, kind, product_of
from mtlbench.gradients.graph import Graph, packed, shape_of
from mtlbench.gradients.losses import MicroBatch
from mtlbench.gradients.parts import BLOCK, COLUMNS


class Last(NamedTuple):
    """The product x W' + b whose result, or the ReLU of it, each head reads once.

    Attributes:
        inputs: x (N, D).
        width: of the result.
        bias: whether b is measured together with W.
        passed: (N, D') the ReLU's result; None without one.
    """

    inputs: Tensor
    width: int
    bias: bool
    passed: Tensor | None


def find_last(graph: Graph, measured: Sequence[Tensor]) -> Last | None:
    """The product whose weight alone, or with its bias, is measured.

    None where something else is, or where norms are cheaper from the weight's gradients than from products of rows.
    """
    if graph.cut is None or graph.mixed or len({graph.tasks(head) for head, _ in graph.heads}) < len(graph.heads):
        return None
    relu = before_relu(graph.cut)
    node = graph.cut.node if relu is None else relu.node
    roles = [_role(graph, parameter, node) for parameter in measured]
    if sorted(roles) not in (["weight"], ["bias", "weight"]) or packed(node):
        return None
    inputs = factor_of(node)
    (rows, d_in), d_out = inputs.shape, shape_of(node)[1]
    if rows * (d_in + len(graph.heads) * d_out) > 2 * len(graph.heads) * d_in * d_out:
        return None
    passed = None if relu is None else graph.cut.node._saved_result  # type: ignore[attr-defined]
    return Last(inputs, d_out, "bias" in roles, passed)


def _role(graph: Graph, parameter: Tensor, node: Node) -> str:
    """What a parameter is in a product, where it is used nowhere else and nothing looks at its gradients."""
    uses = graph.uses(parameter)
    if len(uses) != 1 or parameter._backward_hooks:
        return "other"
    product = product_of(graph, uses[0])
    if product is not None and product[0] is node:
        return "weight"
    added = uses[0] == (node, 0) and kind(uses[0][0]) == "AddmmBackward0"
    return "bias" if added and tuple(parameter.shape) == tuple(shape_of(node)[1:]) else "other"


def weighted_backward(
    graph: Graph,
    last: Last,
    batch: MicroBatch,
    weights: Sequence[float],
    factor: float,
    leaves: Sequence[nn.Parameter] | None,
    *,
    keep: bool,
) -> list[float] | None:
    """Adds to `.grad`: weighted behind the place where the heads meet, unweighted before; all times `factor`.

    Args:
        graph: of the losses, with a cut.
        last: what is measured.
        batch: the losses.
        weights: (A,) of the tasks.
        factor: on the losses.
        leaves: those that are added to; None: all.
        keep: the graph is gone back through again.

    Returns:
        The squared norms (A,) of the gradients at the last layer, times `factor` squared. None where a hook
        changed the gradient where the heads meet, as it would have changed each task's.
    """
    assert graph.cut is not None
    watch = Watch(last, weights, graph.cut.output_nr)
    hooks = [
        head.register_hook(partial(watch.part, graph.tasks(head).bit_length() - 1, slot)) for head, slot in graph.heads
    ]
    hooks.append(graph.cut.node.register_prehook(watch.total))
    try:
        starts = torch.full_like(batch.stacked, factor)
        torch.autograd.backward(batch.stacked, starts, retain_graph=keep, inputs=leaves)
    finally:
        for hook in hooks:
            hook.remove()
    return None if watch.changed else watch.squares()


class Watch:
    """Sees each task's gradient g (N, D') where the heads meet: weighs it, and takes the norm of the weight's, g' x.

    That is sum((x x' g) * g), by blocks of rows.

    Attributes:
        changed: whether the sum arrived as another tensor than it was made.

    Args:
        last: the product behind.
        weights: (A,) of the tasks.
        place: which of its operation's results the heads read.
    """

    def __init__(self, last: Last, weights: Sequence[float], place: int) -> None:
        self.changed = False
        self._weights, self._place = weights, place
        self._total: Tensor | None = None
        self._tasks: list[int] = []  # as they come by
        self._products: list[Tensor] = []
        x, self._passed = last.inputs, last.passed
        self._row = x.new_empty(len(x), last.width)
        # Kernel, rows of g, those of its rows that the kernel's rows are of, and where their product goes, twice.
        self._blocks: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        size = max(1, min(BLOCK, COLUMNS // last.width))
        buffer = x.new_empty(min(size, len(x)), last.width)
        for start in range(0, len(x), size):
            whole = len(x) <= size  # as mostly: without cuts, each of which takes as long as a product
            inputs, row = (x, self._row) if whole else (x[start : start + size], self._row[start : start + size])
            out = buffer[: len(row)] if len(row) < len(buffer) else buffer
            kernel = inputs @ (x if whole else x[start:]).T
            if last.bias:
                kernel += 1  # a column of ones beside x
            if not whole:  # columns to the right of the block's own count for those to the left of them, too
                kernel[:, size:] *= 2
            self._blocks.append((kernel, self._row if whole else self._row[start:], row.view(-1), out, out.view(-1)))

    def part(
        self, task: int, slot: int, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...] | None:
        """Takes a task's part out of its head's gradients; the first leaves the sum in its place."""
        part = inputs[slot]
        if part is None:
            return None
        if self._passed is None:
            self._row.copy_(part)
        else:
            torch.ops.aten.threshold_backward.grad_input(part, self._passed, 0, grad_input=self._row)
        for kernel, rows, own, out, flat in self._blocks:
            torch.mm(kernel, rows, out=out)
            self._products.append(torch.dot(flat, own))
        self._tasks.append(task)
        if self._total is None:
            self._total = part * self._weights[task]
            return (*inputs[:slot], self._total, *inputs[slot + 1 :])
        self._total.add_(part, alpha=self._weights[task])
        return (*inputs[:slot], None, *inputs[slot + 1 :])

    def total(self, grads: tuple[Tensor | None, ...]) -> None:
        """Looks at the sum as the representation's operation gets it."""
        grad = grads[self._place]
        self.changed = self._total is not None and (grad is None or grad.data_ptr() != self._total.data_ptr())

    def squares(self) -> list[float]:
        """(A,) of the tasks' norms."""
        squares = [0.0] * len(self._weights)
        if self._tasks:
            values = torch.stack(self._products)
            if len(self._blocks) > 1:
                values = values.view(len(self._tasks), -1).sum(1, dtype=torch.float64)
            for task, value in zip(self._tasks, values.tolist(), strict=True):
                squares[task] = value
        return squares
