"""Sorts the runs of a report: into sections (one benchmark each), settings (one method each) and cells (one seed).

What cannot enter the numbers, and the cells that the grid lacks, become `Problem`s that the report lists.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtlbench.results.records import Run, Task

# Overrides that say where and how a run is made, not what it computes.
_NEUTRAL = ("seed", "benchmark", "method", "tasks", "logger", "hydra", "data.dir", "data.num_workers")
# Overrides that say which method a run uses; its reference runs need not share them.
_METHOD = ("balancer", "sharing")


@dataclass(frozen=True)
class Problem:
    """A run, or a cell of the grid without one, that is not in the numbers."""

    where: str
    benchmark: str
    label: str
    seed: int | None
    status: str  # running, killed, failed, interrupted, unreadable, missing, duplicate
    reason: str


@dataclass(frozen=True)
class Setting:
    """The runs that differ by seed alone."""

    label: str
    method: str
    balancer: str
    sharing: str
    overrides: Mapping[str, str]  # those that differ between the section's settings
    runs: tuple[Run, ...]  # finished, one a seed, by seed
    planned: int  # seeds that the section's settings have between them

    @property
    def independent(self) -> bool:
        return self.sharing == "independent"

    @property
    def scope(self) -> dict[str, str]:
        """What a comparison should hold fixed: the overrides that are not the method's own."""
        return {key: value for key, value in self.overrides.items() if not _belongs(key, _METHOD)}


@dataclass(frozen=True)
class Section:
    """One benchmark with one set of tasks and metrics."""

    benchmark: str
    tasks: tuple[Task, ...]
    extra_metrics: tuple[tuple[str, bool], ...]
    settings: tuple[Setting, ...]  # independent first, then equal, then by label
    problems: tuple[Problem, ...]


def sections(runs: Sequence[Run]) -> tuple[list[Section], list[Problem]]:
    """The sections, and the problems of runs that belong to none (their record does not tell benchmark and method)."""
    signatures: dict[str, list[tuple[Task, ...]]] = defaultdict(list)
    for run in runs:
        if run.finished and run.tasks not in signatures[run.benchmark]:
            signatures[run.benchmark].append(run.tasks)
    members: dict[tuple[str, tuple[Task, ...]], list[Run]] = defaultdict(list)
    stray = []
    for run in runs:
        if run.benchmark and run.method:
            known = signatures[run.benchmark]  # a run that failed early knows no tasks: it joins the first section
            tasks = run.tasks if run.tasks in known else (known or [()])[0]
            members[run.benchmark, tasks].append(run)
        else:
            stray.append(_problem(run, run.method))
    ordered = sorted(members.items(), key=lambda item: (item[0][0], -len(item[0][1])))
    return [_section(benchmark, tasks, group) for (benchmark, tasks), group in ordered], stray


def choose_reference(setting: Setting, candidates: Iterable[Setting]) -> Setting | None:
    """The one candidate to measure `setting` against, or None.

    Taken are candidates with finished runs and the same overrides apart from the method's own; where there is
    none, any. Of several, those with hard sharing, then those named after their balancer or sharing.
    """
    left = [candidate for candidate in candidates if candidate.runs]
    for wanted in (
        lambda other: other.scope == setting.scope,
        lambda other: other.sharing == "hard",
        lambda other: other.method in ("equal", "independent"),
    ):
        left = [other for other in left if wanted(other)] or left
    return left[0] if len(left) == 1 else None


def _section(benchmark: str, tasks: tuple[Task, ...], runs: Sequence[Run]) -> Section:
    relevant = [{k: v for k, v in run.overrides.items() if _relevant(run, k)} for run in runs]
    keys = sorted({key for overrides in relevant for key in overrides})
    differing = [key for key in keys if len({overrides.get(key) for overrides in relevant}) > 1]
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Run]] = defaultdict(list)
    for run, own in zip(runs, relevant, strict=True):
        groups[run.method, tuple((key, own[key]) for key in differing if key in own)].append(run)

    all_seeds = sorted({run.seed for run in runs if run.seed is not None})
    settings, problems = [], []
    for (method, overrides), group in groups.items():
        label = _label(method, dict(overrides), [dict(pairs) for name, pairs in groups if name == method])
        finished: dict[int, Run] = {}
        for run in sorted(group, key=lambda run: str(run.summary.get("finished") or "")):
            if not run.finished:
                problems.append(_problem(run, label))
                continue
            assert run.seed is not None  # records.py lets no finished run through without one
            if run.seed in finished:
                older = finished[run.seed]
                reason = f"replaced by a later run of the same setting and seed: {run.path}"
                problems.append(Problem(str(older.path), benchmark, label, older.seed, "duplicate", reason))
            finished[run.seed] = run
        planned = {run.seed for run in group if run.seed is not None}
        for seed in all_seeds:
            if seed not in planned:
                reason = "other settings have a run with this seed, this one has none"
                problems.append(Problem("", benchmark, label, seed, "missing", reason))
        first = next((run for run in group if run.sharing), group[0])
        by_seed = tuple(finished[seed] for seed in sorted(finished))
        settings.append(Setting(label, method, first.balancer, first.sharing, dict(overrides), by_seed, len(all_seeds)))
    settings.sort(key=lambda setting: (not setting.independent, setting.balancer != "equal", setting.label))
    extra = next((run.extra_metrics for run in runs if run.finished), ())
    return Section(benchmark, tasks, extra, tuple(settings), tuple(problems))


def _label(method: str, overrides: Mapping[str, str], siblings: Sequence[Mapping[str, str]]) -> str:
    """The method, with what else tells it apart: its own options where they vary, other overrides always."""
    shown = [
        f"{key}={value}"
        for key, value in overrides.items()
        if not _belongs(key, _METHOD) or len({other.get(key) for other in siblings}) > 1
    ]
    return ", ".join([method, *shown])


def _relevant(run: Run, key: str) -> bool:
    repeats_method = key == "balancer" and run.overrides[key] == run.method
    return not _belongs(key, _NEUTRAL) and not repeats_method


def _belongs(key: str, groups: Iterable[str]) -> bool:
    return any(key == group or key.startswith((f"{group}.", f"{group}/", f"{group}@")) for group in groups)


def _problem(run: Run, label: str) -> Problem:
    return Problem(str(run.path), run.benchmark, label, run.seed, run.status, run.reason)
