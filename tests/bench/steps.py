"""What a balanced step costs over one of equal weighting: ours, and TorchJD's autojac and autogram.

CPU seconds of one thread from `zero_grad` to the optimizer's step, so that neighbours on a shared machine do not count,
each step over one of equal weighting that ran just before it. A run of all settings writes the CSV and README's table.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from mtlbench.record import git_state
from tests.bench.problems import Problem, parse
from tests.bench.systems import SYSTEMS, Equal, System, naive

ROOT = Path(__file__).parents[2]
CSV, README = ROOT / "experiments" / "step_cost" / "steps.csv", ROOT / "README.md"
BEGIN, END = "<!-- from experiments/step_cost/steps.csv -->\n", "<!-- end -->\n"
REPETITIONS, SECONDS = 7, 10
# Where a model's numbers lie in memory moves the cost of a small step by some percent for as long as the model lives:
# quick settings are measured on several.
DRAWS, ROUNDS = 10, 10  # at most so many models of each system, with at least so many timed steps of each

BLOCK = (32 << 20) - (64 << 10)  # bytes: just below the greatest size that glibc learns from

# The most that a step may cost over one of equal weighting.
ASKED = {
    ("lenet2-b256", "upgrad"): 1.35,
    ("mlp10-b32", "upgrad"): 1.8,
    ("mlp40-b32", "upgrad"): 2.9,
    ("mlp10-b256", "upgrad"): 3.7,
    ("mlp40-b256", "upgrad"): 9.5,
    ("conv10-b64", "upgrad"): 6.5,
    ("conv40-b64", "upgrad"): 25.0,
    ("tf3-b8", "upgrad"): 2.2,
    ("tf3-b32", "upgrad"): 2.2,
    ("tfm4-b4", "upgrad"): 1.05,
    ("tfm4-b16", "upgrad"): 1.05,
    ("tfa4-b16", "upgrad"): 1.05,
    ("mlp10-b32", "gradnorm"): 1.15,
    ("mlp10-b256", "gradnorm"): 1.15,
    ("mlp10-b256", "uncertainty"): 1.02,
}
ASKED_MB = {"mlp40-b256": 125, "conv40-b64": 150}
ASKED_ERROR = 2e-5
METHODS = {"upgrad": "UPGrad", "gradnorm": "GradNorm", "uncertainty": "uncertainty"}


def measure(
    setting: str, method: str, *, repetitions: int, track: Callable[[range], Iterable[int]]
) -> tuple[dict[tuple[str, str], float], int]:
    """What each system with this method needs, by (measure, system).

    Args:
        setting: such as mlp10-b32.
        method: one of METHODS.
        repetitions: timed steps of each system; up to fifty times as many where they take less than SECONDS.
        track: shows how many are done.

    Returns:
        The figures, and how many steps were timed. `step`: median of a step's CPU time over that of equal weighting.
        `peak`: MB of live tensors during a step above the level at its start. `error`: greatest
        |dG_ij| / (|g_i| |g_j|) of the Gramian against float64 inner products of plain gradients.
    """
    pairs = warm(setting, method)
    found: dict[tuple[str, str], float] = {}
    if method == "upgrad":
        found |= {("error", name): error(system, setting) for name, (_, system) in pairs.items()}
    ratios: dict[str, list[float]] = {name: [] for name in pairs}
    round_trip = sum(seconds(equal) + seconds(system) for equal, system in pairs.values())
    number = max(repetitions, min(50 * repetitions, int(SECONDS / round_trip)))
    rounds = max(ROUNDS, -(-number // DRAWS))
    for repetition in track(range(number)):
        if repetition and repetition % rounds == 0:
            pairs = warm(setting, method)
        for name in pairs if repetition % 2 == 0 else reversed(pairs):
            equal, system = pairs[name]
            before = seconds(equal)
            ratios[name].append(seconds(system) / before)
    found |= {("step", name): statistics.median(values) for name, values in ratios.items()}
    return found | {("peak", name): peak(system) for name, (_, system) in pairs.items()}, number


def warm(setting: str, method: str) -> dict[str, tuple[System, System]]:
    """Each system with this method, and one of equal weighting for it, after two steps: the first may check itself.

    Not one of equal weighting for all, whose model would be in the cache more often than theirs.
    """
    kinds = {name: kind for name, kind in SYSTEMS.items() if method in kind.methods}
    pairs = {name: (Equal(Problem(setting), method), kind(Problem(setting), method)) for name, kind in kinds.items()}
    for pair in pairs.values():
        for system in pair:
            system()
            system()
    return pairs


def keep_memory() -> None:
    """Has glibc keep memory from step to step, as in any process that once freed a large block: trained ones have.

    Before, it hands some back at every step and takes it anew page by page, which adds up to 0.3 to the ratio of a
    small step, or takes as much from it.
    """
    torch.empty(BLOCK, dtype=torch.uint8)


def seconds(system: System) -> float:
    start = time.process_time()
    system()
    return time.process_time() - start


def error(system: System, setting: str) -> float:
    """Of the Gramian of the next step."""
    twin = Problem(setting)  # a forward of the system's own could be watched by its hooks
    twin.load_state_dict(system.problem.state_dict())
    rows = naive(twin)
    system()
    assert system.gramian is not None
    norms = rows.norm(dim=1)
    return float(((system.gramian.double() - rows @ rows.T).abs() / torch.outer(norms, norms)).max())


def peak(system: System) -> float:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print when it starts and stops
    system.optimizer.zero_grad()  # at rest there are weights and the optimizer's state; gradients belong to a step
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        system()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = top = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        live += size
        top = max(top, live)
    return top / 2**20


def revision() -> str:
    """Of this code; `+`: with changes that are not committed."""
    state = git_state()
    return "unknown" if state is None else state["revision"][:12] + "+" * state["dirty"]


def run(chosen: Sequence[tuple[str, str]], *, repetitions: int, console: Console) -> pd.DataFrame:
    """One row for each setting, method, measure and system."""
    origin = {name: importlib.metadata.version(name) for name in ("torch", "torchjd")} | {"mtlbench": revision()}
    rows: list[dict[str, Any]] = []
    with Progress(console=console, transient=True) as progress:
        for setting, method in chosen:
            bar = progress.add_task(f"{setting} {method}", total=None)
            track = functools.partial(progress.track, task_id=bar)
            found, number = measure(setting, method, repetitions=repetitions, track=track)
            for (what, system), value in found.items():
                key = {"setting": setting, "method": method, "measure": what, "system": system}
                rows.append(key | {"value": float(f"{value:.4g}"), "repetitions": number} | origin)
            progress.remove_task(bar)
    return pd.DataFrame(rows)


def table(found: pd.DataFrame) -> list[list[str]]:
    """Setting, each peer, asked, ours: one row for each step, then the peaks, then the settings' greatest error."""
    of = dict(list(found.groupby("measure")))
    cells = []
    for (setting, method), group in of["step"].groupby(["setting", "method"], sort=False):
        cells.append(_row(_words(setting, method), group, ASKED.get((setting, method)), _ratio))
    for (setting, method), group in of["peak"].groupby(["setting", "method"], sort=False):
        if setting in ASKED_MB and method == "upgrad":
            words = f"{_words(setting, method)}: peak MB"
            cells.append(_row(words, group, ASKED_MB[setting], "{:.0f}".format))
    if "error" in of:
        worst = of["error"].groupby("system", as_index=False)["value"].max()
        cells.append(_row("worst error of a Gramian", worst, ASKED_ERROR, "{:.0e}".format))
    return cells


