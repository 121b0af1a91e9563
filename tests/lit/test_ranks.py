"""Whole runs on several ranks, each with a part of every batch, equal those of one rank with the whole of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.fabric.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import nn

from mtlbench import fit
from mtlbench.lit.ddp import EngineDDP, digest
from mtlbench.lit.devices import average_statistics
from mtlbench.processes import OWN, free_port
from mtlbench.results.records import read_summary
from mtlbench.train import train
from tests.conftest import config
from tests.lit.runs import curves, killed, last, weights

# Of 97 rows in batches of 32, the last step has a single one: the other ranks have none.
DIGITS = (
    "benchmark.datasets.digits.load.train=97", "callbacks.last.every_n_steps=2", "trainer.gradient_clip_val=0.5",
    "data.eval_batch_size=24", "scheduler=cosine",
)  # fmt: skip
# Texts of different lengths: one task writes, others classify.
WORDS = (
    "benchmark=number_words", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.max_epochs=1",
    "encoder.config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
    "encoder.dropout=0", "mixing.bucket=2", "data.eval_batch_size=8", "trainer.precision=64-true",
    *(f"benchmark.datasets.{name}.load.{split}=30" for name in ("english", "sentences") for split in (
        "train", "val", "test")),
    "benchmark.tasks.translation.max_length=8", "benchmark.tasks.translation.generate_examples=20",
)  # fmt: skip
FSDP = "trainer.strategy=fsdp"
# Two datasets of different sizes, with labels missing here and there.
PAIR = """
name: pair
datasets:
  large: {path: {train: large_train.csv, val: large_val.csv, test: large_test.csv},
          input: {type: vector, columns: [u, v], standardize: false}}
  small: {path: {train: small_train.csv, val: small_val.csv, test: small_test.csv},
          input: {type: vector, columns: [u, v], standardize: false}}
tasks:
  side: {type: classification, dataset: large, column: side}
  up: {type: classification, dataset: large, column: up}
  height: {type: regression, dataset: small, column: height}
