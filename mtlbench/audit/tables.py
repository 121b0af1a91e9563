"""An audit as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from torch import Tensor

from mtlbench.audit.audit import Audit
from mtlbench.audit.reach import Known

ROWS, COLUMNS = 12, 8  # lines for each role, tasks side by side
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def show(audit: Audit, console: Console) -> None:
    """Prints which losses reach what, cosines, the ways to the gradients, and what is wrong."""
    if audit.known:
        console.print(_reach(audit))
    if len(audit.tasks) > 1 and audit.cosines.isfinite().any():
        console.print(_cosines(audit))
    if audit.pairs:
        console.print(_pairs(audit))
    for route, reason in audit.refused.items():
        console.print(f"route {route}: does not fit these losses. {reason}", style="dim", highlight=False)
    for finding in audit.findings:
        console.print(f"[{STYLES[finding.level]}]{finding.level}[/]: {finding.text}", highlight=False)
    if not audit.errors:
        console.print("[green]Nothing wrong was found.[/]")


def _reach(audit: Audit) -> Table:
    table = Table(title="Gradient norms of each task's loss; - where it does not reach")
    for column in ("module", "role"):
        table.add_column(column, overflow="fold")
    table.add_column("parameters", justify="right")
    wide = len(audit.tasks) > COLUMNS
    for column in ("reached by", "least", "median", "greatest") if wide else audit.tasks:
        table.add_column(column, justify="right", overflow="fold")
    for role in ("shared", "private", "neither"):
        for module, indices in grouped(audit.known, role).items():
            reached = audit.reach.reached[:, indices].any(1)
            norms = audit.reach.norms[:, indices].norm(dim=1)
            if wide:
                found = norms[reached].sort().values
                edges = [found[0], found[(len(found) - 1) // 2], found[-1]] if len(found) else []
                cells = [f"{len(found)} of {len(audit.tasks)}", *(_norm(edge) for edge in edges)]
            else:
                cells = [_norm(norm) if hit else "-" for norm, hit in zip(norms, reached.tolist(), strict=True)]
            numbers = sum(audit.known[index].parameter.numel() for index in indices)
            table.add_row(module, role, f"{numbers:,}", *cells)
    return table


def _norm(norm: Tensor) -> str:
    return f"{float(norm):.2e}" if norm != 0 else "[bold red]0[/]"


def grouped(known: Sequence[Known], role: str) -> dict[str, list[int]]:
    """Module -> indices of its parameters, as deep in the tree as few enough modules allow."""
    chosen = [index for index, one in enumerate(known) if one.role == role]
    found: dict[str, list[int]] = {}
    for depth in range(1, 1 + max((known[index].module.count(".") + 1 for index in chosen), default=0)):
        deeper: dict[str, list[int]] = {}
        for index in chosen:
            deeper.setdefault(".".join(known[index].module.split(".")[:depth]), []).append(index)
        if found and len(deeper) > ROWS:
            break
        if len(deeper) > len(found):
            found = deeper
    return found


def _cosines(audit: Audit) -> Table:
    if len(audit.tasks) <= COLUMNS:
        table = Table(title="Cosines between the tasks' gradients of the shared parameters")
        table.add_column("")
        for task in audit.tasks:
            table.add_column(task, justify="right", overflow="fold")
        for task, row in zip(audit.tasks, audit.cosines.tolist(), strict=True):
            table.add_row(task, *(f"{cosine:+.3f}" for cosine in row))
        return table
    table = Table(title="Least cosines between tasks' gradients of the shared parameters")
    for column in ("tasks", "cosine"):
        table.add_column(column)
    pairs = [
        (float(audit.cosines[i, j]), f"{one}, {other}")
        for i, one in enumerate(audit.tasks)
        for j, other in enumerate(audit.tasks[:i])
        if audit.cosines[i, j].isfinite()
    ]
    for cosine, names in sorted(pairs)[:COLUMNS]:
        table.add_row(names, f"{cosine:+.3f}")
    return table


def _pairs(audit: Audit) -> Table:
    table = Table(title="Ways to the task gradients: how far two are from each other, over the gradients' lengths")
    for column in ("one", "other", "Gramian", "direction"):
        table.add_column(column)
    for pair in audit.pairs:
        table.add_row(pair.first, pair.second, f"{pair.gramian:.1e}", f"{pair.direction:.1e}")
    return table
