"""The report's part on runs of `mtlbench.toy`: which method reaches the Pareto front from which start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mtlbench.results.grid import Problem, Section, sections
from mtlbench.results.records import Run
from mtlbench.results.tables import MISSING, Column, number

TRAJECTORIES = "trajectories.parquet"


@dataclass(frozen=True)
class Toy:
    """One benchmark's runs."""

    benchmark: str
    runs: Mapping[str, Run]  # label -> finished run
    starts: tuple[str, ...]

    def of(self, label: str, start: str) -> Mapping[str, Any] | None:
        """What the run's record tells of a start; None where it had none of that name."""
        found: Mapping[str, Any] | None = self.runs[label].summary["starts"].get(start)
        return found


def toys(runs: Sequence[Run]) -> tuple[list[Toy], list[Problem]]:
    """The benchmarks with finished runs of this kind, and the runs and cells that are not in the tables."""
    found, stray = sections([replace(run, overrides=dict(_options(run))) for run in runs])
    made = [toy for toy in map(_toy, found) if toy.runs]
    return made, [*(problem for section in found for problem in section.problems), *stray]


def read_trajectories(run: Run) -> pd.DataFrame:
    """Columns start, step, x1, x2, f1, f2."""
    return pd.read_parquet(run.path / TRAJECTORIES)


def sentences(toy: Toy) -> list[str]:
    """Which methods reach the front from every start, and which not."""
    methods: dict[tuple[str, ...], list[str]] = {}
    for label in toy.runs:
        missed = tuple(start for start in toy.starts if _reached(toy.of(label, start)) is False)
        methods.setdefault(missed, []).append(label)
    everywhere = methods.pop((), ["no method"])
    told = [
        f"Not from {', '.join(missed)}: {', '.join(labels)}."
        for missed, labels in sorted(methods.items(), key=lambda item: len(item[0]))
    ]
    return [f"The Pareto front is reached from every start by {', '.join(everywhere)}.", *told]


def front_columns(toy: Toy) -> list[Column]:
    """x1 at the end where that is at the front, the whole point elsewhere."""

    def cell(found: Mapping[str, Any]) -> str:
        x1, x2 = (number(value, 2) for value in found["to"])
        return x1 if found["reached"] else f"no: ({x1}, {x2})"

    ends = {label: [_reached(toy.of(label, start)) for start in toy.starts] for label in toy.runs}
    counts = tuple(f"{sum(map(bool, r))} of {len(r) - r.count(None)}" for r in ends.values())
    return [Column("method", tuple(toy.runs)), Column("reached", counts), *_columns(toy, cell)]


def step_columns(toy: Toy) -> list[Column]:
    """The first step at the front, of the starts that end there."""
    return [
        Column("method", tuple(toy.runs)),
        *_columns(toy, lambda found: f"{found['first_step']:,}" if found["reached"] else MISSING),
    ]


def loss_columns(toy: Toy) -> list[Column]:
    """Both losses at the end."""
    cells = _columns(toy, lambda found: " / ".join(number(loss, 3) for loss in found["losses"]))
    return [Column("method", tuple(toy.runs)), *cells]


def cost_columns(toy: Toy) -> list[Column]:
    """What each run took, and how often a balancer found no balanced direction."""

    def column(title: str, read: Callable[[Run], str]) -> Column:
        return Column(title, tuple(read(run) for run in toy.runs.values()))

    def degenerate(run: Run) -> str:
        return f"{sum(found['degenerate_steps'] for found in run.summary['starts'].values()):,}"

    return [
        Column("method", tuple(toy.runs)),
        column("steps", lambda run: number(run.number("steps"), 0)),
        column("step of all starts, ms", lambda run: number(1000 * run.number("step_seconds"), 3)),
        column("time, s", lambda run: number(run.number("train_seconds"), 1)),
        column("processor time, s", lambda run: number(run.number("cpu_seconds"), 1)),
        column("degenerate steps", degenerate),
    ]


def lines(found: Sequence[Toy]) -> list[dict[str, object]]:
    """Of the report's CSV, one for each run, start and number: the start stands in `task`."""
    return [
        {
            "benchmark": toy.benchmark, "setting": label, "method": run.method, "seed": run.seed, "status": run.status,
            "path": str(run.path), "split": "end", "task": start, "metric": metric, "value": value,
        }
        for toy in found
        for label, run in toy.runs.items()
        for start, told in run.summary["starts"].items()
        for metric, value in _numbers(told)
    ]  # fmt: skip


def _toy(section: Section) -> Toy:
    several = any(len(setting.runs) > 1 for setting in section.settings)
    runs = {
        f"{setting.label}, seed {run.seed}" if several else setting.label: run
        for setting in section.settings
        for run in setting.runs
    }
    starts = dict.fromkeys(start for run in runs.values() for start in run.summary["starts"])
    return Toy(section.benchmark, runs, tuple(starts))


def _options(run: Run) -> Iterator[tuple[str, str]]:
    """The overrides, the problem's own by a name of which the grid doesn't think that it tells nothing."""
    for key, value in run.overrides.items():
        yield key.removeprefix("benchmark."), value


def _columns(toy: Toy, cell: Callable[[Mapping[str, Any]], str]) -> Iterator[Column]:
    for start in toy.starts:
        found = [toy.of(label, start) for label in toy.runs]
        yield Column(start, tuple(MISSING if one is None else cell(one) for one in found))


def _reached(found: Mapping[str, Any] | None) -> bool | None:
    return None if found is None else bool(found["reached"])


def _numbers(told: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield from zip(("x1", "x2"), told["to"], strict=True)
    yield from zip(("f1", "f2"), told["losses"], strict=True)
    yield "reached", float(told["reached"])
    yield "first_step", math.nan if told["first_step"] is None else told["first_step"]
    yield "degenerate_steps", told["degenerate_steps"]
