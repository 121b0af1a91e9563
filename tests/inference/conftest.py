"""One run with a task of each type on a few sentences in the layout of SNIPS, trained once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import config

Trained = Callable[..., Path]
TASKS = (
    "+benchmark.tasks.length={type: regression, dataset: snips, column: length}",
    "+benchmark.tasks.traits={type: multilabel, dataset: snips, column: traits}",
)
SMALL = (
    "benchmark=snips",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "data.batch_size=16",
    "optimizer.lr=0.01",
)
ENCODER = (
    "encoder.config={hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}",
    "encoder.tokenizer.min_frequency=1",
)


def write_data(folder: Path) -> Path:
    """Sentences from whose words all labels follow."""
    rows = []
    for place in ("paris", "new york", "rome", "oslo"):
        city = ["B-city", "I-city"][: len(place.split())]
        for words, intent in (
            ("weather in", "GetWeather"),
            ("forecast for", "GetWeather"),
            ("play jazz from", "PlayMusic"),
            ("play songs from", "PlayMusic"),
        ):
            tokens = f"{words} {place}".split()
            traits = [trait for trait, word in (("music", "play"), ("big", "york")) if word in tokens]
            slots = ["O"] * len(words.split()) + city
            row = {"tokens": tokens, "slots": slots, "intent": intent, "length": len(tokens), "traits": traits}
            rows.append({**row, "ask": words, "place": place, "size": len("".join(tokens)), "always": 3})
    (folder / "nlp" / "snips").mkdir(parents=True)
    for name in ("train", "dev", "test"):
        with gzip.open(folder / "nlp" / "snips" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def pretrained_folder(folder: Path, architecture: str) -> Path:
    """A small model and its tokenizer, which tells the texts of a pair apart."""
    from transformers import AutoConfig, AutoModel

    from mtlbench.data.text import train_tokenizer

    words = "play jazz songs from weather in forecast for paris new york rome oslo"
    tokenizer = train_tokenizer([words], vocab_size=99)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # else it is not saved
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    cfg = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    AutoModel.from_config(cfg).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def train_run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Trained:
    """Trains with overrides, once for the same ones."""
    made: dict[Any, Path] = {}

    def go(*overrides: str, epochs: int = 2, encoder: tuple[str, ...] = ENCODER) -> Path:
        from mtlbench.train import train

        key = (*overrides, epochs, encoder)
        if key not in made:
            given = (*SMALL, *TASKS, *encoder, f"data.dir={data_dir}", f"trainer.max_epochs={epochs}", *overrides)
            made[key] = tmp_path_factory.mktemp("run")
            train(config(*given, tiny=False), run_dir=made[key], overrides=given)
        return made[key]

    return go


@pytest.fixture(scope="session")
def trained(train_run: Trained) -> Path:
    """A run that has learnt its tasks."""
    return train_run(epochs=40)
