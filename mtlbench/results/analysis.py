"""From a section's runs to its numbers: what tables, figures and verdicts are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtlbench.results import metrics as M
from mtlbench.results.grid import Section, Setting, choose_reference
from mtlbench.results.stats import Comparison, compare

MANY = 6  # with more tasks than this, tables and figures show mean and worst instead of each task


class Metric(NamedTuple):
    """One column of a setting's values."""

    task: str
    name: str
    higher: bool
    primary: bool

    @property
    def key(self) -> str:
        return f"{self.task}/{self.name}"

    @property
    def title(self) -> str:
        return f"{self.task} {self.name} {'↑' if self.higher else '↓'}"


@dataclass(frozen=True)
class Row:
    """The numbers of one setting with at least one finished run. S seeds, M metrics."""

    setting: Setting
    seeds: tuple[int, ...]
    values: M.Floats  # (S, M) test results
    scores: M.Floats  # (S,) test score
    baseline: str | None  # label of the independent runs that the deltas are against
    equal: str | None  # label of the equal weighting that cost and score are against
    delta_m: M.Floats  # (S,) NaN without a baseline
    delta_p: M.Floats  # (S,)
    rank: float  # NaN for independent runs
    step_seconds: float  # median over seeds
    cost: float  # step_seconds relative to `equal`'s

    @property
    def label(self) -> str:
        return self.setting.label


@dataclass(frozen=True)
class Analysis:
    """The numbers of one section."""

    section: Section
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    best: str | None  # label of the multi-task setting with the highest mean test score
    against_equal: dict[str, Comparison]
    against_best: dict[str, Comparison]
    undefined: dict[str, tuple[str, ...]]  # independent setting -> metrics whose baseline is not above zero

    def row(self, label: str) -> Row:
        return next(row for row in self.rows if row.label == label)

    @property
    def compared(self) -> tuple[Row, ...]:
        """The multi-task rows: what is ranked."""
        return tuple(row for row in self.rows if not row.setting.independent)

    @property
    def baselines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.baseline for row in self.rows if row.baseline is not None))

    def primaries(self) -> dict[tuple[str, bool], list[int]]:
        """(metric name, higher is better) -> the columns where it is a task's primary metric."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for column, metric in enumerate(self.metrics):
            if metric.primary:
                groups.setdefault((metric.name, metric.higher), []).append(column)
        return groups


def analyse(section: Section) -> Analysis:
    """All numbers of a section."""
    metrics = tuple(
        Metric(task.name, name, higher, name == task.primary) for task in section.tasks for name, higher in task.metrics
    )
    higher = np.array([metric.higher for metric in metrics], dtype=bool)
    names = [task.name for task in section.tasks]
    task_of_metric = np.array([names.index(metric.task) for metric in metrics], dtype=int)
    usable = [setting for setting in section.settings if setting.runs]
    values = {setting.label: _values(setting, metrics) for setting in usable}

    compared = [setting for setting in usable if not setting.independent]
    ranks: dict[str, float] = {}
    if compared:
        table = np.stack([values[setting.label].mean(axis=0) for setting in compared])
        ranks = dict(zip([setting.label for setting in compared], M.mean_rank(table, higher).tolist(), strict=True))

    independents = [setting for setting in usable if setting.independent]
    equals = [setting for setting in compared if setting.balancer == "equal"]
    rows = []
    for setting in usable:
        baseline, reference = choose_reference(setting, independents), choose_reference(setting, equals)
        mine = values[setting.label]
        delta_m, delta_p = np.full((2, len(mine)), np.nan)
        if baseline is not None:
            single = values[baseline.label].mean(axis=0)
            delta_m = M.delta_m(mine, single, higher)
            delta_p = M.delta_p(mine, single, higher, task_of_metric)
        rows.append(
            Row(
                setting=setting,
                seeds=tuple(run.seed for run in setting.runs if run.seed is not None),
                values=mine,
                scores=np.array([run.test["score"] for run in setting.runs]),
                baseline=baseline.label if baseline else None,
                equal=reference.label if reference else None,
                delta_m=delta_m,
                delta_p=delta_p,
                rank=ranks.get(setting.label, math.nan),
                step_seconds=_step_seconds(setting),
                cost=_step_seconds(setting) / _step_seconds(reference) if reference else math.nan,
            )
        )

    scores = {row.label: dict(zip(row.seeds, row.scores.tolist(), strict=True)) for row in rows}
    means = {row.label: float(row.scores.mean()) for row in rows if not row.setting.independent}
    best = max(means, key=means.__getitem__, default=None)
    undefined = _undefined({row.baseline: values[row.baseline] for row in rows if row.baseline}, metrics)
    return Analysis(
        section=section,
        metrics=metrics,
        rows=tuple(rows),
        best=best,
        against_equal=compare(scores, {row.label: row.equal for row in rows}),
        against_best=compare(scores, dict.fromkeys(means, best)),
        undefined=undefined,
    )


def _undefined(baselines: Mapping[str, M.Floats], metrics: Sequence[Metric]) -> dict[str, tuple[str, ...]]:
    """The metrics that the deltas leave out, by baseline."""
    result = {}
    for label, values in baselines.items():
        left_out = ~(values.mean(axis=0) > 0)  # NaN is left out too
        if left_out.any():
            result[label] = tuple(metric.key for metric, out in zip(metrics, left_out, strict=True) if out)
    return result


def _values(setting: Setting, metrics: Sequence[Metric]) -> M.Floats:
    """(S, M) test results of a setting's runs."""
    return np.array([[run.test[metric.key] for metric in metrics] for run in setting.runs], dtype=float)


def _step_seconds(setting: Setting) -> float:
    # The median: another program on the machine during one run should not move it.
    seconds = float(np.median([run.number("step_seconds") for run in setting.runs]))
    return seconds if seconds > 0 else math.nan
