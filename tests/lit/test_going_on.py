"""Runs that are stopped before their last epoch's end, or killed at a moment where a checkpoint is easily wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mtlbench.results.records import read_summary
from mtlbench.train import train
from tests.conftest import config
from tests.lit.runs import Killed, curves, killed, weights

Run = Callable[..., tuple[Path, dict[str, Any]]]
EVERY = "callbacks.last.every_n_steps=1"


def check_equal(whole: Path, resumed: Path) -> None:
    for (key, a), b in zip(weights(whole).items(), weights(resumed).values(), strict=True):
        assert torch.equal(a, b), key
    pd.testing.assert_frame_equal(curves(whole), curves(resumed), check_exact=True)
    one, other = read_summary(whole), read_summary(resumed)
    for key in ("selected", "val", "test", "epochs", "steps", "examples_seen"):
        assert one[key] == other[key], key


@pytest.mark.parametrize(
    ("overrides", "at"),
    [
        (("trainer.accumulate_grad_batches=2", EVERY), (1, 1)),  # amid an epoch's first step
        (("+trainer.val_check_interval=2", EVERY), (0, 2)),  # after a validation amid an epoch
        (("+trainer.val_check_interval=2", EVERY, "balancer=independent"), (1, 2)),
        (("trainer.max_steps=5", "trainer.max_epochs=null"), (1, 0)),  # after an epoch's end
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    run: Run, overrides: tuple[str, ...], at: tuple[int, int], tmp_path: Path
) -> None:
    whole, _ = run("whole", *overrides)
    killed(config(*overrides), run_dir=tmp_path / "killed", at=at)
    train(config(*overrides), run_dir=tmp_path / "killed")
    check_equal(whole, tmp_path / "killed")


@pytest.mark.parametrize(
    "overrides",
    [
        ("callbacks=early_stopping", "callbacks.early_stopping.patience=1"),
        ("balancer=independent", "callbacks.per_task.patience=1"),
        ("trainer.max_steps=4",),
        ("trainer.max_steps=4", EVERY),
    ],
)
def test_what_was_stopped_stays_so(run: Run, overrides: tuple[str, ...], tmp_path: Path) -> None:
    overrides = ("optimizer.lr=0", "trainer.max_epochs=4", *overrides)
    whole, summary = run("whole", *overrides)
    assert summary["epochs"] == 2

    def dies(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtlbench.fit.select", dies)  # once it is trained
        with pytest.raises(Killed):
            train(config(*overrides), run_dir=tmp_path / "killed")
    train(config(*overrides), run_dir=tmp_path / "killed")
    check_equal(whole, tmp_path / "killed")


@pytest.mark.parametrize("balancer", ["pcgrad", "independent"])
def test_steps_that_end_amid_an_epoch_are_validated(run: Run, balancer: str) -> None:
    run_dir, summary = run("a", f"balancer={balancer}", "trainer.max_steps=2", "scheduler=linear", "scheduler.warmup=0")
    assert (summary["epochs"], summary["steps"], summary["examples_seen"]) == (1, 2, 64)
    rows = curves(run_dir)
    assert rows["val/score"].tolist() == [pytest.approx(summary["selected"]["value"])]
    assert rows["lr"].tolist() == [0]  # the schedule's steps are those of the run
    assert all(one["epoch"] == 0 for one in summary["selected"].get("tasks", {"all": summary["selected"]}).values())
