"""The report's tables: formatted columns for people, one long table for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtlbench.results import metrics as M
from mtlbench.results.analysis import MANY, Analysis, Row
from mtlbench.results.grid import Problem
from mtlbench.results.records import Run

MISSING = "–"
COST = ("step_seconds", "train_seconds", "wall_seconds", "examples_per_second", "peak_memory_mb", "epochs", "steps")


@dataclass(frozen=True)
class Column:
    """One column of a table for people: a cell for each row, and which of them is the best multi-task result."""

    title: str
    cells: tuple[str, ...]
    best: tuple[bool, ...] = ()


def arrow(higher_is_better: bool) -> str:
    return "↑" if higher_is_better else "↓"


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with a true minus sign; an en dash where there is none."""
    if math.isnan(value):
        return MISSING
    value = round(value, decimals) + 0.0  # no negative zero
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def plus_minus(mean: float, std: float, decimals: int) -> str:
    return MISSING if math.isnan(mean) else f"{number(mean, decimals)} ± {number(std, decimals)}"


def decimals(values: Sequence[float] | M.Floats) -> int:
    """How many decimals show about four digits of the largest value."""
    finite = np.abs(np.asarray(values, dtype=float))
    largest = finite[np.isfinite(finite)].max(initial=0.0)
    return 4 if largest < 1.0001 else int(np.clip(3 - math.floor(math.log10(largest)), 1, 3))


def summary_columns(analysis: Analysis, *, fewer_decimals: int = 0) -> list[Column]:
    """The main table: one row a setting, mean ± standard deviation over seeds."""
    rows = analysis.rows
    seeds = [len(row.seeds) for row in rows]
    planned = [row.setting.planned for row in rows]
    columns = [
        Column("method", tuple(row.label for row in rows)),
        Column("seeds", tuple(f"{n}" if n == of else f"{n} of {of}" for n, of in zip(seeds, planned, strict=True))),
    ]
    for title, higher, values in _primary(analysis):
        columns.append(spread_column(title, rows, values, higher=higher, fewer_decimals=fewer_decimals))
    scores = [row.scores for row in rows]
    columns.append(spread_column("score ↑", rows, scores, higher=True, fewer_decimals=fewer_decimals))
    if analysis.baselines:
        columns.append(spread_column("delta_m % ↓", rows, [row.delta_m for row in rows], higher=False, places=2))
        columns.append(spread_column("delta_p % ↑", rows, [row.delta_p for row in rows], higher=True, places=2))
    ranks = [row.rank for row in rows]
    columns.append(Column("mean rank ↓", tuple(number(rank, 2) for rank in ranks), _best(rows, ranks, higher=False)))
    if np.isfinite([row.cost for row in rows]).any():
        columns.append(Column("step cost", tuple(f"{number(row.cost, 2)} ×" for row in rows)))
    else:
        columns.append(Column("step ms", tuple(number(1000 * row.step_seconds, 1) for row in rows)))
    return columns


def spread_column(
    title: str,
    rows: Sequence[Row],
    values: Sequence[M.Floats],
    *,
    higher: bool,
    places: int | None = None,
    fewer_decimals: int = 0,
) -> Column:
    """Mean ± std of `values`, one array (S,) a row."""
    spreads = [M.mean_std(value) for value in values]
    means = [float(mean) for mean, _ in spreads]
    places = decimals(means) - fewer_decimals if places is None else places
    cells = tuple(plus_minus(float(mean), float(std), places) for mean, std in spreads)
    return Column(title, cells, _best(rows, means, higher=higher))


def metric_columns(analysis: Analysis) -> list[Column]:
    """Every test metric in its own row, the metrics over several tasks last; one column a setting."""
    extra = analysis.section.extra_metrics
    names = [metric.title for metric in analysis.metrics] + [f"{name} {arrow(up)}" for name, up in extra]
    tables = []
    for row in analysis.rows:
        over_tasks = [[run.test.get(name, math.nan) for name, _ in extra] for run in row.setting.runs]
        tables.append(M.mean_std(np.concatenate([row.values, np.array(over_tasks)], axis=1)))
    places = [decimals([mean[i] for mean, _ in tables]) for i in range(len(names))]
    return [Column("test metric", tuple(names))] + [
        Column(row.label, tuple(plus_minus(*pair) for pair in zip(mean.tolist(), std.tolist(), places, strict=True)))
        for row, (mean, std) in zip(analysis.rows, tables, strict=True)
    ]


