"""Checks of the balancers' options and losses."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import TaskSpec


def one_of(value: Any, choices: tuple[Any, ...], *, option: str) -> None:
    """Raises ValueError unless `value` is one of the option's choices."""
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(map(str, choices))}; got {value!r}.")


def number(
    value: Any,
    *,
    option: str,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    whole: bool = False,
) -> None:
    """Raises ValueError unless `value` is a finite (whole) number within the bounds."""
    bounds = {" above ": above, " of at least ": least, " below ": below, " of at most ": most}
    bound = " and".join(f"{words}{number}" for words, number in bounds.items() if number is not None)
    if (
        not isinstance(value, int if whole else int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or (above is not None and value <= above)
        or (least is not None and value < least)
        or (below is not None and value >= below)
        or (most is not None and value > most)
    ):
        raise ValueError(f"{option} must be a {'whole' if whole else 'finite'} number{bound}; got {value!r}.")


def by_task(
    values: float | Mapping[str, float] | None,
    tasks: Sequence[TaskSpec] | None,
    *,
    num_tasks: int,
    option: str,
    default: float,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Tensor:
    """(T,) float64 numbers in the order of the tasks: one for all, or by name with `default` where none is given.

    Raises:
        ValueError: a number out of its bounds, an unknown name, or names without task specs.
    """
    if not isinstance(values, Mapping):
        number(default if values is None else values, option=option, above=above, least=least, most=most)
        return torch.full((num_tasks,), default if values is None else float(values), dtype=torch.float64)
    if values and tasks is None:
        raise ValueError(f"{option} has numbers by task name and so needs tasks, the task specs in order.")
    names = [task.name for task in tasks or ()]
    for name, value in values.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{option} names the unknown task {name!r}; the tasks are {', '.join(names)}.{hint}")
        number(value, option=f"{option}.{name}", above=above, least=least, most=most)
    given = [float(values.get(name, default)) for name in names] if names else [default] * num_tasks
    return torch.tensor(given, dtype=torch.float64)


def no_loss_below(
    floor: Tensor | float,
    losses: Tensor,
    *,
    method: str,
    tasks: Sequence[TaskSpec] | None,
    active: Tensor | None = None,
    mend: str = "Use a loss bounded below by 0, or another balancer.",
) -> None:
    """Raises ValueError, naming the task, if one of the active tasks' losses (A,) is below its floor (A,)."""
    below = losses.detach() < floor
    if not below.any():
        return
    position = int(below.nonzero()[0])
    task = position if active is None else int(active[position])
    name = tasks[task].name if tasks is not None else str(task)
    least = torch.as_tensor(floor).expand(below.shape)[position].item()
    raise ValueError(
        f"{method} needs losses of at least {least:.6g}; task {name!r} has {losses[position].item():.6g}. {mend}"
    )
