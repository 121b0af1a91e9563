"""Fixed weights, given by task name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlbench.balancing.base import Property, Scalarizer, TaskSpec, select
from mtlbench.balancing.checks import number


def constant_weights(tasks: Sequence[str], weights: Mapping[str, float]) -> Tensor:
    """(T,) float64 weights in the order of `tasks`, 1 where none is given.

    Raises:
        ValueError: a weight of an unknown task, or one that is negative or not finite.
    """
    for name, weight in weights.items():
        if name not in tasks:
            near = difflib.get_close_matches(name, tasks, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"weights names the unknown task {name!r}; the tasks are {', '.join(tasks)}.{hint}")
        number(weight, option=f"weights.{name}", least=0)
    return torch.tensor([weights.get(name, 1.0) for name in tasks], dtype=torch.float64)


class Constant(Scalarizer):
    """Fixed weights.

        objective = sum_i c_i l_i

    Args:
        weights: weight by task name, 1 where none is given.

    Raises:
        ValueError: `weights` names an unknown task, or has a negative or non-finite value.
    """

    needs_all_tasks = False
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})
    linear = True

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        if weights and tasks is None:
            raise ValueError("Constant has weights by task name and so needs tasks, the task specs in order.")
        names = [task.name for task in tasks] if tasks is not None else [str(index) for index in range(num_tasks)]
        self.weights: Tensor
        self.register_buffer("weights", constant_weights(names, weights or {}))

    def forward(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return (select(self.weights, active).to(losses) * losses).sum()
