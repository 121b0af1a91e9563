"""Small tables and sources that the data tests share."""

from __future__ import annotations

import os
from collections.abc import Callable

import pandas as pd
import pytest

from mtlbench.data.build import DatasetSource


@pytest.fixture
def data_dir() -> str:
    found = os.environ.get("MTLBENCH_DATA")
    if not found:
        pytest.skip("needs the data folder: set MTLBENCH_DATA")
    return found


@pytest.fixture
def source() -> Callable[..., DatasetSource]:
    """A source from tables: source(train, val, test, type="vector", ...); one table serves for all splits."""

    def make(train: pd.DataFrame, val: pd.DataFrame | None = None, test: pd.DataFrame | None = None, **given):
        frames = {"train": train, "val": train if val is None else val, "test": train if test is None else test}
        return DatasetSource(load=lambda data_dir: frames, input=given)

    return make
