"""Runs and sweeps from the command line: where they go, and what becomes of those that fail."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from mtlbench.launch.app import folder_name
from mtlbench.results.records import write_summary
from tests.cli.processes import Cli, in_process


def test_a_run(cli: Cli, trained: list[dict[str, Any]], tmp_path: Path) -> None:
    status, _, err = cli("train", "balancer=pcgrad", "seed=7", "tasks=[right]")
    assert status == 0, err
    (call,) = trained
    assert call["method"] == "pcgrad"
    assert call["overrides"] == ["balancer=pcgrad", "seed=7", "tasks=[right]"]
    assert (call["cfg"].seed, list(call["cfg"].tasks), "hydra" in call["cfg"]) == (7, ["right"], False)
    assert call["run_dir"].parent == tmp_path / "runs" / "multidigits"
    assert call["run_dir"].name.endswith("_pcgrad_seed=7")
    assert (call["run_dir"] / ".hydra" / "overrides.yaml").exists()
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("seed", "status", "told", "logged"),
    [
        (13, 1, "mtlbench train: digits: label 12 in row 3", "ValueError: digits: label 12"),
        (14, 1, "mtlbench train: ZeroDivisionError: a bug", "ZeroDivisionError: a bug"),
        (15, 1, "The run left by sys.exit(3).", ""),
        (16, 130, "mtlbench: interrupted", ""),
        (17, 143, "mtlbench: terminated. Where the command names its directory", ""),
    ],
)
def test_a_failing_run_is_told_in_a_line_and_logged_with_its_traceback(
    cli: Cli,
    trained: list[dict[str, Any]],
    seed: int,
    status: int,
    told: str,
    logged: str,
) -> None:
    got, out, err = cli("train", f"seed={seed}")
    assert got == status
    assert told in err
    assert "Traceback (most recent call last)" not in out + err
    log = (trained[0]["run_dir"] / "train.log").read_text()
    assert logged in log
    assert ("Traceback (most recent call last)" in log) == bool(logged)


def test_a_sweep_outlives_failing_jobs(cli: Cli, trained: list[dict[str, Any]], tmp_path: Path) -> None:
    status, _, err = cli("train", "-m", "balancer=equal,pcgrad", "seed=1,13,14,15", "hydra.sweep.dir=mine")
    assert status == 1
    assert len(trained) == 8
    assert trained[-1]["run_dir"] == tmp_path / "mine" / "balancer=pcgrad,seed=15"
    assert "6 of the sweep's jobs failed" in err
    for balancer in ("equal", "pcgrad"):
        for seed, error in ((13, "label 12 in row 3"), (14, "ZeroDivisionError: a bug"), (15, "sys.exit(3)")):
            block = err.split(f"  balancer={balancer} seed={seed}\n")[1].split("\n\n")[0]
            assert f"mine/balancer={balancer},seed={seed}" in block
            assert error in block
    assert "seed=1\n" not in err
    # The list does not leak into the next sweep.
    assert cli("train", "-m", "seed=1,2", "hydra.sweep.dir=mine")[0] == 0


@pytest.mark.parametrize(("seed", "status", "told"), [(16, 130, "interrupted"), (17, 143, "terminated")])
def test_a_sweep_stops_at_an_interrupt(
    cli: Cli, trained: list[dict[str, Any]], seed: int, status: int, told: str
) -> None:
    found, _, err = cli("train", "-m", f"seed=1,{seed},2")
    assert (found, len(trained)) == (status, 2)
    assert told in err


@pytest.mark.parametrize(
    "override",
    [
        "balancer=equal,pcgrd",
        "balancer=equal,krum",
        "seed=0,x",
        "tasks=[left],[lft]",
        "trainer.max_epoch=1,2",
        "optimizer.lr=1,-1",
    ],
)
def test_no_job_of_a_sweep_starts_where_one_cannot(cli: Cli, trained: list[dict[str, Any]], override: str) -> None:
    status, out, err = cli("train", "-m", override)
    assert (status, trained) == (2, [])
    assert "Traceback" not in out + err
    assert "Warning" not in out + err


@pytest.mark.parametrize(
    "where", [["hydra.run.dir=mine/7"], ["-m", "hydra.sweep.dir=mine", "hydra.sweep.subdir=${seed}"]]
)
def test_a_directory_of_another_run_is_left_as_it_is(cli: Cli, tmp_path: Path, where: list[str]) -> None:
    """Hydra writes a job's overrides before the job starts."""
    run_dir = tmp_path / "mine" / "7"
    run_dir.mkdir(parents=True)
    write_summary(run_dir, {"format": 1, "status": "finished", "config_hash": "another"})
    (run_dir / "config.yaml").write_text("seed: 8\n")
    status, out, err = cli("train", *where, "seed=7" if len(where) == 1 else "seed=6,7")
    assert status == 2
    assert "mine/7 holds a run of another configuration: seed was 8 and is 7" in err
    assert "Traceback" not in out + err
    assert sorted(path.name for path in (tmp_path / "mine").rglob("*")) == ["7", "config.yaml", "summary.json"]


