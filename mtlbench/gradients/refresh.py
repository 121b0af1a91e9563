"""Weights that are kept for some steps: an approximation, of a balancer that would give others at each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtlbench.gradients.record import BalanceRecord


class Refresh:
    """Says when a Weighting is asked anew: every `every` balanced steps, and where other tasks have labels.

    Args:
        every: steps, 1 for the exact method.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._weights: Tensor | None = None  # (T,) of the last step that the balancer decided
        self._active: list[int] = []  # its tasks
        self._age = 0  # steps since then

    def kept(self, active: list[int]) -> Tensor | None:
        """(1, A) the weights of a step in which the balancer is not asked; None where it is."""
        if self._weights is None or self._age + 1 >= self.every or active != self._active:
            return None
        return self._weights[active][None]

    def see(self, record: BalanceRecord, active: list[int]) -> None:
        """Keeps the weights of a step with some tasks."""
        if self.every > 1 and record.status == "kept":
            self._age += 1
        elif self.every > 1 and record.weights is not None:
            self._weights, self._age, self._active = record.weights[0].cpu(), 0, active

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights, "age": self._age, "active": self._active}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weights, self._age, self._active = state["weights"], state["age"], state["active"]
