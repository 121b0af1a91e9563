"""Parameters that stop training after an engine was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def of_training(
    inputs: Sequence[Tensor], take: Callable[[list[Tensor]], Sequence[Tensor | None]]
) -> list[Tensor | None]:
    """What `take` gives for the inputs that require grad now, autograd refusing others; None for the rest."""
    asked = [one for one in inputs if one.requires_grad]
    if len(asked) == len(inputs):  # as nearly always: each look at a parameter costs as much as one at a cold cache
        return list(take(asked)) if asked else []
    found = iter(take(asked) if asked else ())
    return [next(found) if one.requires_grad else None for one in inputs]
