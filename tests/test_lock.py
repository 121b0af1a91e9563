"""Two runs in one directory: the second is refused while the first goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtlbench.lock import abandoned, alone
from mtlbench.results.records import read_run, write_summary
from mtlbench.train import train
from tests.conftest import config

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
HOLDS = """
import os, pathlib, time
from mtlbench.lock import alone
with alone(pathlib.Path(".")):
    os.fork() or (time.sleep(60), os._exit(0))  # as a loader's worker, which outlives a killed trainer for seconds
    print(1, flush=True)
    input()
"""


def test_a_second_run_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"1\n"
    with pytest.raises(ValueError, match=f"Another process trains in {tmp_path}: process {first.pid} on .* Wait"):
        train(config(), run_dir=tmp_path)
    assert not (tmp_path / "summary.json").exists()
    write_summary(tmp_path, {"format": 1, "status": "running", "started": "now"})
    assert read_run(tmp_path).status == "running"
    first.kill()
    first.wait()
    assert read_run(tmp_path).status == "killed"
    assert "the same command goes on" in read_run(tmp_path).reason
    with alone(tmp_path):
        assert read_run(tmp_path).status == "running"
        assert _locked(tmp_path)
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()


def _locked(folder: Path) -> bool:
    """Whether another process finds the lock held."""
    code = "import pathlib; from mtlbench.lock import abandoned; print(abandoned(pathlib.Path('.')))"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT, text=True)
    return said == "False\n"


def test_of_another_machine_nothing_is_said(tmp_path: Path) -> None:
    assert not abandoned(tmp_path)
    (tmp_path / ".lock").write_text("process 1 on another")
    assert not abandoned(tmp_path)