def absolute_columns(analysis: Analysis) -> list[Column]:
    """Absolute gains for the metrics whose baseline is not above zero: those that the deltas leave out."""
    keys = [metric.key for metric in analysis.metrics]
    named = sorted({name for names in analysis.undefined.values() for name in names}, key=keys.index)
    rows = [row for row in analysis.rows if row.baseline in analysis.undefined]
    picked = [keys.index(name) for name in named]
    higher = [analysis.metrics[i].higher for i in picked]
    columns = [Column("metric, difference from independent", tuple(named))]
    for row in rows:
        assert row.baseline is not None
        single = analysis.row(row.baseline).values[:, picked].mean(axis=0)
        mean, std = M.mean_std(M.absolute_gain(row.values[:, picked], single, higher))
        cells = (plus_minus(m, s, decimals([m])) for m, s in zip(mean.tolist(), std.tolist(), strict=True))
        columns.append(Column(row.label, tuple(cells)))
    return columns


def cost_columns(analysis: Analysis) -> list[Column]:
    """What each setting costs, medians over seeds."""

    def median(row: Row, key: str, factor: float = 1.0) -> float:
        return factor * float(np.median([run.number(key) for run in row.setting.runs]))

    def column(title: str, key: str, places: int, factor: float = 1.0) -> Column:
        return Column(title, tuple(number(median(row, key, factor), places) for row in analysis.rows))

    return [
        Column("method", tuple(row.label for row in analysis.rows)),
        column("step, ms", "step_seconds", 2, 1000.0),
        Column("relative to equal", tuple(f"{number(row.cost, 2)} ×" for row in analysis.rows)),
        column("training, s", "train_seconds", 1),
        column("examples per s", "examples_per_second", 0),
        column("peak memory, MB", "peak_memory_mb", 0),
        column("epochs", "epochs", 0),
    ]


def long_table(
    runs: Sequence[Run],
    analyses: Sequence[Analysis],
    problems: Sequence[Problem],
    *,
    more: Sequence[Mapping[str, object]] = (),
) -> pd.DataFrame:
    """One line per run, split and metric, then `more`; a run or cell without numbers has one line with its reason."""
    labels = {run.path: s.label for analysis in analyses for s in analysis.section.settings for run in s.runs}
    lines: list[Mapping[str, object]] = []
    for run in runs:
        if run.path not in labels:
            continue
        about = {"benchmark": run.benchmark, "setting": labels[run.path], "method": run.method, "seed": run.seed}
        about |= {"status": run.status, "path": str(run.path)}
        higher = {f"{task.name}/{name}": up for task in run.tasks for name, up in task.metrics}
        higher |= dict(run.extra_metrics) | {"score": True}
        for split in ("val", "test"):
            for key, value in (run.summary.get(split) or {}).items():
                task, _, metric = key.rpartition("/")
                place = {"split": split, "task": task, "metric": metric, "higher_is_better": higher.get(key)}
                lines.append({**about, **place, "value": value})
        lines.extend({**about, "split": "cost", "metric": key, "value": run.summary.get(key)} for key in COST)
    for analysis in analyses:
        for row in analysis.rows:
            for name, up, deltas in (("delta_m", False, row.delta_m), ("delta_p", True, row.delta_p)):
                for run, delta in zip(row.setting.runs, deltas.tolist(), strict=True):
                    about = {"benchmark": run.benchmark, "setting": row.label, "method": run.method, "seed": run.seed}
                    place = {"split": "test", "metric": name, "higher_is_better": up, "value": delta}
                    lines.append({**about, **place, "status": run.status, "path": str(run.path)})
    lines.extend(more)
    for problem in problems:
        about = {"benchmark": problem.benchmark, "setting": problem.label, "seed": problem.seed}
        lines.append({**about, "status": problem.status, "path": problem.where, "reason": problem.reason})
    columns = ["benchmark", "setting", "method", "seed", "status", "split", "task", "metric"]
    columns += ["higher_is_better", "value", "path", "reason"]
    return pd.DataFrame(lines, columns=columns).astype({"seed": "Int64"})


def _primary(analysis: Analysis) -> list[tuple[str, bool, list[M.Floats]]]:
    """(title, higher is better, one array (S,) a row): each task's primary metric; with many tasks mean and worst."""
    rows, result = analysis.rows, []
    for (name, higher), columns in analysis.primaries().items():
        if len(analysis.section.tasks) <= MANY:
            for i in columns:
                result.append((analysis.metrics[i].title, higher, [row.values[:, i] for row in rows]))
            continue
        picked = [row.values[:, columns] for row in rows]
        worst = [value.min(axis=1) if higher else value.max(axis=1) for value in picked]
        result.append((f"{name} {arrow(higher)}, mean of {len(columns)}", higher, [v.mean(axis=1) for v in picked]))
        result.append((f"{name} {arrow(higher)}, worst task", higher, worst))
    return result


def _best(rows: Sequence[Row], means: Sequence[float], *, higher: bool) -> tuple[bool, ...]:
    compared = [m for row, m in zip(rows, means, strict=True) if not row.setting.independent and not math.isnan(m)]
    best = (max if higher else min)(compared, default=math.nan)
    return tuple(m == best and not row.setting.independent for row, m in zip(rows, means, strict=True))
