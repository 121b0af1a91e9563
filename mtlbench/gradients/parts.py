"""The shared parameters in parts, each of which keeps its task gradients in the cheapest exact form.

A part says what to ask autograd for, takes that for one task after another, gives its share of the Gramian, and
combines its rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

# What autograd is asked for; torch.autograd.grad takes both in one list, and its annotation does not say so.
Asked = Any  # Tensor | GradientEdge
COLUMNS = 1 << 17  # of one float32 inner product; longer ones are summed in float64
BLOCK = 64  # rows of a kernel that are multiplied at a time


class Part(ABC):
    """Some shared parameters.

    Attributes:
        indices: which of the shared parameters.
        group: the group whose weights act on them.
        asked: what autograd is asked for: parameters, or the results of operations.
    """

    indices: list[int]
    group: int
    asked: list[Asked]

    @abstractmethod
    def add(self, tasks: slice, grads: Sequence[Tensor | None]) -> None:
        """Takes the gradients (n, ...) of what was asked for, of n tasks; None where they do not reach it."""

    @abstractmethod
    def products(self) -> Iterator[Tensor]:
        """(A, A) inner products of the rows, to be summed."""

    @abstractmethod
    def combine(self, weights: Tensor) -> list[Tensor]:
        """The parameters' gradients, of the rows weighted with (A,) weights."""


class Rows(Part):
    """The rows themselves: any parameters, however they are used."""

    def __init__(self, indices: Sequence[int], parameters: Sequence[Tensor], *, group: int, tasks: int) -> None:
        self.indices, self.group = list(indices), group
        self.asked = list(parameters)
        self._like = parameters
        self._sizes = [p.numel() for p in parameters]
        self._rows = parameters[0].new_empty(tasks, sum(self._sizes))

    def add(self, tasks: slice, grads: Sequence[Tensor | None]) -> None:
        rows = self._rows[tasks]
        pieces = [
            rows.new_zeros(len(rows), size) if grad is None else grad.reshape(len(rows), size)
            for grad, size in zip(grads, self._sizes, strict=True)
        ]
        torch.cat(pieces, dim=1, out=rows)

    def rows_of(self, place: int) -> Tensor:
        """(A, ...) the rows of one of the parameters, to be written to."""
        columns = self._rows.narrow(1, sum(self._sizes[:place]), self._sizes[place])
        return columns.view(-1, *self._like[place].shape)

    def products(self) -> Iterator[Tensor]:
        for block in self._rows.split(COLUMNS, dim=1):
            yield block @ block.T

    def combine(self, weights: Tensor) -> list[Tensor]:
        columns = (weights.to(self._rows) @ self._rows).split(self._sizes)
        return [column.view_as(p) for column, p in zip(columns, self._like, strict=True)]