"""


class Case(NamedTuple):
    name: str
    overrides: Sequence[str]
    batch_size: int = 32  # of all ranks together
    tolerance: float = 1e-12
    benchmark: str = "digits"


def digits(balancer: str, *more: str, name: str = "", **settings: Any) -> Case:
    return Case(name or balancer, (*DIGITS, f"balancer={balancer}", "trainer.precision=64-true", *more), **settings)


CASES = [
    *(digits(name) for name in ("equal", "uncertainty", "gradnorm", "pcgrad", "graddrop", "dwa", "famo", "rlw")),
    digits("modo", batch_size=16),
    digits("independent", "callbacks.per_task.patience=1", "trainer.max_epochs=4", "optimizer.lr=0.01"),
    digits("cagrad", "trainer.accumulate_grad_batches=2", "engine.normalize=match_equal", name="accumulated"),
    digits("independent", "trainer.accumulate_grad_batches=2", name="apart and accumulated"),
    digits("imtl", "loss_scale=initial", "callbacks=early_stopping", name="scaled by initial losses"),
    Case("float32", (*DIGITS, "balancer=pcgrad"), tolerance=1e-6),
    Case("famo in float32", (*DIGITS, "balancer=famo"), tolerance=1e-6),
    Case("bf16", (*DIGITS, "balancer=mgda", "trainer.precision=bf16-mixed"), tolerance=2e-2),
    Case(
        "missing labels",
        ("mixing=proportional", "mixing.group_steps=2", "balancer=upgrad", "trainer.precision=64-true"),
        batch_size=4,
        benchmark="pair",
    ),
    Case(
        "one dataset a step",
        ("mixing=round_robin", "balancer=equal", "optimizer=sgd", "trainer.precision=64-true"),
        batch_size=2,
        benchmark="pair",
    ),
    Case("texts", (*WORDS, "balancer=uncertainty"), batch_size=8, benchmark="words"),
    *(digits(name, FSDP, name=f"{name} in shards") for name in ("equal", "uncertainty", "famo", "gradnorm")),
    digits("pcgrad", FSDP, "+callbacks.held={_target_: tests.lit.accidents.Held}", name="pcgrad in shards"),
    digits("graddrop", FSDP, "trainer.gradient_clip_algorithm=value", name="values clipped in shards"),
    digits("upgrad", FSDP, "trainer.accumulate_grad_batches=2", "optimizer=sgd", name="accumulated in shards"),
    digits(
        "mgda", FSDP, "+callbacks.thaw={_target_: tests.lit.accidents.Thaw}", "scheduler=constant", name="thawed shards"
    ),
    Case(
        "uneven shards",
        (
            "mixing=proportional",
            "mixing.group_steps=2",
            "balancer=upgrad",
            "trainer.precision=64-true",
            "encoder.hidden=[5]",
            FSDP,
        ),
        batch_size=4,
        benchmark="pair",
    ),
    Case("texts in shards", (*WORDS, "balancer=uncertainty", FSDP), batch_size=8, benchmark="words"),
]


def cfg_of(case: Case, folder: Path, *, ranks: int) -> DictConfig:
    cfg = config(
        *(given for given in case.overrides if ranks > 1 or given != FSDP),
        f"data.batch_size={case.batch_size // ranks}", f"trainer.devices={ranks}", "threads=1",
        *(["encoder=mlp", f"data.dir={folder}"] if case.benchmark == "pair" else []),
        *([f"+callbacks.watch={{_target_: tests.lit.accidents.Watch, path: {folder}/digests_{case.name}.json}}"]
          if ranks > 1 else []),
        tiny=case.benchmark != "words",
    )  # fmt: skip
    if case.benchmark == "pair":
        OmegaConf.set_struct(cfg, False)
        cfg.benchmark = OmegaConf.create(PAIR)
    return cfg


def write_pair(folder: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, size in (("large", 41), ("small", 13)):
            table = pd.DataFrame(random.normal(size=(size, 2)), columns=["u", "v"])
            table["side"] = np.where(table["u"] > table["v"], "right", "left")
            table["up"] = pd.Series(np.where(table["v"] > 0, "yes", "no")).mask(random.random(size) < 0.4)
            table["height"] = (2 * table["u"] - table["v"]).mask(random.random(size) < 0.3)
            table.to_csv(folder / f"{name}_{split}.csv", index=False)


def join(rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        OWN: f"{rank}/{size}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank),
    }  # fmt: skip


def work(rank: int, size: int, port: int, folder: Path, cases: Sequence[Case]) -> None:
    """One rank's process: all runs, one after the other; the second is killed between two steps and goes on."""
    join(rank, size, port)
    for case in cases:
        cfg = cfg_of(case, folder, ranks=size)
        if case.name in ("pcgrad", "famo in shards"):
            killed(cfg, run_dir=folder / case.name, at=(1, 1))
        train(cfg, run_dir=folder / case.name)
    batch_norm(rank, folder)
    other_weights(rank, size)
    dist.destroy_process_group()


def batch_norm(rank: int, folder: Path) -> None:
    norms = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    norms(torch.arange(12.0).view(4, 3) * (rank + 1))
    average_statistics(norms)
    if rank == 0:
        torch.save(norms.state_dict(), folder / "norms.pt")
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, digest(norms))
    assert len(set(found)) == 1


def other_weights(rank: int, size: int) -> None:
    """Ranks that do not start alike are refused."""
    strategy = EngineDDP(timeout=60)
    strategy.cluster_environment = LightningEnvironment()
    strategy.cluster_environment.set_world_size(size)
    torch.manual_seed(rank)
    strategy.model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="differs from that of rank 0 before the first step"):
        strategy.configure_ddp()


def on_ranks(size: int, cases: Sequence[Case], folder: Path) -> Path:
    write_pair(folder)
    mp.spawn(work, args=(size, free_port(), folder, cases), nprocs=size)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_ranks(2, CASES, tmp_path_factory.mktemp("two"))


