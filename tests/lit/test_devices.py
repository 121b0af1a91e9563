"""`mtlbench train` on two devices, as it is called: what it starts, leaves behind, and says when something happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench import processes
from mtlbench.check_trainer import number_of_devices
from mtlbench.lit.devices import count
from mtlbench.results.records import read_summary
from mtlbench.train import train
from tests.conftest import TINY, config
from tests.lit.runs import weights

ROOT = Path(__file__).parents[2]
TWO = [*TINY, "trainer.devices=2", "data.batch_size=16", "threads=1", "trainer.precision=64-true"]
MTLBENCH = [sys.executable, "-m", "mtlbench"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "mtlbench"]


def start(folder: Path, *arguments: str, command: list[str] = MTLBENCH, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "train", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def accident(kind: str, folder: Path, *, rank: int = 1, step: int = 4) -> list[str]:
    """Overrides under which something happens to a rank, and `folder`/happened tells."""
    given = f"{{_target_: tests.lit.accidents.Accident, kind: {kind}, rank: {rank}, step: {step}"
    return [f"+callbacks.accident={given}, happened: {folder}/happened}}", "callbacks.last.every_n_steps=1"]


def wait_for(path: Path) -> int:
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)
    return int(path.read_text())


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def equals_one_device(run_dir: Path, alone: Path, *overrides: str) -> bool:
    """Whether the weights are those of one device with the whole batch, balanced by PCGrad."""
    train(config("balancer=pcgrad", "trainer.precision=64-true", *overrides), run_dir=alone)
    pairs = zip(weights(run_dir).values(), weights(alone).values(), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in pairs)


def test_a_sweep_on_two_devices_that_loses_a_rank_and_goes_on(tmp_path: Path) -> None:
    """One run directory and one W&B run a job, written by its first rank. Killing another one ends its job alone."""
    command = (
        "-m", *TWO, *accident("kill", tmp_path), "balancer=pcgrad", "seed=0,1", "hydra.sweep.dir=sweep",
        "hydra.sweep.subdir=${hydra:job.num}", "logger=wandb",
    )  # fmt: skip
    wandb = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    status, out, err = ended(start(tmp_path, *command, **wandb))
    killed, finished = tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"
    assert status == 1, out + err
    pid = wait_for(tmp_path / "happened")
    assert "1 of the sweep's jobs failed" in err
    assert f"Rank 1 of 2 (process {pid}) was killed by SIGKILL, and the other ranks were stopped" in err
    summary = read_summary(killed)
    assert summary["status"] == "failed" and summary["error"].startswith("ChildProcessError: Rank 1 of 2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["happened", "sweep"]
    assert {path.name for path in finished.iterdir()} == {
        ".hydra", ".lock", "checkpoints", "config.yaml", "metrics.csv", "model.json", "model.safetensors",
        "predictions.parquet", "summary.json", "train.log", "wandb",
    }  # fmt: skip
    assert len(list((finished / "wandb").glob("offline-run-*"))) == 1
    assert (finished / "train.log").read_text().count("digits: train 96") == 1
    assert equals_one_device(finished, tmp_path / "alone 1", "seed=1")

    assert ended(start(tmp_path, *command, **wandb))[0] == 0
    assert "Going on from" in (killed / "train.log").read_text()
    assert "is finished already" in (finished / "train.log").read_text()
    assert equals_one_device(killed, tmp_path / "alone 0")


def test_a_rank_that_answers_no_more_ends_the_run_within_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 1.0)
    cfg = config(*TWO, *accident("stop", tmp_path), "trainer.timeout=3")
    with pytest.raises(ChildProcessError, match=r"(?s)Rank 0 failed: .*[Tt]imed out") as caught:
        train(cfg, run_dir=tmp_path / "run")
    assert time.time() - (tmp_path / "happened").stat().st_mtime < 20
    pid = wait_for(tmp_path / "happened")
    assert f"Rank 1 (process {pid}) had not ended 1 s later, and was stopped." in str(caught.value)
    assert not lives(pid)


def test_a_rank_that_ends_is_seen_while_those_before_it_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.5)
    codes = ("import time; time.sleep(30)", "raise SystemExit(3)")
    started = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for code in codes]
    processes._wait(started)
    assert [process.returncode for process in started] == [None, 3]
    processes._stop(started)


def test_an_error_of_one_rank_is_the_error_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank 1 can't read its data") as caught:
        train(config(*TWO, *accident("raise", tmp_path)), run_dir=tmp_path / "run")
    assert "On rank 1:" in caught.value.__notes__[0] and "accidents.py" in caught.value.__notes__[0]
    assert read_summary(tmp_path / "run")["error"] == "ValueError: rank 1 can't read its data"


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_rank_outlives_the_command(tmp_path: Path, sent: signal.Signals, status: int) -> None:
    process = start(tmp_path, *TWO, *accident("wait", tmp_path), "hydra.run.dir=run")
    rank = wait_for(tmp_path / "happened")
    process.send_signal(sent)
    found, out, err = ended(process)
    assert found == status
    assert "Traceback" not in out + err
    assert read_summary(tmp_path / "run")["status"] == ("interrupted" if status == 130 else "running")
    deadline = time.monotonic() + 20
    while lives(rank) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(rank)


def test_torchrun(tmp_path: Path) -> None:
    """Its processes agree on a run directory only where it is named, and are as many as the devices."""
    given = [*TWO, "balancer=pcgrad"]
    status, out, err = ended(start(tmp_path, *given, "hydra.run.dir=run", command=TORCHRUN))
    assert status == 0, err
    assert out.count("digits: train 96") == 1
    assert {path.name for path in (tmp_path / "run" / ".hydra").iterdir()} == {
        "config.yaml", "hydra.yaml", "overrides.yaml"
    }  # fmt: skip
    assert equals_one_device(tmp_path / "run", tmp_path / "alone")


def test_srun(tmp_path: Path) -> None:
    """Two processes as Slurm's `srun -N1 -n2` starts and numbers them."""
    given = [*TWO, "balancer=pcgrad", "hydra.run.dir=run"]
    common = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(processes.free_port()),
    }  # fmt: skip
    tasks = [start(tmp_path, *given, SLURM_PROCID=rank, SLURM_LOCALID=rank, **common) for rank in ("0", "1")]
    (status, out, _), (other, silent, _) = (ended(task) for task in tasks)
    assert (status, other) == (0, 0)
    assert out.count("digits: train 96") == 1 and not silent
    assert equals_one_device(tmp_path / "run", tmp_path / "alone")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "torchrun has started 2 processes, and each would name a run directory by its own time of day"),
        (["-m", "seed=0,1"], "torchrun has started 2 processes, and a sweep starts those of its jobs by itself"),
        (
            ["trainer.devices=1", "hydra.run.dir=run"],
            "torchrun started 2 processes, and this run takes 1: trainer.devices=1 on trainer.num_nodes=1",
        ),
        (
            ["benchmark=toy2d", "hydra.run.dir=run"],
            "torchrun started 2 processes, and benchmark=toy2d runs in one",
        ),
    ],
)
def test_what_torchrun_must_be_told(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from mtlbench.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mtlbench"])
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *arguments]) in (1, 2)
    assert expected in capfd.readouterr().err


def test_several_machines_need_torchrun_or_srun(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer.num_nodes=2: .* torchrun on each of them, or by Slurm's srun"):
        train(config("trainer.num_nodes=2"), run_dir=tmp_path)


@pytest.mark.parametrize(
    ("devices", "expected"), [(2, 2), ("2", 2), ([0, 2], 2), ("0,1", 2), ("1,", 1), ("auto", None), (-1, None)]
)
def test_devices_are_counted_as_lightning_does(devices: Any, expected: int | None) -> None:
    assert number_of_devices(devices) == expected


def test_cpus_are_not_counted() -> None:
    with pytest.raises(TypeError, match="should be an int > 0"):  # there is no number of all CPUs
        count("cpu", -1)


def test_where_a_process_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.place() is None
    for given, expected in (
        ({"MTLBENCH_RANK": "1/2"}, (1, 2, "mtlbench")),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4"}, (3, 4, "torchrun")),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, (0, 2, "srun")),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),  # a batch script's own process
    ):
        with monkeypatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, value)
            assert processes.place() == expected
