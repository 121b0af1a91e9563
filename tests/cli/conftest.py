"""What tests of the command line share: the command in an empty folder, and a stand-in for training."""

from __future__ import annotations

import logging
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from mtlbench.cli import main
from tests.cli.processes import Cli


@pytest.fixture
def _loggers() -> Iterator[None]:
    """Hydra configures logging for the process; the next test must not write to this one's closed streams."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts a stand-in for `mtlbench.train` in place; what it was called with."""
    calls: list[dict[str, Any]] = []

    def train(cfg: DictConfig, *, method: str | None, run_dir: Path, overrides: list[str]) -> float:
        calls.append({"cfg": cfg, "method": method, "run_dir": run_dir, "overrides": overrides})
        if cfg.seed == 13:
            raise ValueError("digits: label 12 in row 3, expected 0 to 9")
        if cfg.seed == 14:
            raise ZeroDivisionError("a bug")
        if cfg.seed == 15:
            sys.exit(3)
        if cfg.seed == 16:
            raise KeyboardInterrupt
        if cfg.seed == 17:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                sys.exit(1)  # as Lightning does
        if cfg.seed == 18:
            raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:12979.")
        return 0.5

    module = types.ModuleType("mtlbench.train")
    vars(module)["train"] = train
    monkeypatch.setitem(sys.modules, "mtlbench.train", module)
    return calls


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], _loggers: None) -> Cli:
    """Calls the command in an empty folder; exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MTLBENCH_DATA", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["mtlbench"])

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as left:  # argparse's own way out
            status = int(left.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return call
