"""A run killed outright, also while it writes a checkpoint, and started again by the same command."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from mtlbench.lit.devices import make_trainer
from mtlbench.results.records import read_summary
from tests.conftest import TINY

OVERRIDES = [
    *TINY,
    "balancer=pcgrad",
    "encoder.dropout=0.2",
    "trainer.max_epochs=40",
    "callbacks.last.every_n_steps=2",
    "scheduler=cosine",
]


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mtlbench", "train", *OVERRIDES, f"hydra.run.dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_kill_minus_nine_and_the_same_command_again(tmp_path: Path) -> None:
    victim = start(tmp_path / "killed")
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    metrics = tmp_path / "killed" / "metrics.csv"
    while victim.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) > 3:  # somewhere after its third epoch
            break
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert read_summary(tmp_path / "killed")["status"] == "running"
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 0 < step < 120

    whole = start(tmp_path / "whole")
    resumed = start(tmp_path / "killed")
    for process in (whole, resumed):
        _, error = process.communicate()
        assert process.returncode == 0, error.decode()
    assert "Going on from" in (tmp_path / "killed" / "train.log").read_text()
    assert read_summary(tmp_path / "killed")["test"] == read_summary(tmp_path / "whole")["test"]
    a, b = (pd.read_csv(tmp_path / name / "metrics.csv").drop(columns="seconds") for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_a_checkpoint_takes_the_place_of_the_last_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where /tmp is on another file system, and the last process was killed while it wrote."""

    def rename(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", rename)
    save = make_trainer(accelerator="cpu", logger=False).strategy.checkpoint_io.save_checkpoint
    path = tmp_path / "checkpoints" / "last.ckpt"
    save({"step": 1}, path)
    path.with_suffix(".part").write_bytes(b"half")
    with path.open("rb") as before:
        save({"step": 2}, path)
        assert torch.load(before) == {"step": 1}
    assert torch.load(path) == {"step": 2}
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch\n"
        "from mtlbench.lit.checkpoint_io import WholeCheckpoints\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "WholeCheckpoints().save_checkpoint({'weights': torch.zeros(20_000)}, sys.argv[1])"
    )
    path = tmp_path / "last.ckpt"
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert found.stderr.splitlines()[-1] == f"OSError: [Errno {errno.EFBIG}] File too large: '{path}'"
    assert not path.exists()
