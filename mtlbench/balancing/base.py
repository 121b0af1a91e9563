"""What a balancer is: a rule that turns task losses into one update direction for the shared parameters.

There are three kinds, told apart by the smallest statistic that decides them: a `Scalarizer` looks
at the losses, a `Weighting` at the Gramian of the task gradients, an `Aggregator` at the whole
Jacobian. The engine in `mtlbench.gradients` computes that statistic, and no more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

Status = Literal["solved", "degenerate"]


class Property(Enum):
    """A claim about a balancer's result that the contract suite checks on every class that makes it."""

    NON_CONFLICTING = "no task gradient has a negative product with the direction: J d >= 0"
    LOSS_SCALE_INVARIANT = "multiplying one task's loss by a positive constant does not turn the direction"
    STATIONARY_ZERO = "a Pareto-stationary Jacobian gives the zero direction"
    PERMUTATION_EQUIVARIANT = "reordering the tasks reorders the weights alike"


class TaskSpec(NamedTuple):
    """What a balancer may know of a task."""

    name: str
    kind: str  # classification, regression, multilabel, tagging, ...


class Balancer(nn.Module, ABC):
    """Base of the three kinds. Not to be subclassed directly.

    State that must survive a restart lives in buffers (tensors) and in the seeded CPU generator,
    which is saved as extra state. A `nn.Parameter` means that the main optimizer trains it.

    Args:
        num_tasks: T, at least `min_tasks`.
        seed: seeds `generator`, the only source of random numbers a balancer may use, so that
            every rank draws the same.
        tasks: the tasks in the order of the rows; needed by balancers that look at names or kinds.

    Raises:
        ValueError: `num_tasks` is below `min_tasks`, or `tasks` has another length.
    """

    min_tasks: ClassVar[int] = 1
    # False where a step with some of the tasks is enough.
    needs_all_tasks: bool = True
    # Independent batches that one step consumes: 1, or 3 for a Weighting that wants a cross-Gramian.
    num_batches: Literal[1, 3] = 1
    # Whether `after_step` wants the losses of the step's data after the update.
    needs_after_step: bool = False
    # Where the engine measures gradients, unless the user says otherwise.
    measure: Literal["parameters", "last_layer", "features"] = "parameters"
    # What the weights of one step sum to: T, 1, or nothing in particular.
    weights_sum: Literal["T", "1", "free"] = "free"
    properties: frozenset[Property] = frozenset()
    # How the last call went. `degenerate`: the input has no balanced direction (a zero row, opposite
    # gradients) and the class's declared result was returned.
    status: Status = "solved"

    def __init__(self, *, num_tasks: int, seed: int, tasks: Sequence[TaskSpec] | None = None) -> None:
        super().__init__()
        name = type(self).__name__
        if num_tasks < self.min_tasks:
            raise ValueError(f"{name} balances at least {self.min_tasks} tasks, got num_tasks={num_tasks}.")
        if tasks is not None and len(tasks) != num_tasks:
            raise ValueError(f"{name} got num_tasks={num_tasks} but {len(tasks)} task specs.")
        self.num_tasks = num_tasks
        self.generator = torch.Generator().manual_seed(seed)

    def transform(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        """Differentiable map of the losses (A,) whose gradients are balanced; the identity unless overridden.

        Each result must be a function of its own loss alone. `active` as in `forward`.
        """
        return losses

    def after_step(self, before: Tensor, after: Tensor) -> None:
        """Sees the global losses (T,) of the step's data before and after the update."""

    def end_epoch(self, mean_losses: Tensor) -> None:
        """Sees the mean training losses (T,) of the epoch that ends."""

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Balancer:
        """Keeps float64 state what it is where a model goes to another precision, and moves it with the model."""
        state = {id(buffer) for buffer in self.buffers() if buffer.dtype == torch.float64}

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            kept = id(tensor) in state and found.dtype != tensor.dtype
            return tensor.to(found.device) if kept else found

        return super()._apply(moved, recurse)

    def get_extra_state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class Scalarizer(Balancer):
    """Decided by the losses alone."""

    # Whether the weights are independent of this step's losses.
    linear: bool

    @abstractmethod
    def forward(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        """The objective, differentiable in the losses and in the balancer's own parameters.

        Args:
            losses: (A,) the losses of the active tasks; (T,) where `active` is None.
            active: (A,) int64 indices of the tasks with labels in this step; None for all.

        Returns:
            () the scalar to minimise. The engine reads the task weights off its derivative.
        """


class Weighting(Balancer):
    """Decided by the Gramian of the task gradients."""

    # How shared parameters are grouped: one group for all, or one for each module that owns some.
    groups: Literal["all", "layer"] = "all"

    def known_weights(self, *, active: Tensor | None = None) -> Tensor | None:
        """(A,) the weights that the coming step will have, where earlier steps alone decide them; else None.

        Where it has them the engine weighs and measures in one backward, and `forward` is given norms: the Gramian's
        diagonal, NaN beside it. `active` as in `forward`.
        """
        return None

    @abstractmethod
    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        """The weights of the task gradients.

        Args:
            gramian: (G, A, A) inner products of the active tasks' gradients, float64. With `num_batches` 3 the
                cross-Gramian: [:, i, j] is task i's gradient on the first batch times task j's on the second, an
                unbiased estimate of the full-batch Gramian that is neither symmetric nor positive semidefinite. The
                weights then act on the rows of the third batch, independent of both.
            losses: (A,) the losses of the active tasks, float64; means over all batches.
            active: (A,) int64 indices of the tasks with labels in this step; None for all.

        Returns:
            (G, A) weights in `gramian`'s dtype; the direction is their combination of the rows.

        Raises:
            RuntimeError: a well-posed problem was not solved to its tolerance.
        """


class Aggregator(Balancer):
    """Decided by the whole Jacobian."""

    @abstractmethod
    def forward(self, jacobian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        """The direction itself.

        Args:
            jacobian: (A, P) the active tasks' gradients.
            losses: (A,) the losses of the active tasks.
            active: (A,) int64 indices of the tasks with labels in this step; None for all.

        Returns:
            (P,) the direction.
        """


def index_of(active: Tensor | None, state: Tensor) -> slice | Tensor:
    """Where a per-task state (T, ...) has the active tasks."""
    return slice(None) if active is None else active.to(state.device)


def select(state: Tensor, active: Tensor | None) -> Tensor:
    """Rows of a per-task state (T, ...) that belong to the active tasks."""
    return state if active is None else state[active]
