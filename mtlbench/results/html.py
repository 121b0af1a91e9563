"""The report as one page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from mtlbench.results.analysis import Analysis
from mtlbench.results.curves import all_curves
from mtlbench.results.examples import compare_examples
from mtlbench.results.figures import Figure, figures
from mtlbench.results.grid import Problem
from mtlbench.results.notes import notes
from mtlbench.results.records import Run
from mtlbench.results.setup import facts, run_columns
from mtlbench.results.stats import Comparison
from mtlbench.results.tables import (
    Column,
    absolute_columns,
    cost_columns,
    decimals,
    metric_columns,
    number,
    summary_columns,
)
from mtlbench.results.toy import Toy, front_columns, loss_columns, step_columns
from mtlbench.results.toy import cost_columns as cost
from mtlbench.results.toy import sentences as sentences_of_toy
from mtlbench.results.toy_figures import figures as toy_figures
from mtlbench.results.verdict import HOW_BEST, HOW_TESTED, interval_text, sentences


@dataclass(frozen=True)
class View:
    """A section, ready to be laid out."""

    anchor: str
    title: str
    analysis: Analysis
    verdict: list[str]
    notes: list[str]
    facts: list[tuple[str, str]]
    summary: list[Column]
    comparisons: list[tuple[str, list[Column]]]
    examples: list[Column]
    figures: list[Figure]
    metrics: list[Column]
    absolute: list[Column]
    cost: list[Column]


@dataclass(frozen=True)
class ToyView:
    """A section of runs in the plane, ready to be laid out."""

    anchor: str
    title: str
    verdict: list[str]
    tables: Sequence[tuple[str, list[Column]]]
    figures: list[Figure]
    cost: list[Column]


def render(
    analyses: Sequence[Analysis], runs: Sequence[Run], problems: Sequence[Problem], *, toys: Sequence[Toy], command: str
) -> str:
    """The page.

    Args:
        analyses: one a section.
        runs: all that were found, usable or not.
        problems: what is not in the numbers.
        toys: the sections of runs in the plane.
        command: how to make the report again.
    """
    environment = Environment(
        loader=PackageLoader("mtlbench.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    titles = [analysis.section.benchmark for analysis in analyses]
    return environment.get_template("report.html.j2").render(
        views=[_view(i, analysis, titles) for i, analysis in enumerate(analyses)],
        toys=[_toy_view(toy) for toy in toys],
        runs=run_columns(runs),
        counted=sum(len(row.seeds) for analysis in analyses for row in analysis.rows) + sum(len(t.runs) for t in toys),
        problems=problems,
        statuses=_counts(problems),
        command=command,
        how_tested=HOW_TESTED,
        how_best=HOW_BEST,
    )


def _toy_view(toy: Toy) -> ToyView:
    tables = (
        ("Where each path ends: x1 at the Pareto front, or the point where it is not there", front_columns(toy)),
        ("First step at the Pareto front", step_columns(toy)),
        ("Losses at the end, f1 / f2", loss_columns(toy)),
    )
    return ToyView(f"toy-{toy.benchmark}", toy.benchmark, sentences_of_toy(toy), tables, toy_figures(toy), cost(toy))


def _view(i: int, analysis: Analysis, titles: Sequence[str]) -> View:
    curves, unread = all_curves(analysis)
    title = analysis.section.benchmark
    if titles.count(title) > 1:  # the same benchmark with other tasks: say which
        title += f" ({', '.join(task.name for task in analysis.section.tasks) or 'tasks unknown'})"
    return View(
        anchor=f"section-{i}",
        title=title,
        analysis=analysis,
        verdict=sentences(analysis),
        notes=[*notes(analysis), *unread],
        facts=facts(analysis),
        summary=summary_columns(analysis),
        comparisons=_comparisons(analysis),
        examples=_example_columns(analysis),
        figures=figures(analysis, curves) if analysis.rows else [],
        metrics=metric_columns(analysis),
        absolute=absolute_columns(analysis) if analysis.undefined else [],
        cost=cost_columns(analysis),
    )


def _comparisons(analysis: Analysis) -> list[tuple[str, list[Column]]]:
    """Each setting against equal, and against the best: a title and a table each."""
    places = decimals([row.scores.mean() for row in analysis.rows])
    titles = ("Test score minus that of equal weighting", f"Test score minus that of the best, {analysis.best}")
    return [
        (
            title,
            [
                Column("method", tuple(comparisons)),
                Column("difference", _cells(comparisons, lambda other: number(other.difference, places, signed=True))),
                Column("95 % interval", _cells(comparisons, lambda other: interval_text(other, places))),
                Column("shared seeds", _cells(comparisons, lambda other: str(other.pairs))),
                Column("p (Holm)", _cells(comparisons, lambda other: number(other.p_holm, 3))),
                Column("verdict", _cells(comparisons, lambda other: other.verdict)),
            ],
        )
        for title, comparisons in zip(titles, (analysis.against_equal, analysis.against_best), strict=True)
        if comparisons
    ]


def _example_columns(analysis: Analysis) -> list[Column]:
    examples = compare_examples(analysis)
    tasks = dict.fromkeys(task for by_task in examples.values() for task in by_task)
    columns = [Column("method", tuple(examples))]
    for task in tasks:
        found = {label: by_task.get(task, Comparison("equal", 0)) for label, by_task in examples.items()}
        differences = _cells(found, lambda other: number(other.difference, 4, signed=True))
        columns.append(Column(f"{task} accuracy minus equal", differences))
        columns.append(Column("95 % interval", _cells(found, lambda other: interval_text(other, 4))))
    return columns if tasks else []


def _cells(comparisons: Mapping[str, Comparison], text: Callable[[Comparison], str]) -> tuple[str, ...]:
    return tuple(text(comparison) for comparison in comparisons.values())


def _counts(problems: Sequence[Problem]) -> str:
    counts = Counter(problem.status for problem in problems)
    return ", ".join(f"{count} {status}" for status, count in counts.most_common())
