"""What the tests of the toy share: configurations, and runs in a temporary directory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig

from tests.conftest import config

Follow = Callable[[DictConfig], tuple[dict[str, Any], pd.DataFrame]]


def toy(*overrides: str) -> DictConfig:
    return _composed(*overrides).copy()


@functools.cache
def _composed(*overrides: str) -> DictConfig:
    return config("benchmark=toy2d", *overrides, tiny=False)


@pytest.fixture
def follow(tmp_path: Path) -> Follow:
    """What the benchmark tells of each start, and the trajectories."""

    def go(cfg: DictConfig) -> tuple[dict[str, Any], pd.DataFrame]:
        found = instantiate(cfg.benchmark, _partial_=True, _convert_="all")(
            balancer=instantiate(cfg.balancer, _partial_=True, _convert_="all"),
            optimizer=instantiate(cfg.optimizer, _partial_=True),
            seed=cfg.seed,
            run_dir=tmp_path,
        )
        return found["starts"], pd.read_parquet(tmp_path / "trajectories.parquet")

    return go
