"""`mtlbench list`: what the config groups offer."""

from __future__ import annotations

import re
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtlbench.confdir import KINDS, entries
from mtlbench.methods import Method, definitions, methods, summary
from mtlbench.source import KINDS as BALANCERS
from mtlbench.source import UNKNOWN

COLUMNS = {
    "sum": "of a step's task weights: T (tasks), 1, or nothing in particular (free)",
    "backwards": "of a step: 1; T, one for each task; + J, the whole Jacobian is looked at: T rows as long as the "
    "parameters; at last layer: through that alone; + forward: the losses again, after the update",
}
NOWHERE = "no class of one of the three kinds is found under its _target_. Is its folder on PYTHONPATH?"


def show(kinds: list[str], *, config_dir: Path | None = None) -> None:
    """Prints what each of `confdir.KINDS` has, also in a config folder of one's own.

    Raises:
        ValueError: a balancer's file is no YAML mapping.
        FileNotFoundError: no such config folder.
    """
    console = Console()
    for kind in kinds:
        console.print(f"\n[bold]{kind}[/] ({KINDS[kind]}=...)")
        if kind == "balancers":
            _show_methods(console, methods(config_dir))
        else:
            _show_entries(console, KINDS[kind], config_dir)


def _show_entries(console: Console, group: str, config_dir: Path | None) -> None:
    found = entries(group, config_dir)
    table = Table()
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("description", overflow="fold")
    if any(entry.paper for entry in found):
        table.add_column("paper", overflow="fold")
    for entry in found:
        table.add_row(*[entry.name, entry.description, entry.paper][: len(table.columns)])
    console.print(table)


def _show_methods(console: Console, found: list[Method]) -> None:
    """By kind, with the columns in which balancers differ; a terminal of 80 columns is enough."""
    claims = {claim: re.sub(r"_?([A-Z])[A-Z]*", r"\1", claim) for claim in definitions()}  # NON_CONFLICTING: NC
    for kind in [*BALANCERS, UNKNOWN]:
        rows = [method for method in found if method.kind == kind]
        if not rows:
            continue
        console.print(f"\n[bold]{kind}[/]: {NOWHERE if kind == UNKNOWN else summary(kind)}")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("name", no_wrap=True, style="bold")
        for column in COLUMNS:
            table.add_column(column, max_width=11)
        table.add_column("properties")
        table.add_column("description, paper", overflow="fold")
        for method in rows:
            marks = " ".join(claims.get(claim, claim) for claim in method.properties)
            text = Text(method.entry.description)
            if method.entry.paper:
                text.append(f"\n{short(method.entry.paper)}", style="dim")
            table.add_row(method.entry.name, method.weights_sum, method.backwards, marks, text)
        console.print(table)
    legend = Table.grid(padding=(0, 2))
    for term, meaning in [*COLUMNS.items(), *((claims[claim], claimed) for claim, claimed in definitions().items())]:
        legend.add_row(f"[bold]{term}[/]", meaning)
    console.print(legend)


def short(paper: str) -> str:
    """A citation that names three authors or more by the first."""
    return re.sub(r"^([^,\d]+)(, [^,\d]+){2,} (?=\d{4})", r"\1 et al. ", paper)