def test_a_log_that_cannot_be_written(cli: Cli, trained: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "mine" / "train.log").mkdir(parents=True)
    status, _, err = cli("train", "hydra.run.dir=mine")
    assert (status, trained) == (2, [])
    assert f"cannot write the log: [Errno 21] Is a directory: '{tmp_path}/mine/train.log'" in err


@pytest.mark.parametrize(
    ("seed", "told"),
    [
        (13, "mtlbench train: digits: label 12 in row 3, expected 0 to 9\nTraceback: mine/rank1.log\n"),
        (18, "mtlbench train: Rank 1 of 2 lost another rank, which failed, hung or was killed; look at"),
    ],
)
def test_a_failing_rank_tells_a_line_and_keeps_its_traceback_in_a_file(
    cli: Cli, trained: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int, told: str
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    status, out, err = cli("train", "hydra.run.dir=mine", f"seed={seed}")
    assert status == 1
    assert told in err
    assert "Traceback (most recent call last)" not in out + err
    assert "Traceback (most recent call last)" in (tmp_path / "mine" / "rank1.log").read_text()


def test_the_demo_is_a_sweep_by_itself(cli: Cli, trained: list[dict[str, Any]]) -> None:
    status, _, err = cli("train", "experiment=demo")
    assert status == 0, err
    methods = ["independent", "equal", "uncertainty", "gradnorm", "pcgrad"]
    assert [(call["method"], call["cfg"].seed) for call in trained] == [(m, s) for m in methods for s in range(3)]
    assert all(call["cfg"].sharing._target_.endswith(".Independent") for call in trained[:3])
    assert len({call["run_dir"] for call in trained}) == 15


def test_ctrl_c_leaves_without_a_traceback(tmp_path: Path) -> None:
    stub = (
        "import types, time; module = types.ModuleType('mtlbench.train'); sys.modules['mtlbench.train'] = module\n"
        "module.train = lambda *a, **k: (print('started', flush=True), time.sleep(60))"
    )
    process = in_process("train", "-m", "seed=0,1", cwd=tmp_path, before=stub)
    assert process.stdout is not None
    while "started" not in (line := process.stdout.readline()):
        assert line, "the run did not start"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "mtlbench: interrupted" in err
    assert "Traceback" not in out + err
    assert "started" not in out


def test_folder_names_fit_a_file_system() -> None:
    assert folder_name("seed=0,tasks=[a,b]") == "seed=0,tasks=[a,b]"
    assert folder_name("encoder.model=org/name") == "encoder.model=org_name"
    assert folder_name("") == "defaults"
    long = [folder_name(",".join(f"key{i}=value" for i in range(n))) for n in (50, 51)]
    assert all(len(name.encode()) < 255 for name in long)
    assert long[0] != long[1]
