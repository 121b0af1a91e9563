"""`engine.measure=features` in whole runs, and what is refused before one starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mtlbench.check import ConfigError, check
from tests.conftest import config

Run = Callable[..., tuple[Path, dict[str, Any]]]


def test_runs_with_and_without_micro_batches_take_the_same_steps(run: Run) -> None:
    """Without dropout and batch norm a batch of 16 is two of 8, up to the order of sums."""
    shared = ("balancer=mgda", "engine.measure=features", "encoder.dropout=0", "head.dropout=0")
    whole_dir, whole = run("whole", *shared, "data.batch_size=16")
    parts_dir, parts = run("parts", *shared, "data.batch_size=8", "trainer.accumulate_grad_batches=2")
    assert parts["steps"] == whole["steps"]
    columns = ["val/loss/left", "val/loss/right", "weight/left", "weight/right"]
    one, other = (pd.read_csv(run_dir / "metrics.csv")[columns] for run_dir in (whole_dir, parts_dir))
    pd.testing.assert_frame_equal(one, other, rtol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmark=glue5"], "examples of their own .the datasets cola, mrpc, rte, sst2, stsb"),
        (["benchmark=school"], "examples of their own .split_by school"),
        (["benchmark=multidigits", "sharing=shared_private"], "expected sharing=hard"),
    ],
)
def test_where_features_cannot_be_compared_the_config_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(config(*overrides, "balancer=mgda", "engine.measure=features", tiny=False))
    check(config(*overrides, "balancer=mgda", "engine.measure=parameters", tiny=False))
