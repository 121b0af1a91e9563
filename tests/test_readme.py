"""README's examples run as they stand, in its order, in one empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def section(title: str) -> list[tuple[str, str, str]]:
    """The code blocks (language, file name, text) below a heading."""
    start = README.index(f"\n## {title}\n")
    end = README.find("\n## ", start + 1)
    found = re.findall(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", README[start:end], flags=re.MULTILINE | re.DOTALL)
    assert found, f"README has no code below {title!r}"
    return found


def execute(blocks: list[tuple[str, str, str]], folder: Path) -> list[str]:
    """Writes the titled blocks, runs the others; returns what they printed."""
    binaries = folder / "bin"
    binaries.mkdir(exist_ok=True)
    for name, command in (
        ("mtlbench", f'exec {sys.executable} -m mtlbench "$@"'),
        ("python", f'exec {sys.executable} "$@"'),
    ):
        (binaries / name).write_text(f"#!/bin/sh\n{command}\n")
        (binaries / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    printed = []
    for language, title, text in blocks:
        if title:
            (folder / title).write_text(text)
            continue
        command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return printed


@pytest.mark.slow
def test_your_own_dataset_tasks_and_balancer(tmp_path: Path) -> None:
    printed = execute(section("Your own dataset and tasks"), tmp_path)
    assert "0.8 of reviews.csv" in printed[-1] and "0.1 of reviews.csv, by default" in printed[-1]
    assert "verdict accuracy" in printed[-1]
    assert (tmp_path / "runs" / "shop" / "report.html").exists()
    execute(section("Your own balancer"), tmp_path)
    (record,) = (tmp_path / "runs" / "shop").glob("*inverse_norm*/summary.json")
    assert '"method": "inverse_norm"' in record.read_text()


def test_the_engine_in_your_own_loop(tmp_path: Path) -> None:
    printed, _ = execute(section("The engine in your own loop"), tmp_path)
    assert printed.startswith("tensor([[")


def test_several_devices(tmp_path: Path) -> None:
    (command,) = [block for block in section("Several devices") if block[0] == "bash"]
    execute([command], tmp_path)
    (record,) = (tmp_path / "runs").glob("multidigits/*_pcgrad_seed=0/summary.json")
    assert '"ranks": 2' in record.read_text()


@pytest.mark.slow
def test_from_python(tmp_path: Path) -> None:
    (python,) = [block for block in section("Training and sweeping") if block[0] == "python"]
    execute([python], tmp_path)
    assert (tmp_path / "runs" / "notebook" / "summary.json").exists()


def test_every_block_is_of_a_known_language() -> None:
    assert {language for language, _, _ in BLOCKS} == {"bash", "console", "python", "yaml"}
