"""Reading and writing run records, and finding runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtlbench.results.records import find_runs, read_run, read_summary, write_summary

MakeRun = Callable[..., Path]
TEST = {"left/accuracy": 0.9, "right/accuracy": 0.8}


def test_summary_makes_the_round_trip_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_summary(tmp_path, {"format": 1, "status": "running"})
    write_summary(tmp_path, {"format": 1, "status": "finished", "nested": {"a": [1.5, (2, math.nan)], "b": math.inf}})
    assert read_summary(tmp_path) == {"format": 1, "status": "finished", "nested": {"a": [1.5, [2, None]], "b": None}}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_summary(tmp_path, {"format": 1, "status": "running"})
    with pytest.raises(TypeError):
        write_summary(tmp_path, {"format": 1, "status": object()})
    assert read_summary(tmp_path)["status"] == "running"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[1]", "expected an object"), ('{"format": 99}', "format 99.*reads format 1")],
)
def test_a_broken_summary_is_refused_and_its_run_kept(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_summary(tmp_path)
    assert read_run(tmp_path).status == "unreadable"
    assert "summary.json" in read_run(tmp_path).reason


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in (("file", "it is a file"), ("typo", "there is no such directory")):
        (run,) = find_runs([tmp_path / name])
        assert run.status == "missing" and reason in run.reason


def test_a_finished_run(make_run: MakeRun) -> None:
    run = read_run(make_run("pcgrad", 3, TEST, overrides=("+optimizer.lr=0.1",), extra={"digits/both": 0.7}))
    assert (run.status, run.reason, run.benchmark, run.method, run.seed) == ("finished", "", "multidigits", "pcgrad", 3)
    assert run.overrides == {"balancer": "pcgrad", "seed": "3", "optimizer.lr": "0.1"}
    assert [(task.name, task.primary, task.metrics) for task in run.tasks] == [
        ("left", "accuracy", (("accuracy", True),)),
        ("right", "accuracy", (("accuracy", True),)),
    ]
    assert run.test == {**TEST, "digits/both": 0.7, "score": pytest.approx(0.85)}
    assert run.number("step_seconds") == 0.01
    assert math.isnan(run.number("no_such_number"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"test": {"left/accuracy": 0.9, "score": 0.9}}, "right/accuracy"),
        ({"test": TEST}, "score"),
        ({"test": {**TEST, "score": 0.9}, "seed": None}, "seed"),
        ({"tasks": {"left": {"dataset": "digits"}}}, "type"),
        ({"status": "done"}, "'done', expected one of finished"),
        ({"seed": "first"}, "first"),
    ],
)
def test_a_record_that_lacks_something_is_unreadable_and_says_what(
    make_run: MakeRun, changes: dict[str, Any], reason: str
) -> None:
    run = read_run(make_run("equal", 0, TEST, changes=changes))
    assert run.status == "unreadable"
    assert reason in run.reason


def test_a_result_that_is_no_number_is_read_as_nan(make_run: MakeRun) -> None:
    assert math.isnan(read_run(make_run("equal", 0, {"left/f1": math.nan}, score=0.1)).test["left/f1"])


def test_why_a_run_did_not_finish(make_run: MakeRun) -> None:
    failed = read_run(make_run("gradnorm", 0, {}, status="failed", error="Traceback\n  ...\nValueError: no labels\n"))
    assert (failed.status, failed.reason) == ("failed", "ValueError: no labels")
    running = read_run(make_run("gradnorm", 1, TEST, status="running"))
    assert running.status == "running"
    assert "still running, or killed" in running.reason


def test_folders_are_searched_and_every_run_found_once(make_run: MakeRun, tmp_path: Path) -> None:
    first, second = make_run("equal", 0, TEST), make_run("equal", 1, TEST)
    below = first / "wandb" / "files"
    below.mkdir(parents=True)
    (below / "config.yaml").write_text("")
    (below / "summary.json").write_text("{}")
    killed_early = tmp_path / "runs" / "early"
    killed_early.mkdir()
    (killed_early / "config.yaml").write_text("")
    runs = find_runs([tmp_path / "runs", second, tmp_path / "typo"])
    assert [(run.path, run.status) for run in runs] == [
        (killed_early, "unreadable"),
        (first, "finished"),
        (second, "finished"),
        (tmp_path / "typo", "missing"),
    ]
    assert "no summary.json" in runs[0].reason


def test_an_empty_folder_is_kept_with_its_reason(tmp_path: Path) -> None:
    assert [(run.path, run.status) for run in find_runs([tmp_path])] == [(tmp_path, "unreadable")]


def test_records_need_the_standard_library_alone() -> None:
    code = "import sys, json, mtlbench.results.records; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )
    assert not {"torch", "lightning", "pandas", "numpy", "scipy", "matplotlib", "jinja2", "rich"} & set(modules)


def test_reporting_needs_no_torch() -> None:
    code = "import sys, json, mtlbench.results.report; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )
    assert not {"torch", "lightning", "hydra", "matplotlib.pyplot"} & set(modules)
