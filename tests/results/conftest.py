"""Synthetic run directories, written as training writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mtlbench.results.records import write_summary

Scores = Mapping[str, float]
MakeRun = Callable[..., Path]


def write_run(
    root: Path,
    method: str,
    seed: int,
    test: Scores,
    *,
    benchmark: str = "multidigits",
    status: str = "finished",
    error: str | None = None,
    metric: str = "accuracy",
    higher: bool = True,
    score: float | None = None,
    extra: Scores | None = None,
    overrides: Sequence[str] = (),
    step_seconds: float = 0.01,
    epochs: int = 4,
    weights: Mapping[str, float] | None = None,
    hits: Mapping[str, Sequence[bool]] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """One run directory below `root`: `test` maps "task/metric" to its result, the first of a task is its primary."""
    folder = root / "-".join([benchmark, method, *overrides, str(seed)]).replace("/", "_")
    folder.mkdir(parents=True)
    tasks: dict[str, Any] = {}
    for key in test:
        task, name = key.split("/")
        tasks.setdefault(task, {"dataset": "digits", "type": "classification", "primary": name, "metrics": {}})
        tasks[task]["metrics"][name] = {"higher_is_better": higher}
    if score is None:
        score = float(np.mean(list(test.values()))) if test else 0.0
    done = status == "finished"
    independent = method == "independent"
    rule = {"monitor": "val/score", "mode": "max", "epoch": epochs - 1, "value": score}
    summary = {
        "format": 1,
        "status": status,
        "error": error,
        "benchmark": benchmark,
        "method": method,
        "sharing": "independent" if independent else "hard",
        "balancer": "equal" if independent else method,
        "encoder": "lenet",
        "seed": seed,
        "overrides": [f"balancer={method}", f"seed={seed}", *overrides],
        "tasks": tasks,
        "extra_metrics": {name: {"higher_is_better": True} for name in extra or {}},
        "test": {**test, **(extra or {}), "score": score} if done else {},
        "val": {**test, "score": score} if done else {},
        "selected": {"tasks": dict.fromkeys(tasks, rule)} if independent else rule,
        "epochs": epochs,
        "steps": 50 * epochs,
        "examples_seen": 6400 * epochs,
        "examples_per_second": 64 / step_seconds,
        "step_seconds": step_seconds,
        "train_seconds": 50 * epochs * step_seconds,
        "wall_seconds": 60 * epochs * step_seconds,
        "peak_memory_mb": 420.1,
        "config_hash": "0",
        "versions": {"mtlbench": "0.1.0", "torch": "2.13.0"},
        "git": {"revision": "0123456789abcdef", "dirty": False},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00" if done else None,
    }
    write_summary(folder, summary | dict(changes or {}))
    (folder / "config.yaml").write_text("data: {batch_size: 128}\noptimizer: {_target_: torch.optim.Adam, lr: 0.001}\n")
    if epochs and test:
        _write_curves(folder, test, score, epochs=epochs, weights=weights or {})
    if hits:
        _write_predictions(folder, hits)
    return folder


def _write_curves(folder: Path, test: Scores, score: float, *, epochs: int, weights: Mapping[str, float]) -> None:
    x = np.arange(epochs)
    grown = 1 - 0.5 * np.exp(-3 * (x + 1) / epochs)
    columns: dict[str, Any] = {"epoch": x, "step": 50 * (x + 1), "seconds": 0.5 * (x + 1)}
    columns |= {f"val/{key}": value * grown for key, value in test.items()}
    columns |= {"val/score": score * grown}
    columns |= {f"weight/{task}": 1 + (weight - 1) * x / max(epochs - 1, 1) for task, weight in weights.items()}
    pd.DataFrame(columns).to_csv(folder / "metrics.csv", index=False)


def _write_predictions(folder: Path, hits: Mapping[str, Sequence[bool]]) -> None:
    tables = [
        pd.DataFrame(
            {
                "dataset": "digits",
                "row": range(len(hit)),
                "task": task,
                "target": "3",
                "prediction": np.where(np.asarray(hit), "3", "8"),
            }
        )
        for task, hit in hits.items()
    ]
    pd.concat(tables).to_parquet(folder / "predictions.parquet")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run below `tmp_path / "runs"` and returns its directory; arguments as for `write_run`."""

    def make(method: str, seed: int, test: Scores, **kwargs: Any) -> Path:
        return write_run(tmp_path / "runs", method, seed, test, **kwargs)

    return make