def check(case: Case, folder: Path, alone: Path, *, ranks: int) -> None:
    cfg = cfg_of(case, folder, ranks=1)
    train(cfg, run_dir=alone)
    here, there = read_summary(folder / case.name), read_summary(alone)
    assert (here["ranks"], there["ranks"]) == (ranks, 1)
    for key in ("status", "steps", "epochs", "examples_seen"):
        assert here[key] == there[key], key
    for (name, a), b in zip(weights(folder / case.name).items(), weights(alone).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=case.tolerance, msg=lambda text, name=name: f"{name}: {text}")
    a, b = (load_file(path / "model.safetensors") for path in (folder / case.name, alone))
    torch.testing.assert_close(a, b, rtol=0, atol=case.tolerance)
    if case.name == "bf16":  # whose predictions may tip over
        return
    exact = case.tolerance < 1e-9
    close = 1e-6 if case.benchmark == "words" else 1e-9  # perplexity is summed in float32
    pd.testing.assert_frame_equal(
        curves(folder / case.name), curves(alone), rtol=close if exact else 1e-4, atol=1e-9 if exact else 1e-5
    )
    assert here["test"] == pytest.approx(there["test"], rel=close if exact else 1e-4)
    a, b = (pd.read_parquet(path / "predictions.parquet") for path in (folder / case.name, alone))
    keys = ["dataset", "row", "task", "target"]
    pd.testing.assert_frame_equal(a[keys], b[keys])
    if exact and case.benchmark != "pair":  # where predictions are numbers
        pd.testing.assert_frame_equal(a, b)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_ranks_equal_one(two: Path, case: Case, tmp_path: Path) -> None:
    check(case, two, tmp_path / "alone", ranks=2)


def test_all_ranks_are_equal_to_the_bit_after_every_step(two: Path) -> None:
    for case in CASES:
        steps = json.loads((two / f"digests_{case.name}.json").read_text())
        assert len({digest for ranks in steps for digest in ranks}) > 1, "nothing was learnt"
        assert all(len(set(ranks)) == 1 for ranks in steps), case.name


def test_each_rank_has_a_part_of_what_is_sharded(two: Path) -> None:
    """Numbers that a rank holds between steps, weights and Adam's two moments of each."""
    whole = sum(value.numel() for name, value in weights(two / "pcgrad in shards").items() if "heads" not in name)
    heads = sum(value.numel() for name, value in weights(two / "pcgrad in shards").items() if "heads" in name)
    held = json.loads((two / "pcgrad in shards" / "held.json").read_text())
    assert sum(held) == 3 * (whole + 2 * heads)
    assert max(held) < 3 * (0.6 * whole + heads)


def test_a_run_in_shards_is_tested_again_by_one_process(two: Path) -> None:
    folder = two / "equal in shards"
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    assert fit.test(cfg, run_dir=folder) == pytest.approx(read_summary(folder)["test"])


def test_a_checkpoint_of_another_number_of_ranks_is_refused(two: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes((two / "pcgrad" / "checkpoints" / "last.ckpt").read_bytes())
    assert last(tmp_path)["ranks"] == 2
    with pytest.raises(ValueError, match="of a run on 2 ranks, and this one has 1"):
        train(config(*CASES[3].overrides), run_dir=tmp_path)


def test_running_statistics_are_the_mean_over_the_ranks(two: Path) -> None:
    x = torch.arange(12.0).view(4, 3)
    found = torch.load(two / "norms.pt")
    torch.testing.assert_close(found["0.running_mean"], 0.1 * (x.mean(0) + 2 * x.mean(0)) / 2)
    torch.testing.assert_close(found["0.running_var"], 0.9 + 0.1 * (x.var(0) + 4 * x.var(0)) / 2)


@pytest.mark.thorough
def test_three_ranks_equal_one(tmp_path: Path) -> None:
    cases = [case._replace(batch_size=24) for case in CASES if case.benchmark == "digits" and case.name != "pcgrad"]
    on_ranks(3, cases, tmp_path)
    for case in cases:
        check(case, tmp_path, tmp_path / f"{case.name} alone", ranks=3)
