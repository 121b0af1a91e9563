"""Rows of a convolution's weight, of several tasks by one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlbench.gradients.graph import shape_of
from mtlbench.gradients.parts import Rows


def settings_of(node: Any) -> tuple[Any, ...]:
    """What a convolution was called with, as its gradient takes it."""
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    return tuple(getattr(node, f"_saved_{name}") for name in names)


class Kernels(Rows):
    """Weight and bias of a convolution in two dimensions that is called once, by way of the gradients of its result.

    The gradients (N, C', H, W) of several tasks, side by side, are those of a convolution with as many times the
    channels, and its weight's gradient is the tasks' rows. A CPU fills the channels of both sides up to whole vectors.
    Of the result's that is little where there are many, and of the input's nothing where they come last in memory.

    Args:
        indices: of the weight, and of the bias where there is one.
        parameters: the same.
        node: the convolution.
        together: tasks in one call.
        group: see `Part`.
        tasks: A.
    """

    def __init__(
        self,
        indices: Sequence[int],
        parameters: Sequence[Tensor],
        node: Any,
        *,
        together: int,
        group: int,
        tasks: int,
    ) -> None:
        super().__init__(indices, parameters, group=group, tasks=tasks)
        self.asked = [GradientEdge(node, 0)]
        self._inputs = node._saved_input.detach().contiguous(memory_format=torch.channels_last)
        self._settings, self._together = settings_of(node), together
        size, channels, *places = shape_of(node)
        self._channels = channels
        self._grads = self._inputs.new_empty(size, *places, together * channels).movedim(-1, 1)  # (N, n C', H', W')

    def add(self, tasks: slice, grads: Sequence[Tensor | None]) -> None:
        numbers = range(len(self._rows))[tasks]
        for task, grad in zip(numbers, [None] * len(numbers) if grads[0] is None else grads[0], strict=True):
            place = task % self._together
            mine = self._grads.narrow(1, place * self._channels, self._channels)
            if grad is None:
                mine.zero_()
            else:
                mine.copy_(grad)
            if place + 1 == self._together or task + 1 == len(self._rows):
                self._fill(slice(task - place, task + 1))

    def _fill(self, tasks: slice) -> None:
        rows, weight = self._rows[tasks], self._like[0]
        grads = self._grads[:, : len(rows) * self._channels]
        _, found, _ = torch.ops.aten.convolution_backward(
            grads,
            self._inputs,
            weight.new_empty(grads.shape[1], *weight.shape[1:]),  # read for its shape
            None,
            *self._settings,
            [False, True, False],
        )
        rows[:, : self._sizes[0]] = found.reshape(len(rows), -1)
        if len(self.indices) == 2:
            rows[:, self._sizes[0] :] = grads.sum((0, 2, 3)).view(len(rows), -1)
