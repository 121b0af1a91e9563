"""What tests of whole runs share: a tiny benchmark, and a run in a temporary directory."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absl import logging as absl_logging
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from mtlbench.confdir import conf_dir

# absl, which rouge-score brings, closes its log handler's stream when logging is configured anew, as Hydra does, unless
# that stream is the interpreter's own. Under pytest it would be the captured stderr of all later tests.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

# A shell starts what it puts into the background with Ctrl-C ignored, and the commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = [
    "benchmark.datasets.digits.load.train=96",
    "benchmark.datasets.digits.load.val=64",
    "benchmark.datasets.digits.load.test=64",
    "data.batch_size=32",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
]


def config(*overrides: str, tiny: bool = True) -> DictConfig:
    """Composed as `mtlbench train` does."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=[*(TINY if tiny else []), *overrides])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "thorough" not in config.getoption("markexpr"):
        for item in items:
            if "thorough" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes: run with -m thorough"))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Trains with overrides; returns the run directory and its record."""

    def go(name: str, *overrides: str, tiny: bool = True) -> tuple[Path, dict[str, Any]]:
        from mtlbench.results.records import read_summary
        from mtlbench.train import train

        run_dir = tmp_path / name
        train(config(*overrides, tiny=tiny), run_dir=run_dir, overrides=overrides)
        return run_dir, read_summary(run_dir)

    return go
