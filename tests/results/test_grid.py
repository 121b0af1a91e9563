"""Sorting runs into sections, settings and cells; choosing references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtlbench.results.analysis import analyse
from mtlbench.results.grid import Section, sections
from mtlbench.results.notes import notes
from mtlbench.results.records import find_runs

MakeRun = Callable[..., Path]
TEST = {"left/accuracy": 0.9, "right/accuracy": 0.8}


def read(tmp_path: Path) -> list[Section]:
    found, stray = sections(find_runs([tmp_path / "runs"]))
    assert not stray
    return found


def labels(section: Section) -> dict[str, list[int | None]]:
    return {setting.label: [run.seed for run in setting.runs] for setting in section.settings}


def test_runs_that_differ_by_seed_are_one_setting(make_run: MakeRun, tmp_path: Path) -> None:
    for method in ("pcgrad", "equal", "independent"):
        for seed in (1, 0):
            make_run(method, seed, TEST, overrides=("data.batch_size=64", f"logger.name=run{seed}"))
    (section,) = read(tmp_path)
    assert list(labels(section).items()) == [("independent", [0, 1]), ("equal", [0, 1]), ("pcgrad", [0, 1])]
    assert section.problems == ()


def test_labels_name_what_differs(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("equal", 0, TEST, overrides=("optimizer.lr=0.1",))
    make_run("equal", 0, TEST, overrides=("optimizer.lr=0.2",))
    # A method's own option tells apart only where the method has several; another override confounds and is shown.
    make_run("gradnorm", 0, TEST, overrides=("balancer.alpha=0.5", "optimizer.lr=0.1"))
    make_run("cagrad", 0, TEST, overrides=("balancer.c=0.2", "optimizer.lr=0.1"))
    make_run("cagrad", 0, TEST, overrides=("balancer.c=0.4", "optimizer.lr=0.1"))
    assert list(labels(read(tmp_path)[0])) == [
        "equal, optimizer.lr=0.1",
        "equal, optimizer.lr=0.2",
        "cagrad, balancer.c=0.2, optimizer.lr=0.1",
        "cagrad, balancer.c=0.4, optimizer.lr=0.1",
        "gradnorm, optimizer.lr=0.1",
    ]


def test_missing_cells_and_unfinished_runs_are_listed(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        make_run("equal", seed, TEST)
    make_run("pcgrad", 0, TEST)
    make_run("pcgrad", 1, {}, status="failed", error="RuntimeError: boom")
    (section,) = read(tmp_path)
    assert [(p.label, p.seed, p.status) for p in section.problems] == [
        ("pcgrad", 1, "failed"),
        ("pcgrad", 2, "missing"),
    ]
    assert section.problems[0].reason == "RuntimeError: boom"
    assert section.settings[1].planned == 3


def test_of_two_runs_of_a_cell_the_later_counts(make_run: MakeRun, tmp_path: Path) -> None:
    old = make_run(
        "equal", 0, TEST, overrides=("data.num_workers=1",), changes={"finished": "2026-01-01T00:00:00+00:00"}
    )
    new = make_run(
        "equal", 0, TEST, overrides=("data.num_workers=2",), changes={"finished": "2026-01-02T00:00:00+00:00"}
    )
    (section,) = read(tmp_path)
    assert [run.path for run in section.settings[0].runs] == [new]
    assert [(p.where, p.status) for p in section.problems] == [(str(old), "duplicate")]
    assert str(new) in section.problems[0].reason


def test_benchmarks_and_task_subsets_are_sections(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("equal", 0, TEST)
    make_run("equal", 0, {"left/accuracy": 0.9}, overrides=("tasks=[left]",))
    make_run("equal", 0, {"intent/accuracy": 0.9}, benchmark="snips")
    found = read(tmp_path)
    assert [(s.benchmark, [task.name for task in s.tasks]) for s in found] == [
        ("multidigits", ["left", "right"]),
        ("multidigits", ["left"]),
        ("snips", ["intent"]),
    ]


def test_runs_of_an_unknown_benchmark_are_stray(make_run: MakeRun) -> None:
    path = make_run("equal", 0, {}, status="failed", error="ValueError: early", changes={"benchmark": None})
    found, stray = sections(find_runs([path]))
    assert found == []
    assert [(p.where, p.status, p.reason) for p in stray] == [(str(path), "failed", "ValueError: early")]


def test_references_share_the_other_overrides(make_run: MakeRun, tmp_path: Path) -> None:
    for rate in ("0.1", "0.2"):
        for method in ("independent", "equal", "pcgrad"):
            make_run(method, 0, TEST, overrides=(f"optimizer.lr={rate}",))
    analysis = analyse(read(tmp_path)[0])
    row = analysis.row("pcgrad, optimizer.lr=0.2")
    assert (row.baseline, row.equal) == ("independent, optimizer.lr=0.2", "equal, optimizer.lr=0.2")
    assert not any("measured against" in note for note in notes(analysis))


def test_a_reference_that_differs_is_taken_if_it_is_the_only_one_and_named(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("equal", 0, TEST)
    make_run("pcgrad", 0, TEST, overrides=("optimizer.lr=0.2",))
    analysis = analyse(read(tmp_path)[0])
    assert analysis.row("pcgrad, optimizer.lr=0.2").equal == "equal"
    expected = "pcgrad, optimizer.lr=0.2 is measured against equal, which differs in more than the method."
    assert expected in notes(analysis)


def test_of_several_unlike_references_none_is_taken(make_run: MakeRun, tmp_path: Path) -> None:
    for rate in ("0.1", "0.2"):
        make_run("independent", 0, TEST, overrides=(f"optimizer.lr={rate}",))
    make_run("pcgrad", 0, TEST, overrides=("optimizer.lr=0.3",))
    analysis = analyse(read(tmp_path)[0])
    assert analysis.row("pcgrad, optimizer.lr=0.3").baseline is None
    assert any("none is taken" in note and "pcgrad, optimizer.lr=0.3" in note for note in notes(analysis))


@pytest.mark.parametrize("sharing", ["cross_stitch", "mmoe"])
def test_equal_weighting_with_hard_sharing_is_the_reference(make_run: MakeRun, tmp_path: Path, sharing: str) -> None:
    make_run("equal", 0, TEST)
    make_run("equal", 0, TEST, overrides=(f"sharing={sharing}",), changes={"sharing": sharing})
    analysis = analyse(read(tmp_path)[0])
    assert analysis.row(f"equal, sharing={sharing}").equal == "equal"
