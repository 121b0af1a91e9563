"""Run directories on disk: writing and reading `summary.json`, and finding the runs of a report.

Training imports `write_summary` and `read_summary` from here, so this module needs the standard library alone.
A run that cannot be used is never dropped: it is returned with a status and the reason.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlbench.lock import abandoned

FORMAT = 1
SUMMARY, CONFIG, CURVES, PREDICTIONS = "summary.json", "config.yaml", "metrics.csv", "predictions.parquet"
STATUSES = ("finished", "running", "failed", "interrupted")  # what training writes
# Reading adds: `killed` (it says running, and its process is gone), `unreadable` (there is a run, its record is broken
# or absent), `missing` (no such directory).


@dataclass(frozen=True)
class Task:
    """One task of a run: its metrics, each with its direction, and the one that counts."""

    name: str
    dataset: str
    type: str
    primary: str
    metrics: tuple[tuple[str, bool], ...]  # (name, higher is better)


@dataclass(frozen=True)
class Run:
    """One training with one seed."""

    path: Path
    status: str
    reason: str = ""  # why its numbers cannot be used; empty where status is "finished"
    benchmark: str = ""
    method: str = ""
    sharing: str = ""
    balancer: str = ""
    seed: int | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    tasks: tuple[Task, ...] = ()
    extra_metrics: tuple[tuple[str, bool], ...] = ()
    test: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def toy(self) -> bool:
        """Whether it followed points of the plane, which leaves no test results."""
        return self.summary.get("runner") == "mtlbench.toy.run.run"

    def number(self, key: str) -> float:
        """A number of the summary's top level, such as `step_seconds`; NaN where it was not recorded."""
        return _number(self.summary.get(key))


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Replaces `summary.json` in one step: a reader sees the old record or the new one, never half of one.

    Non-finite numbers are written as null, since JSON has no others.
    """
    text = json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n"
    temporary = run_dir / f".{SUMMARY}.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, run_dir / SUMMARY)


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        FileNotFoundError: the directory has no `summary.json`.
        ValueError: it is not JSON, not an object, or of a format that this version does not read.
    """
    path = run_dir / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(summary, dict):
        raise ValueError(f"{path} holds a {type(summary).__name__}, expected an object.")
    if summary.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {summary.get('format')!r}; this version of mtlbench reads format {FORMAT}."
        )
    return summary


def config_path(run_dir: Path) -> Path:
    """Where a run's configuration is.

    Raises:
        ValueError: the directory holds none.
    """
    path = run_dir / CONFIG
    if not path.exists():
        raise ValueError(f"{run_dir} holds no {CONFIG}: expected the directory of a run, such as runs/2026-11-22/...")
    return path


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at `paths`, each once, sorted by path.

    A path that is not itself a run is searched: every directory below it with a summary, or with only the
    config that a run writes first, is a run.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        for directory in _run_directories(path):
            found.setdefault(directory.resolve(), read_run(directory))
    return sorted(found.values(), key=lambda run: str(run.path))


def read_run(path: Path) -> Run:
    """The run at `path`; where its record is absent or broken, one with that status and the reason."""
    if not path.is_dir():
        return Run(path, "missing", "it is a file, no directory" if path.exists() else "there is no such directory")
    try:
        summary = read_summary(path)
    except FileNotFoundError:
        return Run(
            path, "unreadable", f"there is no {SUMMARY}: the run ended before it began to train, or this is none"
        )
    except (ValueError, OSError) as error:
        return Run(path, "unreadable", str(error))
    try:
        return _parse(path, summary)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Run(path, "unreadable", f"{SUMMARY} lacks or garbles something: {type(error).__name__}: {error}")


def _run_directories(path: Path) -> Iterator[Path]:
    if not path.is_dir() or (path / SUMMARY).exists():
        yield path
        return
    empty = True
    for folder, subfolders, files in os.walk(path):
        if SUMMARY in files or CONFIG in files:
            yield Path(folder)
            subfolders.clear()  # loggers put files of the same names below a run
            empty = False
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
    if empty:
        yield path


def _parse(path: Path, summary: dict[str, Any]) -> Run:
    status = summary["status"]
    if status not in STATUSES:
        raise ValueError(f"status {status!r}, expected one of {', '.join(STATUSES)}")
    if status == "running" and abandoned(path):
        status = "killed"
    tasks = tuple(
        Task(name, task["dataset"], task["type"], task["primary"], _directions(task["metrics"]))
        for name, task in (summary.get("tasks") or {}).items()
    )
    run = Run(
        path=path,
        status=status,
        reason=_reason(status, summary),
        benchmark=summary.get("benchmark") or "",
        method=summary.get("method") or "",
        sharing=summary.get("sharing") or "",
        balancer=summary.get("balancer") or "",
        seed=None if summary.get("seed") is None else int(summary["seed"]),
        overrides=dict(_override(text) for text in summary.get("overrides") or ()),
        tasks=tasks,
        extra_metrics=_directions(summary.get("extra_metrics") or {}),
        test={name: _number(value) for name, value in (summary.get("test") or {}).items()},
        summary=summary,
    )
    if run.finished:
        wanted = [f"{task.name}/{metric}" for task in tasks for metric, _ in task.metrics] + ["score"]
        absent = [name for name in wanted + [name for name, _ in run.extra_metrics] if name not in run.test]
        if (absent or not tasks) and not run.toy:
            raise ValueError(f"finished without test results for {', '.join(absent) or 'any task'}")
        if not run.benchmark or not run.method or run.seed is None:
            raise ValueError("finished, but benchmark, method or seed is not said")
    return run


def _reason(status: str, summary: Mapping[str, Any]) -> str:
    if status == "finished":
        return ""
    error = str(summary.get("error") or "").strip()
    if error:
        return error.splitlines()[-1]
    started = f"started {summary.get('started') or 'at an unknown time'}"
    if status == "killed":
        return f"{started}, and its process is gone: the same command goes on from the last checkpoint"
    if status == "running":
        return f"{started}, no end recorded: still running, or killed"
    return "no error was recorded"


def _override(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    return key.lstrip("+~"), value if equals else "(removed)"


def _directions(metrics: Mapping[str, Any]) -> tuple[tuple[str, bool], ...]:
    return tuple((name, bool(metric["higher_is_better"])) for name, metric in metrics.items())


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
