"""Balancers that take three batches a step, from the loader to the run's record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mtlbench.data.mixing import Joint, Plan
from mtlbench.results.records import read_summary
from mtlbench.train import train
from tests.conftest import config
from tests.lit.runs import curves, killed, weights

Run = Callable[..., tuple[Path, dict[str, Any]]]


def plan(**given: Any) -> Plan:
    return Plan(Joint(**{"sizes": {"a": 20, "b": 7}, "batch_size": 3, "seed": 0, **given}), batches=3)


def test_a_step_draws_three_batches_that_share_no_row() -> None:
    steps = [draw for draw in plan() if isinstance(draw, list)]
    assert len(steps) == len(plan()) == 2  # an epoch has seven batches
    draws = [draw for step in steps for draw in step]
    assert [len(draw["a"]) for draw in draws] == [3] * 6
    assert len(torch.cat([draw["a"] for draw in draws]).unique()) == 18
    # The draws are those of a balancer that takes one batch a step.
    mixing = plan().mixing
    for index, draw in enumerate(draws):
        assert {name: rows.tolist() for name, rows in draw.items()} == {
            name: rows.tolist() for name, rows in mixing.plan(0, index).items()
        }


def test_an_epoch_needs_the_batches_of_one_step() -> None:
    with pytest.raises(ValueError, match="A step takes 3 batches, and an epoch of the mixing has 2"):
        plan(batch_size=10)


@pytest.mark.parametrize("balancer", ["modo", "sdmgrad"])
def test_examples_of_all_batches_are_counted(run: Run, balancer: str) -> None:
    solver = ["balancer.solver=stochastic"] if balancer == "sdmgrad" else []
    run_dir, summary = run("a", f"balancer={balancer}", *solver, "data.batch_size=8")
    # 96 training rows are 12 batches of 8, hence 4 steps: as much data in an epoch as all methods see.
    assert (summary["epochs"], summary["steps"], summary["examples_seen"]) == (2, 8, 192)
    rows = pd.read_csv(run_dir / "metrics.csv")
    assert (rows["weight/left"] + rows["weight/right"]).tolist() == pytest.approx([1, 1])


def test_micro_batches_make_one_step(run: Run) -> None:
    """Two micro-batches: the first batch's halves are its rows 0-7 and, as the fourth draw, 24-31."""
    _, summary = run("a", "balancer=modo", "data.batch_size=4", "trainer.accumulate_grad_batches=2")
    assert (summary["steps"], summary["examples_seen"]) == (8, 192)


@pytest.mark.parametrize(
    "balancer",
    [
        ("balancer=modo", "data.batch_size=8"),
        ("balancer=sdmgrad", "balancer.solver=stochastic", "data.batch_size=8"),
        # One batch a step, with a memory of another kind: for each layer, and in a wrapper.
        ("balancer=gradvac", "balancer.groups=layer", "data.batch_size=24"),
        ("balancer=crmogm", "data.batch_size=24"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_killed_and_resumed_equals_uninterrupted(run: Run, balancer: tuple[str, ...], tmp_path: Path) -> None:
    overrides = (
        *balancer, "encoder.dropout=0.2", "head.dropout=0.2", "trainer.max_epochs=3",
        "callbacks.last.every_n_steps=2", "scheduler=cosine", "loss_scale=initial",
    )  # fmt: skip
    whole, reference = run("whole", *overrides)
    # Step 7 of 12, after the checkpoint at step 6.
    checkpoint = killed(config(*overrides), run_dir=tmp_path / "killed", at=(1, 3))
    assert checkpoint["global_step"] == 6
    train(config(*overrides), run_dir=tmp_path / "killed")
    resumed = read_summary(tmp_path / "killed")
    for (key, a), b in zip(weights(whole).items(), weights(tmp_path / "killed").values(), strict=True):
        assert torch.equal(a, b), key
    pd.testing.assert_frame_equal(curves(whole), curves(tmp_path / "killed"), check_exact=True)
    assert resumed["test"] == reference["test"]
    assert resumed["examples_seen"] == reference["examples_seen"] == 3 * 96
