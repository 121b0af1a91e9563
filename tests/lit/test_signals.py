"""SIGTERM in a run: what it does is the caller's choice, in each of Lightning's loops."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from mtlbench.lit.module import MultiTaskModule
from mtlbench.train import train
from tests.conftest import config


def test_lightning_handles_no_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name in ("training_step", "validation_step", "test_step"):
        step = getattr(MultiTaskModule, name)

        def noting(*given: Any, name: str = name, step: Any = step) -> Any:
            found[name] = signal.getsignal(signal.SIGTERM)
            return step(*given)

        monkeypatch.setattr(MultiTaskModule, name, noting)
    train(config("trainer.max_epochs=1"), run_dir=tmp_path)
    assert found == dict.fromkeys(("training_step", "validation_step", "test_step"), signal.SIG_DFL)
