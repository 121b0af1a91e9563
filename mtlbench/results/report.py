"""`report`: from run directories to `report.html`, `report.csv` and a table in the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mtlbench.results.analysis import Analysis, analyse
from mtlbench.results.grid import Problem, sections
from mtlbench.results.html import render
from mtlbench.results.notes import notes
from mtlbench.results.records import Run, find_runs
from mtlbench.results.tables import Column, long_table, summary_columns
from mtlbench.results.toy import Toy, front_columns, lines, toys
from mtlbench.results.toy import sentences as toy_sentences
from mtlbench.results.toy_figures import to_png
from mtlbench.results.verdict import sentences


@dataclass(frozen=True)
class Report:
    """What a report found and where it was written."""

    html: Path
    csv: Path
    runs: tuple[Run, ...]
    analyses: tuple[Analysis, ...]
    toys: tuple[Toy, ...]
    problems: tuple[Problem, ...]

    def summary_table(self, analysis: Analysis) -> pd.DataFrame:
        """The main table of one section, as text cells; the index is the method."""
        columns = summary_columns(analysis)
        return pd.DataFrame({column.title: column.cells for column in columns}).set_index("method")


def report(paths: Sequence[Path], *, out: Path) -> Report:
    """Reads the runs at `paths` and writes `report.html` and `report.csv` into the folder `out`.

    Of runs in the plane also a figure, named after the benchmark: toy2d.png.

    Args:
        paths: run directories, or directories to search for them.
        out: made where it does not exist.

    Raises:
        ValueError: no path holds a run.
    """
    runs = find_runs(paths)
    if not any(run.benchmark for run in runs):
        found = "\n".join(f"  {run.path}: {run.reason or run.status}" for run in runs) or "  no path was given"
        raise ValueError(
            f"No run to report. Expected run directories (they hold summary.json) or folders with some below:\n{found}"
        )
    found_sections, stray = sections([run for run in runs if not run.toy])
    analyses = [analyse(section) for section in found_sections]
    found_toys, of_toys = toys([run for run in runs if run.toy])
    problems = [*(problem for section in found_sections for problem in section.problems), *stray, *of_toys]

    out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["mtlbench", "report", *map(str, paths)])
    html, csv = out / "report.html", out / "report.csv"
    html.write_text(render(analyses, runs, problems, toys=found_toys, command=command), encoding="utf-8")
    long_table(runs, analyses, problems, more=lines(found_toys)).to_csv(csv, index=False)
    for toy in found_toys:
        (out / f"{toy.benchmark}.png").write_bytes(to_png(toy))
    return Report(html, csv, tuple(runs), tuple(analyses), tuple(found_toys), tuple(problems))


def print_report(report: Report, console: Console) -> None:
    """The tables and verdicts, then what is not in them, last where the files are."""
    for analysis in report.analyses:
        _print_table(analysis, console)
        verdict, *others = sentences(analysis)
        console.print(Text(verdict, style="bold"))
        for line in (*others, *notes(analysis)):
            console.print(Text(f"- {line}"))
        console.print()
    for toy in report.toys:
        _print(front_columns(toy), console, title=f"{toy.benchmark}: x1 at the end; no: not at the Pareto front")
        for line in toy_sentences(toy):
            console.print(Text(line))
        console.print()
    if report.problems:
        console.print(Text(f"Not in the numbers: {len(report.problems)}", style="bold yellow"))
        for problem in report.problems:
            seed = "" if problem.seed is None else f" seed {problem.seed}"
            name = f"{problem.benchmark} {problem.label}{seed}".strip()
            console.print(
                Text(f"  {problem.status}: {' '.join(filter(None, (name, problem.where)))}: {problem.reason}")
            )
        console.print()
    console.print(Text(f"{report.csv}"), soft_wrap=True)
    console.print(Text(f"{report.html}", style="bold"), soft_wrap=True)


def _print_table(analysis: Analysis, console: Console) -> None:
    title = f"{analysis.section.benchmark}: test results, mean ± standard deviation over seeds"
    _print(summary_columns(analysis, fewer_decimals=1), console, title=title)


def _print(columns: Sequence[Column], console: Console, *, title: str) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(Text(column.title), justify="left" if column.title == "method" else "right")
    for i in range(len(columns[0].cells)):
        cells = [Text(column.cells[i], style="bold" if column.best and column.best[i] else "") for column in columns]
        table.add_row(*cells)
    # A file or a pipe has no width of its own: give the table the room that it wants.
    wanted = Measurement.get(console, console.options.update(width=10_000), table).maximum
    width = console.width
    console.width = width if console.is_terminal else max(width, wanted)
    console.print(table)
    console.width = width
