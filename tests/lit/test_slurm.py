"""One process in a Slurm job: no other than elsewhere."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import pytest

from mtlbench.lit.devices import count
from mtlbench.results.records import read_summary
from mtlbench.train import train
from tests.conftest import config


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `sbatch -n 2` gives to the batch script's own process, where srun is on the PATH."""
    (tmp_path / "bin").mkdir()
    for name in ("srun", "scontrol"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    given = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "2", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("job")
def test_a_run_is_that_of_a_machine_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal before a job's end (sbatch --signal=USR1@60) is left to whoever listens: no checkpoint beside ours."""
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
    warned = f"{{_target_: tests.lit.accidents.Accident, kind: warn, rank: 0, step: 4, happened: {tmp_path}/happened}}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            train(config(f"+callbacks.accident={warned}"), run_dir=tmp_path / "slurm")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signals == [signal.SIGUSR1]
    assert not list((tmp_path / "slurm").glob("hpc_ckpt_*"))
    for name in ("JOB_ID", "NTASKS"):
        monkeypatch.delenv(f"SLURM_{name}")
    train(config(), run_dir=tmp_path / "alone")
    slurm, alone = read_summary(tmp_path / "slurm"), read_summary(tmp_path / "alone")
    assert (slurm["steps"], slurm["test"]) == (alone["steps"], alone["test"])


@pytest.mark.usefixtures("job")
def test_what_a_requeued_job_has_left_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    with pytest.raises(ValueError, match=r"hpc_ckpt_1.ckpt was left by a job that Lightning requeued.* Delete it"):
        train(config(), run_dir=tmp_path)


@pytest.mark.usefixtures("job")
def test_devices_are_counted() -> None:
    assert count("cpu", "auto") == 1
