"""Checks of the balancers' options."""

from __future__ import annotations

import math
from typing import Any


def one_of(value: Any, choices: tuple[Any, ...], *, option: str) -> None:
    """Raises ValueError unless `value` is one of the option's choices."""
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(map(str, choices))}; got {value!r}.")


def number(
    value: Any, *, option: str, above: float | None = None, least: float | None = None, whole: bool = False
) -> None:
    """Raises ValueError unless `value` is a finite (whole) number within the bounds."""
    bound = f" above {above}" if above is not None else f" of at least {least}" if least is not None else ""
    if (
        not isinstance(value, int if whole else int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or (above is not None and value <= above)
        or (least is not None and value < least)
    ):
        raise ValueError(f"{option} must be a {'whole' if whole else 'finite'} number{bound}; got {value!r}.")
