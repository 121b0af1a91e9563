"""The commands: how fast they answer, completion, and what they hand over to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from mtlbench import __version__
from mtlbench.cli import COMMANDS
from mtlbench.confdir import KINDS
from tests.cli.processes import ROOT, Cli, in_process


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["--help"], 0, "mtlbench train -m"),
        (["--version"], 0, __version__),
        (["list"], 0, "pcgrad"),
        (["list", "balancers"], 0, "no task gradient has a negative product"),
        (["train", "--help"], 0, "Choose one of each group"),
        (["train", "--cfg", "job", "balancer=pcgrad"], 0, "benchmark:"),
        (["train", "balancer=pcgrd"], 2, "Did you mean pcgrad"),
        (["train", "trainer.max_epochs=abc"], 2, "expected a whole number"),
        (["train", "tasks=[left,rigt]"], 2, "Did you mean right"),
        (["train", "-m", "seed=0,x"], 2, "No job was started"),
        (["evaluate", "nowhere"], 2, "nowhere holds no config.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_answers_quickly_and_imports_nothing_heavy(
    tmp_path: Path, arguments: list[str], status: int, expected: str
) -> None:
    start = time.perf_counter()
    process = in_process(*arguments, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert expected in out + err
    assert err.rstrip().endswith("HEAVY []")
    # Under 1 s on an idle machine; the modules above are what keeps it there.
    assert time.perf_counter() - start < 10


def test_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mtlbench", "--version"]
    out = subprocess.check_output(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    assert out.strip() == f"mtlbench {__version__}"


def test_a_misspelt_command_or_list(cli: Cli) -> None:
    assert cli("trian")[0::2] == (
        2,
        f"mtlbench: no command 'trian'. Did you mean train? There is: {', '.join(COMMANDS)}.\n",
    )
    status, _, err = cli("list", "balancrs")
    assert status == 2
    assert "no list 'balancrs'. Did you mean balancers?" in err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mtlbench tr", list(COMMANDS)),
        ("mtlbench list b", list(KINDS)),
        ("mtlbench train bal", ["balancer="]),
        ("mtlbench train seed=1 sharing=", ["sharing=hard", "sharing=independent", "sharing=shared_private"]),
        ("mtlbench train engine.m", ["engine.measure="]),
        ("mtlbench report ", []),
    ],
)
def test_completion(cli: Cli, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    status, out, _ = cli("-sc", "query=bash")
    assert (status, [word for word in out.split() if not word.startswith("balancer.")]) == (0, expected)
    assert "hydra_bash_completion mtlbench" in cli("-sc", "install=bash")[1]


def test_report_hands_over_to_results(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    module = types.ModuleType("mtlbench.results.report")
    vars(module).update(
        report=lambda paths, out: seen.append((paths, out)) or "written",
        print_report=lambda written, console: console.print(written),
    )
    monkeypatch.setitem(sys.modules, "mtlbench.results.report", module)
    assert cli("report", "a", "b")[:2] == (0, "written\n")
    assert cli("report", "a", "--out", "c")[0] == 0
    assert seen == [([Path("a"), Path("b")], Path("a")), ([Path("a")], Path("c"))]


def test_report_of_nothing(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli("report", "nowhere")
    assert (status, "Traceback" in out + err) == (2, False)
    assert "nowhere" in err
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", ["list", "train --cfg job"])
def test_a_closed_pipe_is_no_error(tmp_path: Path, command: str) -> None:
    process = in_process(*command.split(), cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.wait(timeout=30)
    assert err == "HEAVY []\n"
