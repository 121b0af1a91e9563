"""Masked language modelling beside a classification, from end to end, on a few sentences in the layout of SST-2."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mtlbench.inference import TrainedModel
from mtlbench.lit.module import MultiTaskModule
from mtlbench.results.records import read_summary
from mtlbench.train import train
from tests.conftest import config
from tests.lit.runs import killed, weights

Run = Callable[..., tuple[Path, dict[str, Any]]]
KINDS = {"good": 1, "fine": 1, "great": 1, "bad": 0, "dull": 0, "poor": 0}
CONFIG = "encoder.config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}"
SMALL = (
    "benchmark=sentiment_mlm", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "threads=1",
    "data.batch_size=8", "optimizer.lr=0.01", "encoder.tokenizer.min_frequency=1", CONFIG,
)  # fmt: skip


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    folder = tmp_path / "data" / "nlp" / "sst2"
    folder.mkdir(parents=True)
    nouns = {"train": ("film", "plot", "cast", "end"), "dev": ("score", "scene"), "test": ("story", "actor")}
    for split, names in nouns.items():
        with gzip.open(folder / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            for name in names:
                for word, label in KINDS.items():
                    file.write(json.dumps({"text": f"the {name} is a {word} one , so {word}", "label": label}) + "\n")
    return f"data.dir={tmp_path / 'data'}"


def test_both_are_learnt_and_the_main_task_selects(run: Run, data_dir: str) -> None:
    run_dir, summary = run("a", *SMALL, data_dir, "balancer=pcgrad", "trainer.max_epochs=15", tiny=False)
    assert summary["test"]["sentiment/accuracy"] == 1.0
    assert summary["selected"]["monitor"] == "val/sentiment/accuracy"
    metrics = summary["tasks"]["mlm"]["metrics"]
    assert metrics == {"token_accuracy": {"higher_is_better": True}, "perplexity": {"higher_is_better": False}}
    curves = pd.read_csv(run_dir / "metrics.csv")
    assert curves["train/loss/mlm"].iloc[-1] < 0.6 * curves["train/loss/mlm"].iloc[0]
    rows = pd.read_parquet(run_dir / "predictions.parquet").query("task == 'mlm'")
    assert all(len(json.loads(row.target)) == len(json.loads(row.prediction)) > 0 for row in rows.itertuples())
    model = TrainedModel.from_run(run_dir)
    texts = ["the story is a dull one , so dull", "the story is a fine one , so fine"]
    assert [answer["sentiment"]["label"] for answer in model.predict(texts, task="all")] == ["0", "1"]
    with pytest.raises(ValueError, match="an auxiliary task of training, with nothing to predict"):
        model.predict(["a dull one"], task="mlm")


@pytest.mark.parametrize("mixing", [(), ("mixing=proportional", "mixing.group_steps=2")])
def test_killed_within_an_epoch_and_resumed_equals_uninterrupted(
    run: Run, data_dir: str, tmp_path: Path, mixing: tuple[str, ...]
) -> None:
    given = (*SMALL, data_dir, *mixing, "trainer.max_epochs=2", "callbacks.last.every_n_steps=1", "balancer=pcgrad")
    whole, reference = run("whole", *given, tiny=False)
    workers, _ = run("workers", *given, "data.num_workers=2", tiny=False)
    killed(config(*given, tiny=False), run_dir=tmp_path / "killed", at=(1, 2))
    train(config(*given, tiny=False), run_dir=tmp_path / "killed")
    for other in (workers, tmp_path / "killed"):
        assert all(torch.equal(value, weights(other)[key]) for key, value in weights(whole).items())
    assert read_summary(tmp_path / "killed")["test"] == reference["test"]


def test_each_micro_batch_is_masked_by_itself(run: Run, data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    step = MultiTaskModule.training_step

    def looks(self: MultiTaskModule, batch: Any, batch_idx: int) -> torch.Tensor:
        seen.append(batch["sst2_text"]["targets"]["mlm"] != -100)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(MultiTaskModule, "training_step", looks)
    _, summary = run(
        "a", *SMALL, data_dir, "data.batch_size=6", "trainer.accumulate_grad_batches=4", "trainer.max_epochs=1",
        tiny=False,
    )  # fmt: skip
    assert (summary["steps"], len(seen)) == (1, 4)
    assert len({tuple(map(tuple, mask.tolist())) for mask in seen}) == 4


def test_a_sampled_mixing_leaves_it_out_of_some_steps(run: Run, data_dir: str) -> None:
    _, summary = run("a", *SMALL, data_dir, "mixing=uniform", "trainer.max_epochs=2", tiny=False)
    assert summary["status"] == "finished"


@pytest.mark.parametrize("balancer", ["independent", "gradnorm"])
def test_other_ways_of_balancing(run: Run, data_dir: str, balancer: str) -> None:
    _, summary = run("a", *SMALL, data_dir, f"balancer={balancer}", "trainer.max_epochs=1", tiny=False)
    assert summary["status"] == "finished"


def test_a_decoder_only_encoder_is_refused(run: Run, data_dir: str) -> None:
    with pytest.raises(ValueError, match="decoder-only: a position sees no word after it, and mlm tells"):
        run("a", *SMALL, data_dir, "encoder.architecture=gpt2", "head.pooling=last", tiny=False)
