"""Weights that are kept for some steps: an approximation, of a balancer that would give others at each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtlbench.balancing.base import Balancer, Weighting
from mtlbench.gradients.record import BalanceRecord


class Refresh:
    """Says when a Weighting is asked anew: every `every` balanced steps, and where other tasks have labels.

    Args:
        balancer: whose weights are kept.
        every: steps, 1 for the exact method.

    Raises:
        ValueError: `every` is below 1, or above it for a balancer whose weights can't be kept.
    """

    def __init__(self, balancer: Balancer, every: int) -> None:
        self.every = every
        self._weights: Tensor | None = None  # (T,) of the last step that the balancer decided
        self._active: list[int] = []  # its tasks
        self._age = 0  # steps since then
        if every < 1:
            raise ValueError(f"refresh is a number of steps, at least 1; got {every}.")
        one = isinstance(balancer, Weighting) and balancer.num_batches == 1 and balancer.groups == "all"
        plain = type(balancer).transform is Balancer.transform and not balancer.needs_after_step
        if every > 1 and not (one and plain):
            raise ValueError(
                f"engine.refresh={every} keeps the weights of a Weighting for some steps: one of a single batch, with "
                f"one weight a task, which sees no more of a step than its Gramian; {type(balancer).__name__} is none. "
                "Say engine.refresh=1."
            )

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
