"""A finished run predicts as it was tested, and gives features."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from mtlbench.inference import TrainedModel, load
from mtlbench.inference.evaluate import evaluate
from mtlbench.train import train
from tests.conftest import config
from tests.inference.conftest import Trained, pretrained_folder

Run = Callable[..., tuple[Path, dict[str, Any]]]
TEXTS = ["weather in rome", "play jazz from new york", "forecast for oslo"]


def test_each_type_of_task(trained: Path) -> None:
    model = TrainedModel.from_run(trained)
    assert [a["label"] for a in model.predict(TEXTS, task="intent")] == ["GetWeather", "PlayMusic", "GetWeather"]
    assert [a["tags"] for a in model.predict(TEXTS, task="slots")] == [
        ["O", "O", "B-city"],
        ["O", "O", "O", "B-city", "I-city"],
        ["O", "O", "B-city"],
    ]
    assert [a["labels"] for a in model.predict(TEXTS, task="traits")] == [[], ["big", "music"], []]
    assert [round(a["value"]) for a in model.predict(TEXTS, task="length")] == [3, 5, 3]
    probabilities = model.predict(TEXTS[:1], task="intent")[0]["probabilities"]
    assert set(probabilities) == {"GetWeather", "PlayMusic"}
    assert sum(probabilities.values()) == pytest.approx(1)


def test_predictions_are_those_of_the_test(trained: Path, data_dir: Path) -> None:
    model = load(trained)
    rows = pd.read_json(data_dir / "nlp" / "snips" / "test.jsonl.gz", lines=True)
    recorded = pd.read_parquet(trained / "predictions.parquet")
    read = {"intent": lambda a: a["label"], "length": lambda a: a["value"], "slots": lambda a: a["tags"]}
    for task, value in read.items():
        answers = model.predict(rows.to_dict("records"), task=task)
        theirs = recorded[recorded["task"] == task].sort_values("row")["prediction"].tolist()
        if task == "length":
            assert [float(v) for v in theirs] == pytest.approx([value(a) for a in answers], abs=1e-5)
        else:
            assert [json.loads(v) if task == "slots" else v for v in theirs] == [value(a) for a in answers]


def test_all_tasks_take_one_pass_of_the_encoder(trained: Path) -> None:
    model = load(trained)
    calls = []
    model.model.sharing.encoder.register_forward_hook(lambda *_: calls.append(1))
    together = model.predict(TEXTS, task="all")
    assert len(calls) == 1
    assert list(together[0]) == ["intent", "slots", "length", "traits"]
    assert [a["intent"]["label"] for a in together] == [a["label"] for a in model.predict(TEXTS, task="intent")]


def test_what_an_example_may_be(trained: Path) -> None:
    model = load(trained)
    forms = ["weather in rome", ["weather", "in", "rome"], {"tokens": ["weather", "in", "rome"]}, {"text": TEXTS[0]}]
    answers = model.predict(forms, task="slots")
    assert all(answer == answers[0] for answer in answers)
    assert model.predict([""], task="slots")[0]["tags"] == []
    assert model.predict([], task="slots") == []
    long = model.predict(["weather " * 100], task="slots")[0]["tags"]
    assert len(long) == 100
    assert long[-1] is None  # beyond data.max_length
    for wrong in (3, ["weather", 3], {"words": "x"}, None, "\udcff"):
        with pytest.raises(ValueError, match=r"^example 2: "):
            model.predict(["weather", wrong], task="intent")
    with pytest.raises(ValueError, match="Did you mean intent"):
        model.predict(TEXTS, task="intents")
    with pytest.raises(ValueError, match="list of examples"):
        model.predict("weather", task="intent")


def test_features(trained: Path) -> None:
    model = load(trained)
    features = model.encode(TEXTS, batch_size=2)
    assert features.shape == (3, 16)
    head = model.model.heads["intent"]
    assert torch.allclose(head.layers(features), model.outputs(TEXTS, task="intent"), atol=1e-5)
    assert not torch.equal(features, model.encode(TEXTS, pooling="mean"))


def test_independent_networks(train_run: Trained) -> None:
    run_dir = train_run("sharing=independent", "callbacks=independent", epochs=3)
    model = load(run_dir)
    assert set(model.predict(TEXTS, task="all")[0]) == {"intent", "slots", "length", "traits"}
    with pytest.raises(ValueError, match="features of its own"):
        model.encode(TEXTS)
    assert model.encode(TEXTS, task="length").shape == (3, 16)


def test_a_pretrained_encoder_is_not_needed_again(train_run: Trained, tmp_path: Path) -> None:
    folder = pretrained_folder(tmp_path / "model", "bert")
    run_dir = train_run(encoder=("encoder=pretrained", f"encoder.model={folder}"))
    shutil.rmtree(folder)
    assert len(load(run_dir).predict(TEXTS, task="intent")) == 3


PAIRS = ("benchmark.datasets.snips.input={column: [ask, place]}", "tasks=[intent,length,traits]")


def test_pairs(train_run: Trained) -> None:
    model = load(train_run(*PAIRS))
    answers = model.predict([("play jazz from", "rome"), {"ask": "play jazz from", "place": "rome"}], task="all")
    assert answers[0] == answers[1]
    assert answers[0] != model.predict([("rome", "play jazz from")], task="all")[0]
    for wrong in ("play jazz", ("a", "b", "c"), {"ask": "play"}):
        with pytest.raises(ValueError, match=r"^example 1: expected (two texts, ask and place|\"place\"), got"):
            model.predict([wrong], task="intent")


def test_vectors(train_run: Trained, data_dir: Path) -> None:
    columns = "{type: vector, columns: [length, size, always], standardize: true}"
    inputs = ("~benchmark.datasets.snips.input.column", f"++benchmark.datasets.snips.input={columns}")
    run_dir = train_run("tasks=[intent]", *inputs, epochs=5, encoder=("encoder=mlp",))
    model = load(run_dir)
    rows = pd.read_json(data_dir / "nlp" / "snips" / "test.jsonl.gz", lines=True)
    answers = model.predict(rows.to_dict("records"), task="intent")
    recorded = pd.read_parquet(run_dir / "predictions.parquet").sort_values("row")
    assert [answer["label"] for answer in answers] == recorded["prediction"].tolist()
    assert model.predict([[4, 16, 3]], task="intent") == model.predict(
        [{"length": 4, "size": 16, "always": 3}], task="intent"
    )
    for wrong in ([1, 2], "x", {"length": 1, "size": None, "always": 3}, [1, 2, float("nan")]):
        with pytest.raises(ValueError, match=r"^example 1: expected 3 numbers"):
            model.predict([wrong], task="intent")


def test_texts_are_generated(tmp_path: Path) -> None:
    small = [
        *("benchmark=number_words", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"),
        *(f"benchmark.datasets.english.load.{split}=40" for split in ("train", "val", "test")),
        *(f"benchmark.datasets.sentences.load.{split}=40" for split in ("train", "val", "test")),
    ]
    train(config(*small, tiny=False), run_dir=tmp_path)
    model = load(tmp_path)
    calls = []
    model.model.sharing.encoder.register_forward_hook(lambda *_: calls.append(1))
    (answers,) = model.predict(["How old are you?"], task="all")
    assert isinstance(answers["translation"]["text"], str)
    assert answers["language"]["label"] in ("en", "de", "fr", "es")
    assert len(calls) == 1  # of two datasets
    assert all(compared.equal for compared in evaluate(tmp_path))


def test_images(run: Run) -> None:
    run_dir, _ = run("digits", "trainer.max_epochs=1", "encoder=lenet")
    model = load(run_dir)
    image = torch.zeros(model.inputs["digits"].shape[1:], dtype=torch.uint8)
    answers = model.predict([image.numpy(), {model.inputs["digits"].columns[0]: image.tolist()}], task="all")
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match=r"example 1: expected an image of shape"):
        model.predict([[[1.0, 2.0]]], task="left")


def test_a_config_from_elsewhere_runs_nothing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    cfg = yaml.safe_load((run_dir / "config.yaml").read_text())
    for target in ("os.system", "mtlbench.models.encoders.transformer.log.info", "mtlbench.data.build.np.load"):
        cfg["sharing"] = {"_target_": target, "command": f"touch {tmp_path / 'ran'}"}
        (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg))
        with pytest.raises(ValueError, match="trust"):
            load(run_dir)
    cfg = yaml.safe_load((trained / "config.yaml").read_text())
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef tables(**given): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for given in ("mine.tables", {"_target_": "mine.tables"}):
        cfg["benchmark"]["datasets"]["snips"]["load"] = given
        (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg))
        with pytest.raises(ValueError, match=r"calls mine\.tables in 'benchmark'.*trust"):
            evaluate(run_dir)
    assert not (tmp_path / "ran").exists()


def test_no_run(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.yaml"):
        load(tmp_path)
    for text, message in (("a: [", "cannot be read"), ("- 1", "expected a mapping with a benchmark")):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=rf"{tmp_path}/config\.yaml .*{message}"):
            load(tmp_path)
    shutil.copy(trained / "config.yaml", tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer/"):
        load(tmp_path)
    shutil.copytree(trained / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"holds no model\.json"):
        load(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match=rf"{tmp_path}/model\.json is not valid JSON"):
        load(tmp_path)
    shutil.copy(trained / "model.json", tmp_path)
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ValueError, match="does not fit"):
        load(tmp_path)
