"""Whole runs on a tiny benchmark: what they leave behind, accumulation, resuming, independence."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from hydra.errors import InstantiationException
from lightning.pytorch.strategies import DDPStrategy

from mtlbench import assembly
from mtlbench.check import check
from mtlbench.lit.devices import make_trainer
from mtlbench.lit.module import MultiTaskModule
from mtlbench.results.records import read_summary
from mtlbench.train import train
from tests.conftest import config
from tests.lit.runs import curves, killed, weights

Run = Callable[..., tuple[Path, dict[str, Any]]]


def test_what_a_run_leaves_behind(run: Run) -> None:
    run_dir, summary = run("a", "balancer=pcgrad")
    assert summary["status"] == "finished"
    assert (summary["benchmark"], summary["method"], summary["encoder"]) == ("multidigits", "pcgrad", "lenet")
    assert (summary["epochs"], summary["steps"], summary["examples_seen"]) == (2, 6, 192)
    assert summary["step_seconds"] > 0
    rows = pd.read_csv(run_dir / "metrics.csv")
    assert rows["epoch"].tolist() == [0, 1]
    assert rows["step"].tolist() == [3, 6]
    expected = {"lr", "train/loss/left", "weight/right", "val/left/accuracy", "val/loss/right", "val/score"}
    assert expected <= set(rows.columns)
    assert summary["selected"]["value"] == pytest.approx(rows["val/score"].max(), abs=1e-6)
    assert summary["selected"]["epoch"] == rows["val/score"].idxmax()
    # The test metrics are those of the predictions that were kept.
    predictions = pd.read_parquet(run_dir / "predictions.parquet")
    assert len(predictions) == 2 * 64
    for task in ("left", "right"):
        own = predictions[predictions["task"] == task]
        assert own["row"].tolist() == list(range(64))
        assert (own["target"] == own["prediction"]).mean() == pytest.approx(summary["test"][f"{task}/accuracy"])
    # And the validation metrics are those of the selected weights.
    assert summary["val"]["score"] == pytest.approx(summary["selected"]["value"], abs=1e-6)


@pytest.mark.parametrize(("overrides", "message"), [
    (["balancer=cagrad", "balancer.c=-1"], "c must be a finite number of at least 0"),
    (["balancer=modo", "engine.refresh=2"], r"engine.refresh=2 keeps the weights .* MoDo is none"),
    (["balancer=pcgrad", "engine.measure=features", "engine.route=ghost"], "engine.route=ghost serves"),
])  # fmt: skip
def test_wrong_options_are_told_before_the_data_are_read(
    overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "load_data", lambda cfg: pytest.fail("the data were read"))
    with pytest.raises((ValueError, InstantiationException), match=message):
        assembly.set_up(config(*overrides))


def test_the_score_is_0_for_the_trivial_predictor_and_1_for_a_perfect_one(run: Run) -> None:
    _, summary = run("a", "optimizer.lr=0", "trainer.max_epochs=1", "tasks=[left]")
    from mtlbench.lit.evaluation import whole

    data = assembly.load_data(config("tasks=[left]"))
    train_left, val_left = (whole(data.splits[split]["digits"])["left"] for split in ("train", "val"))
    trivial = (val_left == train_left.mode().values).double().mean().item()
    expected = (summary["val"]["left/accuracy"] - trivial) / (1 - trivial)
    assert summary["val"]["score"] == pytest.approx(expected)


@pytest.mark.parametrize("balancer", ["equal", "uncertainty", "gradnorm", "pcgrad", "cagrad", "independent"])
def test_four_micro_batches_equal_one_batch(run: Run, balancer: str) -> None:
    shared = (f"balancer={balancer}", "trainer.precision=64-true", "trainer.gradient_clip_val=0.5")
    whole, one = run("whole", *shared, "data.batch_size=32")
    parts, four = run("parts", *shared, "data.batch_size=8", "trainer.accumulate_grad_batches=4")
    assert one["steps"] == four["steps"] == 6
    for (key, a), b in zip(weights(whole).items(), weights(parts).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("balancer", ["equal", "uncertainty", "dwa", "gradnorm", "pcgrad", "independent"])
def test_killed_and_resumed_equals_uninterrupted(run: Run, balancer: str, tmp_path: Path) -> None:
    overrides = (
        f"balancer={balancer}", "encoder.dropout=0.2", "head.dropout=0.2", "trainer.max_epochs=4",
        "callbacks.last.every_n_steps=2", "scheduler=cosine",
        "trainer.gradient_clip_val=1.0",
    )  # fmt: skip
    whole, reference = run("whole", *overrides)
    # Step 8 of 12, after the checkpoint in mid-epoch at step 8.
    checkpoint = killed(config(*overrides), run_dir=tmp_path / "killed", at=(2, 2))
    assert checkpoint["global_step"] == 8
    train(config(*overrides), run_dir=tmp_path / "killed")
    resumed = read_summary(tmp_path / "killed")
    for (key, a), b in zip(weights(whole).items(), weights(tmp_path / "killed").values(), strict=True):
        assert torch.equal(a, b), key
    pd.testing.assert_frame_equal(curves(whole), curves(tmp_path / "killed"), check_exact=True)
    assert resumed["test"] == reference["test"]
    assert resumed["examples_seen"] == reference["examples_seen"]


def test_killed_amid_the_step_that_it_went_on_with(run: Run, tmp_path: Path) -> None:
    overrides = (
        "balancer=pcgrad", "data.batch_size=8", "trainer.accumulate_grad_batches=4", "callbacks.last.every_n_steps=1",
        "trainer.max_epochs=1",
    )  # fmt: skip
    whole, _ = run("whole", *overrides)
    for micro_batch in (5, 6):  # the second of step 2, and the third once it has gone on from step 1
        checkpoint = killed(config(*overrides), run_dir=tmp_path / "killed", at=(0, micro_batch))
        assert checkpoint["global_step"] == 1
    train(config(*overrides), run_dir=tmp_path / "killed")
    for (key, a), b in zip(weights(whole).items(), weights(tmp_path / "killed").values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("balancer", ["equal", "independent"])
def test_clipping_at_0_is_none(run: Run, balancer: str) -> None:
    given = (f"balancer={balancer}", "trainer.max_epochs=1")
    clipped, plain = (weights(run(name, *given, f"trainer.gradient_clip_val={name}")[0]) for name in ("0", "null"))
    assert all(torch.equal(a, b) for a, b in zip(clipped.values(), plain.values(), strict=True))


def test_independent_equals_separate_runs_to_the_bit(run: Run) -> None:
    shared = (
        "balancer=independent", "trainer.max_epochs=8", "trainer.gradient_clip_val=0.1",
        "callbacks.per_task.patience=1", "optimizer.lr=0.01", "scheduler=cosine",
    )  # fmt: skip
    _, together = run("together", *shared)
    stopped_at = []
    for task in ("left", "right"):
        _, alone = run(task, *shared, f"tasks=[{task}]")
        for metric in ("accuracy", "macro_f1"):
            assert together["test"][f"{task}/{metric}"] == alone["test"][f"{task}/{metric}"]
            assert together["val"][f"{task}/{metric}"] == alone["val"][f"{task}/{metric}"]
        assert together["val"][f"loss/{task}"] == alone["val"][f"loss/{task}"]
        assert together["selected"]["tasks"][task] == alone["selected"]["tasks"][task]
        stopped_at.append(alone["epochs"])
    # The run lasts as long as its longest task, and stopping was put to the test.
    assert together["epochs"] == max(stopped_at)
    assert min(stopped_at) < 8


def test_independent_needs_its_callbacks(run: Run) -> None:
    with pytest.raises(ValueError, match="callbacks=independent"):
        run("a", "sharing=independent", "callbacks=default")
    with pytest.raises(ValueError, match="callbacks=default"):
        run("b", "callbacks=independent")


def test_a_finished_run_is_not_run_again_and_another_one_is_refused(run: Run, tmp_path: Path) -> None:
    run_dir, first = run("a", "trainer.max_epochs=1")
    value = train(config("trainer.max_epochs=1"), run_dir=run_dir)
    assert value == first["selected"]["value"]
    assert read_summary(run_dir) == first
    with pytest.raises(ValueError, match=r"another configuration: seed was 0 and is 1\. Choose"):
        train(config("trainer.max_epochs=1", "seed=1"), run_dir=run_dir)
    # Two devices would take twice the batch.
    with pytest.raises(ValueError, match=r"another configuration: trainer.devices was 1 and is 2\. Choose"):
        train(config("trainer.max_epochs=1", "trainer.devices=2"), run_dir=run_dir)


def test_early_stopping_and_loss_scale(run: Run) -> None:
    _, summary = run(
        "a", "callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0",
        "trainer.max_epochs=9", "loss_scale=initial",
    )  # fmt: skip
    assert summary["epochs"] == 2  # the first validation, and one without improvement


def test_losses_may_be_scaled_by_their_initial_values(run: Run) -> None:
    run_dir, _ = run("a", "loss_scale=initial", "optimizer.lr=0", "trainer.max_epochs=1", "data.batch_size=96")
    assert curves(run_dir).loc[0, ["train/loss/left", "train/loss/right"]].tolist() == [1.0, 1.0]


def test_a_failed_run_says_why(run: Run, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"Non-finite loss of task .* at step"):
        run("a", "optimizer=sgd", "optimizer.lr=1e30")
    summary = read_summary(tmp_path / "a")
    assert summary["status"] == "failed"
    assert summary["error"].startswith("FloatingPointError: Non-finite loss of task")


def test_a_checkpoint_of_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    other, _ = run("other", "encoder.features=20", "trainer.max_epochs=1")
    mine = tmp_path / "mine" / "checkpoints"
    mine.mkdir(parents=True)
    (mine / "last.ckpt").write_bytes((other / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.raises(ValueError, match=r"of another model: .* entries differ"):
        run("mine")
    (mine / "last.ckpt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no checkpoint that can be read"):
        run("mine")


def test_bf16(run: Run) -> None:
    _, summary = run("a", "trainer.precision=bf16-mixed", "balancer=mgda")
    assert summary["status"] == "finished"


def test_head_learning_rates(run: Run) -> None:
    run_dir, _ = run("a", "head_lr={left:0}", "trainer.max_epochs=1", "optimizer.weight_decay=0.1")
    before, _ = run("b", "head_lr=0", "optimizer.lr=0", "trainer.max_epochs=1")
    trained, fresh = weights(run_dir), weights(before)
    assert torch.equal(trained["model.heads.left.layers.0.weight"], fresh["model.heads.left.layers.0.weight"])
    assert not torch.equal(trained["model.heads.right.layers.0.weight"], fresh["model.heads.right.layers.0.weight"])
    with pytest.raises(ValueError, match="head_lr names"):
        run("c", "head_lr={middle:0.1}")


def test_wandb_makes_one_run_of_each_job(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    dirs = [run(name, "logger=wandb", f"seed={seed}", "trainer.max_epochs=1")[0] for seed, name in enumerate("ab")]
    for run_dir in dirs:
        (folder,) = (run_dir / "wandb").glob("offline-run-*")
        (history,) = folder.glob("run-*.wandb")
        wanted = (b"multidigits/equal", b"val/left/accuracy", b"weight/right", b"val/score", b"batch_size")
        deadline = time.monotonic() + 60  # a process of W&B's own writes the file, and may lag behind on a busy machine
        while not all(text in history.read_bytes() for text in wanted) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [text for text in wanted if text not in history.read_bytes()] == []


def test_tensorboard(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir, summary = run("a", "logger=tensorboard", "trainer.log_every_n_steps=1")
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"val/score", "val/left/accuracy", "weight/left", "train/loss/right", "step/loss/left"} <= tags
    assert [point.step for point in events.Scalars("step/loss/left")] == list(range(6))
    assert events.Scalars("test/score")[-1].value == pytest.approx(summary["test"]["score"])


@pytest.mark.parametrize("balancer", ["pcgrad", "independent"])
def test_fast_dev_run_tries_everything_once(run: Run, balancer: str) -> None:
    _, summary = run("a", "trainer.fast_dev_run=true", f"balancer={balancer}")
    assert summary["status"] == "finished"
    assert summary["steps"] == 1
    assert "left/accuracy" in summary["test"]


def test_what_a_trainers_node_leaves_out_is_lightnings_default(run: Run) -> None:
    left_out = ("accumulate_grad_batches", "num_nodes", "log_every_n_steps", "enable_progress_bar")
    overrides = [f"~trainer.{name}" for name in left_out]
    check(config(*overrides))
    assert run("a", *overrides, "trainer.max_epochs=1")[1]["status"] == "finished"


def test_other_strategies_are_refused() -> None:
    """Past the command line's own check too."""
    with pytest.raises(ValueError, match="strategy='zero': expected auto, ddp or fsdp"):
        make_trainer(strategy="zero")
    with pytest.raises(ValueError, match="2 devices take as many processes, and this is one alone"):
        make_trainer(devices=2, accelerator="cpu")
    module = SimpleNamespace(trainer=SimpleNamespace(strategy=DDPStrategy()))
    with pytest.raises(ValueError, match=r"DDPStrategy runs its own backward pass.*make_trainer"):
        MultiTaskModule.on_fit_start(module)  # type: ignore[arg-type]
