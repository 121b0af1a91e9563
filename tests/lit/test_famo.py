"""FAMO in whole runs: its second forward sees the step's data under the step's own conditions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.famo import FAMO
from mtlbench.data.tables import InputSpec
from mtlbench.models.encoders.base import Encoder, Stage
from mtlbench.train import train
from tests.conftest import config
from tests.lit.runs import curves, killed, last, weights
from tests.lit.test_precision import scaler

Run = Callable[..., tuple[Path, dict[str, Any]]]


def saved(run_dir: Path) -> dict[str, Any]:
    return last(run_dir)["state_dict"]


def normed(*, spec: InputSpec, features: int, dropout: float, **unused: object) -> Encoder:
    """All that draws numbers or keeps statistics in training."""
    layers = nn.Sequential(
        nn.Conv2d(spec.shape[0], 4, 5, stride=4), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True),
        nn.Flatten(), nn.LazyLinear(features), nn.BatchNorm1d(features), nn.ReLU(), nn.Dropout(dropout),
    )  # fmt: skip
    layers(torch.zeros(2, *spec.shape))
    return Encoder([Stage(layers)], features=features)


NORMED = ("encoder._target_=tests.lit.test_famo.normed", "encoder.dropout=0.5", "head.dropout=0.5")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The losses before and after every step."""
    pairs: list[tuple[Tensor, Tensor]] = []
    original = FAMO.after_step

    def after_step(self: FAMO, before: Tensor, after: Tensor) -> None:
        assert not before.requires_grad
        pairs.append((before.clone(), after.clone()))
        original(self, before, after)

    monkeypatch.setattr(FAMO, "after_step", after_step)
    return pairs


def test_a_run(run: Run, seen: list[tuple[Tensor, Tensor]]) -> None:
    run_dir, summary = run("a", "balancer=famo")
    assert summary["status"] == "finished"
    assert summary["steps"] == len(seen) == 6
    state = saved(run_dir)
    assert state["balancer.adam"][2].tolist() == [6, 6]
    steps = list(seen)  # replaying adds to them
    replayed = FAMO(num_tasks=2, seed=0)
    for before, after in steps:
        assert not torch.equal(before, after)
        replayed.after_step(before, after)
    assert torch.equal(replayed.logits, state["balancer.logits"])
    rows = pd.read_csv(run_dir / "metrics.csv")
    assert (rows["weight/left"] + rows["weight/right"]).tolist() == pytest.approx([1, 1])
    assert rows["train/loss/left"][0] == pytest.approx(float(torch.stack([b for b, _ in steps[:3]])[:, 0].mean()))


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_second_forward_is_the_first_but_for_the_update(
    run: Run, seen: list[tuple[Tensor, Tensor]], precision: str, accumulate: int
) -> None:
    """Without an update the losses are the same to the bit: masks, batch statistics, precision."""
    run(
        "a", *NORMED, "balancer=famo", "optimizer=sgd", "optimizer.lr=0", f"trainer.precision={precision}",
        f"trainer.accumulate_grad_batches={accumulate}", "data.batch_size=16",
    )  # fmt: skip
    assert len(seen) == 12 // accumulate
    for before, after in seen:
        assert torch.equal(before, after)
    # Dropout is at work, anew in every step.
    assert len({tuple(before.tolist()) for before, _ in seen}) == len(seen)


def test_statistics_of_norms_move_once_a_step(run: Run, seen: list[tuple[Tensor, Tensor]]) -> None:
    """At a rate of 0 they are those of a balancer without a second forward."""
    shared = (*NORMED, "optimizer=sgd", "optimizer.lr=0")
    famo, _ = run("famo", *shared, "balancer=famo")
    equal, _ = run("equal", *shared, "balancer=equal")
    assert len(seen) == 6
    one, other = (
        {key: value for key, value in saved(path).items() if "running" in key or "tracked" in key}
        for path in (famo, equal)
    )
    assert len(one) == 9
    for key in one:
        assert torch.equal(one[key], other[key]), key
        if "tracked" in key:
            assert int(one[key]) in (0, 7)  # the six steps and the call in `normed`; torch's InstanceNorm never counts


def test_a_skipped_step_is_not_told(run: Run, seen: list[tuple[Tensor, Tensor]]) -> None:
    """Finite losses, gradients that overflow under the loss scaler: no update to measure."""
    run_dir, summary = run("a", *scaler(2.0**127), "balancer=famo", "trainer.max_epochs=1")
    assert summary["steps"] == 3
    assert seen == []
    state = saved(run_dir)
    assert state["balancer.adam"][2].tolist() == [0, 0]
    assert state["balancer.logits"].tolist() == [0, 0]


def test_a_step_under_a_scaler_is_told(run: Run, seen: list[tuple[Tensor, Tensor]]) -> None:
    run("a", *scaler(2.0**9), "balancer=famo", "trainer.max_epochs=1")
    assert len(seen) == 3


def test_a_step_that_breaks_the_model_is_named(run: Run) -> None:
    with pytest.raises(FloatingPointError, match=r"task left, right on the data of step 0 after its update"):
        run("a", "balancer=famo", "optimizer=sgd", "optimizer.lr=1e30")


def test_micro_batches_equal_one_batch(run: Run) -> None:
    shared = ("balancer=famo", "trainer.precision=64-true", "trainer.gradient_clip_val=0.5")
    whole, _ = run("whole", *shared, "data.batch_size=32")
    parts, _ = run("parts", *shared, "data.batch_size=8", "trainer.accumulate_grad_batches=4")
    for (key, a), b in zip(weights(whole).items(), weights(parts).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=key)
    torch.testing.assert_close(saved(whole)["balancer.logits"], saved(parts)["balancer.logits"], rtol=1e-7, atol=0)


def test_killed_and_resumed_equals_uninterrupted(run: Run, tmp_path: Path) -> None:
    overrides = (*NORMED, "balancer=famo", "trainer.max_epochs=4", "callbacks.last.every_n_steps=2")
    whole, _ = run("whole", *overrides)
    killed(config(*overrides), run_dir=tmp_path / "killed", at=(2, 2))
    train(config(*overrides), run_dir=tmp_path / "killed")
    left, right = saved(whole), saved(tmp_path / "killed")
    for key, value in left.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, right[key]), key
    pd.testing.assert_frame_equal(curves(whole), curves(tmp_path / "killed"), check_exact=True)
