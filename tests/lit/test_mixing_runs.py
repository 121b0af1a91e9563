"""Two datasets of different sizes trained together: sampled mixings from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from mtlbench.confdir import conf_dir
from mtlbench.results.records import read_summary
from mtlbench.train import train
from tests.lit.runs import curves, killed, last, weights

SIZES = {"large": 96, "small": 24}
BENCHMARK = """
name: pair
datasets:
  large: {path: {train: pair/large_train.csv, val: pair/large_val.csv, test: pair/large_test.csv},
          input: {type: vector, columns: [u, v], standardize: false}}
  small: {path: {train: pair/small_train.csv, val: pair/small_val.csv, test: pair/small_test.csv},
          input: {type: vector, columns: [u, v], standardize: false}}
tasks:
  side: {type: classification, dataset: large, column: side}
  height: {type: regression, dataset: small, column: height}
"""
Train = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., DictConfig]:
    folder = tmp_path / "data" / "pair"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, size in SIZES.items():
            table = pd.DataFrame(random.normal(size=(size, 2)), columns=["u", "v"])
            table["side"] = np.where(table["u"] > table["v"], "right", "left")
            table["height"] = 2 * table["u"] - table["v"]
            table.to_csv(folder / f"{name}_{split}.csv", index=False)

    def make(*overrides: str) -> DictConfig:
        given = (
            "encoder=mlp", f"data.dir={tmp_path / 'data'}", "data.batch_size=8", "trainer.max_epochs=3",
            "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "threads=1", "optimizer.lr=0.01",
        )  # fmt: skip
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("train", overrides=[*given, *overrides])
        OmegaConf.set_struct(cfg, False)
        cfg.benchmark = OmegaConf.create(BENCHMARK)
        return cfg

    return make


@pytest.fixture
def run(make_config: Callable[..., DictConfig], tmp_path: Path) -> Train:
    def go(name: str, *overrides: str) -> tuple[Path, dict[str, Any]]:
        train(make_config(*overrides), run_dir=tmp_path / name)
        return tmp_path / name, read_summary(tmp_path / name)

    return go


def test_proportional_mixing_and_what_it_drew(run: Train) -> None:
    run_dir, summary = run("a", "mixing=proportional", "balancer=equal")
    assert summary["status"] == "finished"
    assert (summary["steps"], summary["examples_seen"]) == (3 * 15, 3 * 15 * 8)
    rows = pd.read_csv(run_dir / "metrics.csv")
    assert (rows["drawn/large"] + rows["drawn/small"] == 120).all()
    assert (rows["drawn/large"] > 2 * rows["drawn/small"]).all()
    from mtlbench.data.mixing.proportional import Proportional

    mixing = Proportional(sizes=SIZES, batch_size=8, seed=0)
    expected = [(8 * mixing.counts(epoch).sum(0)).tolist() for epoch in range(3)]
    assert rows[["drawn/large", "drawn/small"]].to_numpy().tolist() == expected


def test_every_epoch_of_joint_mixing_is_counted_too(run: Train) -> None:
    run_dir, _ = run("a")
    rows = pd.read_csv(run_dir / "metrics.csv")
    assert rows["drawn/large"].tolist() == rows["drawn/small"].tolist() == [96, 96, 96]


@pytest.mark.parametrize("options", [(), ("mixing.group_steps=1",)])
def test_a_balancer_that_needs_all_tasks_refuses_steps_without_some(run: Train, options: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"PCGrad compares the gradients of all tasks.*mixing.group_steps=2"):
        run("a", "mixing=proportional", "balancer=pcgrad", *options)


@pytest.mark.parametrize("mixing", ["proportional", "round_robin"])
def test_groups_of_steps_are_balanced_as_one(run: Train, monkeypatch: pytest.MonkeyPatch, mixing: str) -> None:
    from mtlbench.balancing.pcgrad import PCGrad

    rows: list[tuple[int, bool]] = []
    forward = PCGrad.forward

    def seen(self: PCGrad, first: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        rows.append((first.shape[-1], kwargs["active"] is None))
        return forward(self, first, *args, **kwargs)

    monkeypatch.setattr(PCGrad, "forward", seen)
    run_dir, summary = run(
        "a", f"mixing={mixing}", "mixing.group_steps=4", "balancer=pcgrad", "mixing.steps_per_epoch=5"
    )
    assert summary["steps"] == len(rows) == 15
    assert all(everyone for _, everyone in rows)
    drawn = pd.read_csv(run_dir / "metrics.csv")[["drawn/large", "drawn/small"]]
    assert (drawn.sum(axis=1) == 5 * 4 * 8).all()
    assert drawn.min().min() >= 5 * 8


def test_a_group_equals_the_same_draws_accumulated(run: Train) -> None:
    """One step of a whole cycle is that of its micro-batches, which the engine sums into one Jacobian."""
    shared = ("mixing=round_robin", "trainer.precision=64-true", "trainer.max_epochs=1", "balancer=equal")
    one, first = run("one", *shared, "mixing.group_steps=4", "mixing.steps_per_epoch=3")
    four, second = run("four", *shared, "mixing.steps_per_epoch=12", "trainer.accumulate_grad_batches=4")
    assert first["steps"] == second["steps"] == 3
    states = [last(folder)["state_dict"] for folder in (one, four)]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "overrides", [("mixing=annealed", "balancer=uncertainty"), ("mixing=uniform", "mixing.group_steps=3")]
)
def test_killed_within_an_epoch_and_resumed_equals_uninterrupted(
    make_config: Callable[..., DictConfig],
    run: Train,
    overrides: tuple[str, ...],
    tmp_path: Path,
) -> None:
    overrides = (*overrides, "mixing.steps_per_epoch=7", "callbacks.last.every_n_steps=2", "head.dropout=0.2")
    whole, reference = run("whole", *overrides)
    checkpoint = killed(make_config(*overrides), run_dir=tmp_path / "killed", at=(1, 4))
    assert checkpoint["global_step"] == 10  # the third of the second epoch
    train(make_config(*overrides), run_dir=tmp_path / "killed")
    resumed = read_summary(tmp_path / "killed")
    first, second = weights(whole), weights(tmp_path / "killed")
    assert all(torch.equal(first[key], second[key]) for key in first)
    pd.testing.assert_frame_equal(curves(whole), curves(tmp_path / "killed"), check_exact=True)
    assert resumed["test"] == reference["test"]
    assert resumed["examples_seen"] == reference["examples_seen"]


@pytest.mark.parametrize("balancer", ["independent", "dwa"])
def test_tasks_that_some_steps_leave_out(run: Train, balancer: str) -> None:
    _, summary = run("a", "mixing=uniform", f"balancer={balancer}", "trainer.max_epochs=8", "loss_scale=initial")
    assert summary["test"]["side/accuracy"] > 0.8
    assert summary["test"]["score"] > 0.6


def test_formulas_are_given_on_the_command_line(run: Train) -> None:
    run_dir, _ = run("a", "mixing=formula", "mixing.formulas={large: 'max(0, 15 - step)', small: 1}")
    drawn = pd.read_csv(run_dir / "metrics.csv")[["drawn/large", "drawn/small"]].to_numpy().tolist()
    assert drawn[0][0] > 60
    assert drawn[1:] == [[0, 120], [0, 120]]


def test_vectors_have_no_lengths_to_sort_by(run: Train) -> None:
    with pytest.raises(ValueError, match=r"inputs of \['large', 'small'\] all have the same.*mixing.bucket=1"):
        run("a", "mixing.bucket=4")


@pytest.mark.parametrize("option", ["trainer.fast_dev_run=true", "trainer.num_sanity_val_steps=1"])
def test_a_few_batches_of_several_datasets_are_tried_out(run: Train, option: str) -> None:
    """The first ones of an evaluation are of its first dataset."""
    _, summary = run("a", option)
    assert {"side/accuracy", "height/rmse"} <= summary["test"].keys()


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_networks_without_labels_in_a_step_are_not_clipped(run: Train, algorithm: str) -> None:
    given = ("balancer=equal", "sharing=independent", "mixing=round_robin", "trainer.gradient_clip_val=0.1")
    _, summary = run("a", *given, f"trainer.gradient_clip_algorithm={algorithm}")
    assert summary["status"] == "finished"
