"""Exported folders give plain transformers the same outputs, without mtlbench."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtlbench.inference import load
from mtlbench.inference.export import SEQUENCE, export
from tests.inference.conftest import Trained, pretrained_folder
from tests.inference.test_trained import PAIRS

TEXTS = ["weather in rome", "play jazz from new york", "forecast for"]
SETTINGS = {"distilbert": "+encoder.config.hidden_dim=32", "electra": "+encoder.config.embedding_size=8"}


def library_run(train_run: Trained, architecture: str) -> Path:
    """A run whose sequence heads have the form of the library's."""
    overrides = [f"encoder.architecture={architecture}"]
    if architecture in SETTINGS:
        overrides.append(SETTINGS[architecture])
    head = f"{{hidden: [16], activation: {SEQUENCE[architecture].activation}}}"
    return train_run(*overrides, *(f"+benchmark.tasks.{task}.head={head}" for task in ("intent", "length", "traits")))


@pytest.mark.parametrize("architecture", SEQUENCE)
def test_plain_transformers_gives_the_same(architecture: str, train_run: Trained, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

    run_dir = library_run(train_run, architecture)
    trained = load(run_dir)
    for task in trained.tasks:
        out = export(run_dir, task=task, out=tmp_path / task)
        auto = AutoModelForTokenClassification if task == "slots" else AutoModelForSequenceClassification
        tokenizer, (model, info) = (
            AutoTokenizer.from_pretrained(out),
            auto.from_pretrained(out, output_loading_info=True, use_safetensors=True),
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        words = [text.split() for text in TEXTS]
        inputs = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            theirs = model.eval()(**inputs).logits
        ours = trained.outputs(TEXTS, task=task)
        if task == "length":  # in units of the target
            ours = trained.tasks[task].predict(ours)[:, None]
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
        assert tuple(model.config.id2label.values()) == (trained.tasks[task].info.labels or ("length",))
    assert model.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta"])
def test_pairs(architecture: str, train_run: Trained, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    head = f"{{hidden: [16], activation: {SEQUENCE[architecture].activation}}}"
    folder = pretrained_folder(tmp_path / "model", architecture)
    encoder = ("encoder=pretrained", f"encoder.model={folder}", f"+benchmark.tasks.intent.head={head}")
    run_dir = train_run(*PAIRS, encoder=encoder)
    out = export(run_dir, task="intent", out=tmp_path / "out")
    asks, places = ["play jazz from", "weather in"], ["new york", "rome"]
    inputs = AutoTokenizer.from_pretrained(out)(asks, places, padding=True, return_tensors="pt")
    theirs = AutoModelForSequenceClassification.from_pretrained(out)(**inputs).logits
    ours = load(run_dir).outputs(list(zip(asks, places, strict=True)), task="intent")
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert ("token_type_ids" in inputs) == (architecture != "distilbert")


def test_the_card(train_run: Trained, tmp_path: Path) -> None:
    card = (export(library_run(train_run, "bert"), task="intent", out=tmp_path / "out") / "README.md").read_text()
    for part in ("library_name: transformers", "BertForSequenceClassification", "| accuracy |", "benchmark=snips"):
        assert part in card
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_what_the_library_can_not_express_is_refused(trained: Path, train_run: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\+benchmark\.tasks\.intent\.head=\{pooling: first, hidden: \[16\], activ"):
        export(trained, task="intent", out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="no task 'all'"):
        export(trained, task="all", out=tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="not empty"):
        export(trained, task="slots", out=tmp_path / "full")


def test_independent_networks_export_their_own_encoder(train_run: Trained, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    run_dir = train_run("sharing=independent", "callbacks=independent", epochs=3)
    out = export(run_dir, task="slots", out=tmp_path / "slots")
    inputs = AutoTokenizer.from_pretrained(out)(TEXTS, padding=True, return_tensors="pt")
    theirs = AutoModelForTokenClassification.from_pretrained(out)(**inputs).logits
    assert torch.allclose(load(run_dir).outputs(TEXTS, task="slots"), theirs, rtol=0, atol=1e-5)
