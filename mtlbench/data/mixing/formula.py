"""Datasets by formulas of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from simpleeval import InvalidExpression, SimpleEval

from mtlbench.data.mixing.sampled import Sampled

FUNCTIONS = {"abs": abs, "min": min, "max": max, "exp": math.exp, "log": math.log, "sqrt": math.sqrt, "cos": math.cos}


class Formula(Sampled):
    """p_i in proportion to a formula of its own for each dataset.

    Formulas are arithmetic with abs, min, max, exp, log, sqrt, cos and these names: `step` of the run and `epoch`,
    both counted from 0; `steps_per_epoch`; `size`, the dataset's rows; `pi`. "min(1, step / 1000)" lets a dataset in
    over the first 1000 steps. They are evaluated by the simpleeval library, which runs nothing else.

    Args:
        formulas: dataset -> formula or number, for every dataset.
        common: see `Scheduled`.

    Raises:
        ValueError: a dataset has no formula, or a formula can't be evaluated or gives no number.
    """

    def __init__(self, *, formulas: Mapping[str, str | float] | None, **common: Any) -> None:
        super().__init__(**common)
        if formulas is None or set(formulas) != set(self.sizes):
            raise ValueError(
                f"Mixing: expected a formula for each of the datasets {list(self.sizes)}, got "
                f'{None if formulas is None else list(formulas)}. Give mixing.formulas={{dataset: "formula", ...}}.'
            )
        self._evaluator = SimpleEval(functions=FUNCTIONS)
        self._formulas = {name: str(formulas[name]) for name in self.sizes}
        self._parsed: dict[str, Any] = {}
        for name, formula in self._formulas.items():
            try:
                self._parsed[name] = SimpleEval.parse(formula)
            except (InvalidExpression, SyntaxError) as error:
                raise ValueError(f"Mixing: the formula of '{name}' can't be read: {formula!r}: {error}") from error
        self.probabilities(0)  # what is wrong in it is found before the training

    def weights(self, epoch: int) -> np.ndarray:
        return np.array([self._row(epoch, step) for step in range(self.steps_per_epoch)])

    def _row(self, epoch: int, step: int) -> list[float]:
        names = {"epoch": epoch, "step": epoch * self.steps_per_epoch + step, "pi": math.pi}
        names["steps_per_epoch"] = self.steps_per_epoch
        row = []
        for dataset, size in self.sizes.items():
            formula = self._formulas[dataset]
            self._evaluator.names = {**names, "size": size}
            try:
                row.append(float(self._evaluator.eval(formula, previously_parsed=self._parsed[dataset])))
            except (InvalidExpression, ArithmeticError, ValueError, TypeError) as error:
                raise ValueError(
                    f"Mixing: the formula of '{dataset}', {formula!r}, gives no number at step {step} of epoch "
                    f"{epoch}: {error}"
                ) from error
        return row