class Product(Part):
    """A weight W of products x W' + b, by way of the N rows of x and the gradients g_k (N, D') of the results.

    Row k is g_k' x, and so <row k, row l> = sum((x x' g_k) * g_l): quicker than the rows where N is below their
    width, and the rows are never there. The products of all calls count as one with all their rows, which brings in
    the terms between calls.

    Args:
        indices: of the weight, and of the bias where it is to be taken together with it.
        inputs: (N, D) of each call.
        results: of the calls, which are asked for.
        width: D'.
        out_in: whether W is stored (D', D), else (D, D').
        rough: inner products in bfloat16.
    """

    def __init__(
        self,
        indices: Sequence[int],
        inputs: Sequence[Tensor],
        results: Sequence[GradientEdge],
        *,
        width: int,
        out_in: bool,
        group: int,
        tasks: int,
        rough: bool,
    ) -> None:
        self.indices, self.group, self.asked = list(indices), group, list(results)
        self._inputs = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs))
        self._lengths = [len(x) for x in inputs]
        self._out_in, self._rough = out_in, rough
        self._tasks, self._width = tasks, width
        self._grads: Tensor | None = None  # (A, N, D')

    def add(self, tasks: slice, grads: Sequence[Tensor | None]) -> None:
        first = grads[0]
        if len(grads) == 1 and first is not None and len(first) == self._tasks:
            self._grads = first
            return
        if self._grads is None:
            self._grads = self._inputs.new_empty(self._tasks, len(self._inputs), self._width)
        for target, grad in zip(self._grads[tasks].split(self._lengths, dim=1), grads, strict=True):
            if grad is None:
                target.zero_()
            else:
                target.copy_(grad)

    def products(self) -> Iterator[Tensor]:
        assert self._grads is not None
        inputs, grads = self._inputs, self._grads
        if self._rough:
            inputs, grads = inputs.bfloat16(), grads.bfloat16()
        kernel = inputs @ inputs.T
        if len(self.indices) == 2:
            kernel += 1  # the bias: a column of ones beside x
        if len(kernel) <= BLOCK:
            yield torch.matmul(kernel, grads).flatten(1) @ grads.flatten(1).T
            return
        # The kernel is symmetric: its upper triangle, half of the diagonal blocks included, and then the transpose.
        for start in range(0, len(kernel), BLOCK):
            stop = min(start + BLOCK, len(kernel))
            kernel[start:stop, start:stop].mul_(0.5)
            left = torch.matmul(kernel[start:stop, start:], grads[:, start:])
            half = left.flatten(1) @ grads[:, start:stop].flatten(1).T
            yield half + half.T

    def combine(self, weights: Tensor) -> list[Tensor]:
        assert self._grads is not None
        grad = (weights.to(self._grads) @ self._grads.flatten(1)).view(-1, self._width)
        weight = grad.T @ self._inputs if self._out_in else self._inputs.T @ grad
        return [weight, grad.sum(0)] if len(self.indices) == 2 else [weight]


class Tokens(Part):
    """An embedding's weight (V, D), by the rows of the U tokens that occur.

    Args:
        index: of the weight.
        weight: the embedding's.
        tokens: int32 or int64 of each call.
        results: of the calls, which are asked for.
        padding: the token whose gradient is zero; None for none.
    """

    def __init__(
        self,
        index: int,
        weight: Tensor,
        tokens: Sequence[Tensor],
        results: Sequence[GradientEdge],
        *,
        padding: int | None,
        group: int,
        tasks: int,
    ) -> None:
        self.indices, self.group, self.asked = [index], group, list(results)
        self._weight, self._padding = weight, padding
        flat = [found.reshape(-1).long() for found in tokens]
        self._found, inverse = torch.cat(flat).unique(return_inverse=True)
        self._places = inverse.split([len(one) for one in flat])
        self._rows = weight.new_zeros(tasks, len(self._found), weight.shape[1])

    def add(self, tasks: slice, grads: Sequence[Tensor | None]) -> None:
        rows = self._rows[tasks]
        for places, grad in zip(self._places, grads, strict=True):
            if grad is not None:
                rows.index_add_(1, places, grad.reshape(len(rows), -1, rows.shape[2]))
        self._no_padding()

    def add_rows(self, call: int, grad: Tensor, bounds: Sequence[tuple[int, int]]) -> None:
        """Takes the gradient (N, ..., D) of one call, of which rows `bounds[k]` are task k's."""
        flat = grad.reshape(-1, grad.shape[-1])
        places = self._places[call]
        places = places.repeat(len(flat) // len(places))  # of tokens that are the same for all rows
        lengths = torch.tensor([(stop - start) * (len(flat) // len(grad)) for start, stop in bounds])
        tasks = torch.arange(len(bounds)).repeat_interleave(lengths).to(places.device)
        self._rows.flatten(0, 1).index_add_(0, places + tasks * len(self._found), flat)
        self._no_padding()

    def _no_padding(self) -> None:
        if self._padding is not None:
            self._rows[:, self._found == self._padding] = 0

    def products(self) -> Iterator[Tensor]:
        for block in self._rows.flatten(1).split(COLUMNS, dim=1):
            yield block @ block.T

    def combine(self, weights: Tensor) -> list[Tensor]:
        grad = torch.zeros_like(self._weight, requires_grad=False)
        combined = (weights.to(self._rows) @ self._rows.flatten(1)).view(-1, self._weight.shape[1])
        return [grad.index_copy_(0, self._found, combined)]
