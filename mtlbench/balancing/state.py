"""States of balancers whose size is known in the first step, and Aggregators' test for a zero direction."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class _Sized(nn.Module):
    """A state of one value at first. Its size is that of the first step, or of the checkpoint loaded.

    It is extra state, for an entry of the state dict must have one shape from the start.

    Args:
        values: empty, of size 0 along the axis that the first step sizes.
        value: of every entry at first.
    """

    # Axis of `values` with the T tasks; the other one of the first two is sized in the first step.
    _tasks: ClassVar[int]
    # What there are as many of as the size says.
    _sizes: ClassVar[str]

    def __init__(self, values: Tensor, *, value: float) -> None:
        super().__init__()
        self._first = value
        self.values: Tensor
        self.register_buffer("values", values, persistent=False)

    def _read(self, size: int) -> Tensor:
        """The state of that size.

        Raises:
            ValueError: another size than in the steps before.
        """
        shape = list(self.values.shape)
        known = shape[1 - self._tasks]
        if known == 0:
            shape[1 - self._tasks] = size
            self.values = self.values.new_full(shape, self._first)
        elif known != size:
            raise ValueError(
                f"Expected {self._sizes.format(known)}, as in the steps before, got {size}. "
                "Freeze or add parameters before the training starts, not in its course."
            )
        return self.values

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        values = state["values"]
        own, theirs = (given.shape[self._tasks] for given in (self.values, values))
        if own != theirs:
            raise ValueError(f"Expected a state with a row for each of {own} tasks, got {theirs} rows.")
        self.values = values.to(self.values.device, copy=True)


class RowState(_Sized):
    """A state (T, P) with a row for each task, all zero at first.

    P is that of the first Jacobian read.

    Args:
        num_tasks: T.
    """

    _tasks, _sizes = 0, "gradients of {} shared parameters"

    def __init__(self, num_tasks: int) -> None:
        super().__init__(torch.empty(num_tasks, 0), value=0.0)

    def read(self, jacobian: Tensor, active: Tensor | None) -> Tensor:
        """The active tasks' rows (A, P); they may share memory with the state.

        Raises:
            ValueError: the Jacobian has another number of columns than the state.
        """
        self.values = self._read(jacobian.shape[1]).to(jacobian)
        return self.values if active is None else self.values[active]

    def write(self, rows: Tensor, active: Tensor | None) -> None:
        """Replaces the active tasks' rows."""
        if active is None:
            self.values.copy_(rows)
        else:
            self.values[active] = rows


class GroupState(_Sized):
    """A float64 state (G, T) or (G, T, T) of a Weighting for each group of parameters, G that of the first Gramian.

    Args:
        shape: of one group's state: (T,) or (T, T).
        value: of every entry at first.
    """

    _tasks, _sizes = 1, "Gramians of {} groups"

    def __init__(self, *shape: int, value: float) -> None:
        super().__init__(torch.empty(0, *shape, dtype=torch.float64), value=value)

    def read(self, gramian: Tensor) -> Tensor:
        """The state, to be changed in place.

        Raises:
            ValueError: another number of groups than in the steps before.
        """
        return self._read(len(gramian))


def vanishes(direction: Tensor) -> bool:
    """Whether the direction (P,) is zero."""
    return not direction.any()
