"""Gradients of parameters from some rows of an operation's result alone, for operations that go row by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlbench.gradients.choice import CONVOLUTION, factor_of, kind, product_of
from mtlbench.gradients.graph import Graph, Use, dtype_of, packed, shape_of
from mtlbench.gradients.kernels import settings_of

LAYER_NORM, BATCH_NORM = "NativeLayerNormBackward0", "NativeBatchNormBackward0"


class Rule(ABC):
    """One use of a parameter.

    Attributes:
        node: of the operation.
    """

    node: Any

    @abstractmethod
    def write(self, rows: Tensor, grad: Tensor, bounds: Sequence[tuple[int, int]], *, again: bool) -> None:
        """Writes each task's gradient to its row, or adds it where the parameter is read once more.

        Args:
            rows: (A, ...) of the parameter.
            grad: (N, ...) of the operation's result.
            bounds: of each task's rows there.
            again: it was read before.
        """


class Cut(Rule):
    """One whose gradient is made of a task's rows and then written."""

    @abstractmethod
    def of_rows(self, grad: Tensor, start: int, stop: int) -> Tensor:
        """The gradient of the parameter from rows `start` to `stop` of the gradient (N, ...) of the result."""

    def write(self, rows: Tensor, grad: Tensor, bounds: Sequence[tuple[int, int]], *, again: bool) -> None:
        for task, (start, stop) in enumerate(bounds):
            part = self.of_rows(grad, start, stop)
            rows[task] = rows[task] + part if again else part


@dataclass(frozen=True)
class Weight(Rule):
    """Of a product x W' or x W."""

    node: Any
    x: Tensor
    out_in: bool

    def write(self, rows: Tensor, grad: Tensor, bounds: Sequence[tuple[int, int]], *, again: bool) -> None:
        for task, (start, stop) in enumerate(bounds):  # in place: these are the large ones
            one, other = grad[start:stop], self.x[start:stop]
            one, other = (one, other) if self.out_in else (other, one)
            rows[task].addmm_(one.T, other, beta=int(again))


@dataclass(frozen=True)
class Bias(Cut):
    """What is added to a product or, channel by channel, to a convolution or a BatchNorm's result."""

    node: Any

    def of_rows(self, grad: Tensor, start: int, stop: int) -> Tensor:
        part = grad[start:stop]
        return part.sum([d for d in range(grad.ndim) if d != 1])


@dataclass(frozen=True)
class Scale(Cut):
    """Weight or bias of a normalisation over the last dimensions, and the weight of a BatchNorm in evaluation."""

    node: Any
    weight: tuple[Tensor, Tensor, Tensor] | None  # input, means, reciprocal deviations, in rows; None for the bias
    kept: tuple[int, ...]  # dimensions of the parameter

    def of_rows(self, grad: Tensor, start: int, stop: int) -> Tensor:
        part = grad[start:stop]
        if self.weight is not None:
            x, mean, scale = (tensor[start:stop] for tensor in self.weight)
            part = (x - mean).mul_(scale).mul_(part)
        others = [d for d in range(grad.ndim) if d not in self.kept]
        return part.sum(others)


@dataclass(frozen=True)
class Kernel(Cut):
    """A convolution's weight."""

    node: Any
    x: Tensor
    weight: Tensor
    settings: tuple[Any, ...]

    def of_rows(self, grad: Tensor, start: int, stop: int) -> Tensor:
        found: Tensor = torch.ops.aten.convolution_backward(
            grad[start:stop], self.x[start:stop], self.weight, None, *self.settings, [False, True, False]
        )[1]
        return found


def rule_of(graph: Graph, use: Use) -> Rule | None:
    """The rule for a use of a parameter.

    None where the operation is none that goes row by row, saved it packed, or gives numbers of another type.
    """
    node, slot = use
    name = kind(node)
    product = product_of(graph, use)
    if product is not None:
        return None if packed(product[0]) else Weight(product[0], factor_of(product[0]), product[1])
    if name == "AddmmBackward0" and slot == 0 and node._saved_beta == 1:
        added = tuple(node.next_functions[0][0].variable.shape)
        return Bias(node) if added == tuple(shape_of(node)[1:]) else None  # else no number for each column
    if name not in (CONVOLUTION, LAYER_NORM, BATCH_NORM) or packed(node):
        return None
    if name == BATCH_NORM and node._saved_training:
        return None
    if dtype_of(node) != node.next_functions[slot][0].variable.dtype:  # half precision: sums would be rounded to it
        return None
    if name != LAYER_NORM and slot == 2:
        return Bias(node)
    x = node._saved_input.detach()
    if name == CONVOLUTION:
        return Kernel(node, x, node._saved_weight.detach(), settings_of(node))
    if name == BATCH_NORM:
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scale = (node._saved_running_var + node._saved_eps).rsqrt()
        mean, scale = (each.view(shape).expand_as(x) for each in (node._saved_running_mean, scale))
        return Scale(node, (x, mean, scale), (1,))
    if x.ndim == len(node._saved_normalized_shape):  # over the rows too
        return None
    weight = (x, node._saved_result1, node._saved_result2) if slot == 1 else None
    return Scale(node, weight, tuple(range(x.ndim - len(node._saved_normalized_shape), x.ndim)))