def _words(setting: str, method: str) -> str:
    kind, tasks, batch = parse(setting)
    words = f"{kind.title}, K {tasks}, B {batch}"
    return words if method == "upgrad" else f"{METHODS[method]}: {words}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _row(words: str, found: pd.DataFrame, asked: float | None, show: Callable[[float], str]) -> list[str]:
    values = dict(zip(found["system"], found["value"], strict=True))
    peers = [show(values[name]) if name in values else "-" for name in SYSTEMS if name != "ours"]
    return [words, *peers, "-" if asked is None else f"<= {show(asked)}", show(values["ours"])]


PEERS = [f"TorchJD {name}" for name in SYSTEMS if name != "ours"]
HEADER = ["step over an equal one", *PEERS, "asked", "ours"]


def markdown(found: pd.DataFrame) -> str:
    """The table as it stands in README."""
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *table(found)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write(found: pd.DataFrame) -> None:
    """The CSV, and README's table between its marks."""
    CSV.write_text(found.to_csv(index=False))
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{markdown(found)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main(settings: Sequence[str] | None = None, *, repetitions: int = REPETITIONS) -> None:
    """Prints the table.

    Args:
        settings: such as mlp10-b32; those without an asked figure are run with UPGrad. None: all that have one, which
            are written too.
        repetitions: timed steps of each system, at least.
    """
    torch.set_num_threads(1)
    keep_memory()
    chosen = [key for key in ASKED if settings is None or key[0] in settings]
    chosen += [(name, "upgrad") for name in settings or () if (name, "upgrad") not in ASKED]
    console = Console()
    found = run(chosen, repetitions=repetitions, console=console)
    shown = Table(title=f"One thread, CPU time, medians of {repetitions} interleaved steps or more")
    for name in HEADER:
        shown.add_column(name, justify="left" if name == HEADER[0] else "right")
    for cells in table(found):
        shown.add_row(*cells)
    console.print(shown)
    if settings is None:
        write(found)
        console.print(f"Written: {CSV.relative_to(ROOT)} and the table in {README.relative_to(ROOT)}.")
