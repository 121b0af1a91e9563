"""Text benchmarks from end to end, on a few sentences in the layout of SNIPS."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

Run = Callable[..., tuple[Path, dict[str, Any]]]
TEXT = ("benchmark=snips", "trainer.enable_progress_bar=false", "data.batch_size=16")
SMALL = (
    "encoder.config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
    "encoder.tokenizer.min_frequency=1",
    "optimizer.lr=0.01",
)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Sentences whose intent and slots follow from their words."""
    rows = []
    for place in ("paris", "new york", "rome", "oslo"):
        for ask in ("weather in", "forecast for"):
            tags = ["B-city", "I-city"][: len(place.split())]
            rows.append({"tokens": f"{ask} {place}".split(), "slots": ["O", "O", *tags], "intent": "GetWeather"})
        for verb in ("play jazz from", "play songs from"):
            tags = ["B-city", "I-city"][: len(place.split())]
            rows.append({"tokens": f"{verb} {place}".split(), "slots": ["O", "O", "O", *tags], "intent": "PlayMusic"})
    folder = tmp_path / "data" / "nlp" / "snips"
    folder.mkdir(parents=True)
    for name in ("train", "dev", "test"):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return tmp_path / "data"


def test_intent_and_slots(run: Run, data_dir: Path) -> None:
    run_dir, summary = run(
        "a", *TEXT, *SMALL, f"data.dir={data_dir}", "balancer=pcgrad", "trainer.max_epochs=30", tiny=False
    )
    assert summary["test"]["intent/accuracy"] == 1.0
    assert summary["test"]["slots/f1"] == 1.0
    assert summary["test"]["snips/sentence_accuracy"] == 1.0
    assert summary["extra_metrics"] == {"snips/sentence_accuracy": {"higher_is_better": True}}
    predictions = pd.read_parquet(run_dir / "predictions.parquet")
    slots = predictions[predictions["task"] == "slots"]["prediction"].map(json.loads)
    assert ["O", "O", "B-city", "I-city"] in slots.tolist()


def test_a_pretrained_model_from_a_folder(run: Run, data_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    from mtlbench.data.text import train_tokenizer

    folder = tmp_path / "model"
    tokenizer = train_tokenizer(
        ["play jazz songs from weather in forecast for paris new york rome oslo"], vocab_size=200
    )
    tokenizer.save_pretrained(folder)
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=len(tokenizer), **settings)).save_pretrained(folder)
    overrides = ("encoder=pretrained", f"encoder.model={folder}", "optimizer.lr=0.01", f"data.dir={data_dir}")
    _, summary = run("a", *TEXT, *overrides, "trainer.max_epochs=2", tiny=False)
    assert summary["status"] == "finished"
    _, again = run("b", *TEXT, *overrides, "trainer.max_epochs=2", tiny=False)
    assert again["test"] == summary["test"]


def test_an_encoder_that_takes_no_text_is_refused(run: Run, data_dir: Path) -> None:
    with pytest.raises(ValueError, match="brings no tokenizer"):
        run("a", *TEXT, f"data.dir={data_dir}", "encoder=mlp", tiny=False)
