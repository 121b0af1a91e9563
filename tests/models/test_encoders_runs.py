"""Whole runs with transformers of several kinds, on a few sentences in the layout of SST-2."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from mtlbench.data.text import train_tokenizer
from tests.conftest import config

Run = Callable[..., tuple[Path, dict[str, Any]]]
QUICK = ("benchmark=sst2", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "data.batch_size=8")
FRESH = ("encoder.tokenizer.min_frequency=1", "optimizer.lr=0.01", "trainer.max_epochs=8")
TINY = "encoder.config={hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Sentences whose sentiment follows from one word."""
    rows = [
        {"text": f"{what} was {how} {end}", "label": int(how in ("great", "fine"))}
        for what in ("the film", "a plot")
        for how in ("great", "fine", "bad", "dull")
        for end in (".", "!", "indeed", "to me")
    ]
    folder = tmp_path / "data" / "nlp" / "sst2"
    folder.mkdir(parents=True)
    for number, name in enumerate(("train", "dev", "test")):
        part = [{**row, "text": f"{row['text']} {number}"} for row in rows]
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in part)
    return tmp_path / "data"


def test_a_decoder_only_encoder_with_adapters_learns(run: Run, data_dir: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    gpt2 = (*QUICK, *FRESH, f"data.dir={data_dir}", "encoder.architecture=gpt2", TINY)
    run_dir, summary = run(
        "a", *gpt2, "head.pooling=last", "encoder.lora={r: 4, alpha: 8, target_modules: [c_attn, c_fc]}",
        "layer_lr_decay=0.9", "encoder.gradient_checkpointing=true", "head_lr=0.05", tiny=False,
    )  # fmt: skip
    losses = pd.read_csv(run_dir / "metrics.csv")["train/loss/sentiment"]
    assert losses.iloc[-1] < losses.iloc[0]
    assert summary["status"] == "finished"
    with pytest.raises(ValueError, match=r"sentiment would be told .*head.pooling=last"):
        run("b", *gpt2, tiny=False)


def test_the_encoder_of_an_encoder_decoder_model_learns(run: Run, data_dir: Path) -> None:
    t5 = (
        *QUICK,
        *FRESH,
        f"data.dir={data_dir}",
        "encoder.architecture=t5",
        TINY,
        "+encoder.config={d_kv: 8, d_ff: 32}",
    )
    _, summary = run(
        "a", *t5, "head.pooling=mean", "encoder.dropout=0.0", "trainer.max_epochs=20", "data.max_length=600", tiny=False
    )
    assert summary["test"]["sentiment/accuracy"] == 1.0
    assert summary["parameters"] < 9_000  # a decoder's would come on top


def test_texts_longer_than_the_positions_are_refused(run: Run, data_dir: Path) -> None:
    small = (*QUICK, *FRESH, f"data.dir={data_dir}", TINY)
    with pytest.raises(ValueError, match=r"data.max_length=64, and bert has 32 positions: say 32 or less"):
        run("a", *small, "encoder.config.max_position_embeddings=32", "data.max_length=64", tiny=False)


def gpt2_folder(folder: Path, *, vocabulary: int) -> Path:
    words = [
        "<|endoftext|>",
        "the",
        "film",
        "a",
        "plot",
        "was",
        "great",
        "fine",
        "bad",
        "dull",
        ".",
        "!",
        "indeed",
        "to",
        "me",
        "0",
        "1",
        "2",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[0], unk_token=words[0]).save_pretrained(folder)
    settings = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    AutoModel.from_config(AutoConfig.for_model("gpt2", vocab_size=vocabulary, **settings)).save_pretrained(folder)
    return folder


def test_a_tokenizer_without_pad_token(run: Run, data_dir: Path, tmp_path: Path) -> None:
    """GPT-2's: refused with the way out, and the way out works."""
    folder = gpt2_folder(tmp_path / "gpt2", vocabulary=20)
    given = (*QUICK, f"data.dir={data_dir}", "encoder=pretrained", f"encoder.model={folder}", "trainer.max_epochs=1")
    with pytest.raises(ValueError, match=r"no pad token.*\+encoder.tokenizer.pad_token='<\|endoftext\|>'"):
        run("a", *given, "head.pooling=last", tiny=False)
    pad = "+encoder.tokenizer.pad_token='<|endoftext|>'"
    assert run("b", *given, "head.pooling=last", pad, tiny=False)[1]["status"] == "finished"


def test_a_vocabulary_that_does_not_fit(run: Run, data_dir: Path, tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "gpt2", vocabulary=10)
    with pytest.raises(ValueError, match="embeds 10 tokens, but its tokenizer knows 18"):
        run(
            "a", *QUICK, f"data.dir={data_dir}", "encoder=pretrained", f"encoder.model={folder}", "head.pooling=last",
            "+encoder.tokenizer.pad_token='<|endoftext|>'", tiny=False,
        )  # fmt: skip


def test_sentiment_finetune(run: Run, data_dir: Path, tmp_path: Path) -> None:
    """The protocol, and a run of it with a folder in place of the hub's model."""
    cfg = config("experiment=sentiment_finetune", tiny=False)
    assert cfg.encoder.model == cfg.encoder.tokenizer.name_or_path == "distilbert/distilbert-base-uncased"
    assert (cfg.benchmark.name, list(cfg.benchmark.tasks)) == ("sst2", ["sentiment"])
    assert (cfg.trainer.max_epochs, cfg.data.batch_size, cfg.data.eval_batch_size) == (3, 16, 64)
    assert (cfg.scheduler.name, cfg.scheduler.warmup, cfg.optimizer.weight_decay) == ("linear", 500, 0.01)

    folder = tmp_path / "model"
    tokenizer = train_tokenizer(["the film a plot was great fine bad dull . ! indeed to me 0 1 2"], vocab_size=200)
    tokenizer.save_pretrained(folder)
    settings = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    made = AutoConfig.for_model("distilbert", vocab_size=len(tokenizer), **settings)
    AutoModel.from_config(made).save_pretrained(folder)
    overrides = ("experiment=sentiment_finetune", f"encoder.model={folder}", f"data.dir={data_dir}")
    run_dir, summary = run("a", *overrides, *QUICK[1:3], "encoder.freeze.blocks=1", tiny=False)
    assert (summary["epochs"], summary["steps"]) == (3, 6)
    assert list(pd.read_csv(run_dir / "metrics.csv")["lr"]) == pytest.approx([1e-7 * 2, 1e-7 * 4, 1e-7 * 6])
