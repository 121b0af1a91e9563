"""Bad input at the level of a user's run: an error that says where, or a defined result; never a crash in torch."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from transformers import BertConfig, BertModel

from mtlbench.check import check
from mtlbench.data.subwords import train_bytelevel
from mtlbench.results.records import read_summary
from mtlbench.train import train
from tests.conftest import config

SMALL = (
    "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "threads=1",
    "data.batch_size=8", "data.eval_batch_size=16", "data.max_length=32", "data.overlaps=keep",
)  # fmt: skip
TINY = (
    "encoder.config.hidden_size=16", "encoder.config.num_hidden_layers=1", "encoder.config.intermediate_size=16",
    "encoder.config.max_position_embeddings=64", "encoder.tokenizer.vocab_size=400",
)  # fmt: skip
WORDS = ["one", "two", "three", "four", "five"]
ROWS = [
    {
        "text": f"{WORDS[i % 5]} {WORDS[i * 7 % 5]} {i}",
        "label": "ab"[i % 2],
        "number": i % 7 * 1.0,
        "several": ["p"] if i % 3 else ["p", "q"],
        "answer": WORDS[i % 5],
        "words": [WORDS[i % 5], WORDS[i * 3 % 5]],
        "tags": ["O", "B-x"] if i % 2 else ["O", "O"],
        "question": "what?",
        "context": f"the {WORDS[i % 5]} cat",
        "spans": [{"text": WORDS[i % 5], "answer_start": 4}] if i % 4 else [],
    }
    for i in range(60)
]
INPUTS: dict[str, Any] = {"text": "text", "words": "words", "pair": ["question", "context"]}
TASKS: dict[str, dict[str, Any]] = {
    "classes": {"type": "classification", "dataset": "text", "column": "label"},
    "number": {"type": "regression", "dataset": "text", "column": "number"},
    "several": {"type": "multilabel", "dataset": "text", "column": "several"},
    "answer": {
        "type": "generation", "dataset": "text", "column": "answer", "loss": "tokens", "max_length": 8, "num_beams": 2,
        "generate_examples": 4, "decoder_size": {"layers": 1, "attention_heads": 2, "intermediate": 16},
        "metrics": ["chrf"],
    },
    "tags": {"type": "tagging", "dataset": "words", "column": "tags"},
    "span": {"type": "span", "dataset": "pair", "column": "spans", "max_answer_length": 5},
}  # fmt: skip


def changed(**cells: dict[int, Any]) -> list[dict[str, Any]]:
    """ROWS with other cells: column -> row -> value."""
    return [{**row, **{name: new[i] for name, new in cells.items() if i in new}} for i, row in enumerate(ROWS)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def go(tmp_path: Path):
    """Trains tasks on files; one file has all rows, of two the second is val and test. Returns the record."""

    def run(files: dict[str, bytes], *overrides: str, tasks=("classes",), encoder="transformer_bpe", small=TINY):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        first, last = (*files, *files)[:2]
        path = first if len(files) == 1 else {"train": first, "val": last, "test": last}
        given = ("benchmark=sst2", f"encoder={encoder}", f"data.dir={tmp_path}", *SMALL, *small, *overrides)
        cfg = config(*given, tiny=False)
        used = {TASKS[task]["dataset"] for task in tasks}
        with open_dict(cfg):
            cfg.benchmark = OmegaConf.create(
                {
                    "name": "bad",
                    "datasets": {
                        name: {"path": path, "input": {"type": "text", "column": column}}
                        for name, column in INPUTS.items()
                        if name in used
                    },
                    "tasks": {task: TASKS[task] for task in tasks},
                    "metrics": {},
                }
            )
        check(cfg)
        train(cfg, run_dir=tmp_path / "run")
        return read_summary(tmp_path / "run")

    return run


def metrics(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "run" / "metrics.csv")


@pytest.mark.parametrize("encoder", ["transformer", "transformer_bpe"])
def test_a_text_of_a_million_characters_is_cut(go, encoder, caplog):
    # Learning a vocabulary is quadratic in a word's length: unbroken, the first run would take days.
    long = changed(text={5: "a" * 1_000_000}, words={8: ["b" * 1_000_000, "c"]}, context={7: "cat " * 250_000})
    long[7]["spans"] = []
    record = go({"d.jsonl": jsonl(long)}, encoder=encoder, tasks=("classes", "tags", "span"))
    assert record["status"] == "finished"
    assert record["wall_seconds"] < 120
    assert "data.max_length=32 cuts 1 of" in caplog.text


def test_a_text_that_no_limit_cuts_is_refused_where_it_exceeds_the_encoder_s_positions(go):
    files = {"d.jsonl": jsonl(changed(text={5: "word " * 200_000}))}
    with pytest.raises(ValueError, match=r"positions"):
        go(files, "data.max_length=null")


def test_empty_texts_have_the_special_tokens_alone_and_count_like_any_other(go):
    rows = (3, 10, 20, 30, 40, 50)
    empty = changed(
        **{name: dict.fromkeys(rows, "") for name in ("text", "question", "context", "answer")},
        **{name: {row: [] for row in rows} for name in ("words", "tags", "spans")},
    )
    record = go({"d.jsonl": jsonl(empty)}, tasks=tuple(TASKS))
    assert record["status"] == "finished"
    assert all(value == value for value in record["test"].values())
    assert record["overlaps"] == {"found": [], "dropped": {}}


def test_an_empty_cell_of_csv_is_missing_which_no_input_may_be(go):
    with pytest.raises(ValueError, match=r"d.csv, line 3: column 'text': expected text.*got None"):
        go({"d.csv": b"text,label\nx,a\n,b\n" + b"y,a\n" * 20})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"text,label\nx,a\nb\xe9,b\n", "d.csv, line 3: expected UTF-8, got the byte 0xe9 at column 2"),
        ("d.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', "d.jsonl, line 2: expected UTF-8, got the byte 0xe9"),
        ("d.csv.gz", gzip.compress(b"text,label\nb\xe9,b\n", mtime=0), "d.csv.gz, line 2: expected UTF-8"),
        ("d.json", b'[\n{"text":\n "\xe9"}]', "d.json, line 3: expected UTF-8"),
        ("d.csv", b"text,label\nx,a,b\n", "d.csv, line 2: expected 2 cells, one a column .text, label., got 3"),
        ("d.csv", b'text,label\n"x\ny",a\n\nz\n', "d.csv, line 5: expected 2 cells.*got 1"),
        ("d.csv", b'text,label\n"x,a\n', "d.csv, line 2: expected csv: unexpected end of data"),
        ("d.csv", b"text,label,text\nx,a,y\n", "d.csv: two columns are called 'text'"),
        ("d.jsonl", b'{"text": "x", "text": "y"}\n', "d.jsonl, line 1: .*'text' stands twice"),
        ("d.csv", b"", "d.csv is empty"),
        ("d.csv", b"text,label\n", "d.csv has no rows"),
        ("d.jsonl", b"\n", "d.jsonl has no rows"),
        ("d.json", b"[]", "d.json has no rows"),
        ("d.parquet", b"nothing", "d.parquet cannot be read as parquet"),
        ("d.jsonl.gz", gzip.compress(jsonl(ROWS), mtime=0)[:200], "d.jsonl.gz cannot be read as jsonl"),
        ("d.jsonl", b'{"text": "\\ud800", "label": "a"}\n', "d.jsonl, line 1: column 'text': expected Unicode text"),
        ("d.jsonl", b'{"text": "x", "label": ["\\udc00"]}\n', "line 1: column 'label': expected Unicode text"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_line(go, name, content, message):
    with pytest.raises(ValueError, match=message):
        go({name: content})


def test_binary_columns_of_parquet_are_no_text_and_no_classes(go, tmp_path):
    def parquet(**columns: list[Any]) -> bytes:
        pd.DataFrame(columns).to_parquet(tmp_path / "made.parquet")
        return (tmp_path / "made.parquet").read_bytes()

    with pytest.raises(ValueError, match=r"d.parquet, row 0: column 'text': expected text, got b'x"):
        go({"d.parquet": parquet(text=[b"x\xe9"] * 20, label=["a", "b"] * 10)})
    with pytest.raises(ValueError, match=r"d.parquet, row 0: column 'label': expected a class, .* got b'a'"):
        go({"d.parquet": parquet(text=["x"] * 20, label=[b"a", b"b"] * 10)})


def test_a_text_column_of_parquet_must_be_utf_8(go, tmp_path):
    wrong = pa.Array.from_buffers(pa.string(), 2, pa.array([b"x", b"\xe9\xff"]).buffers())
    pq.write_table(pa.table({"text": wrong, "label": ["a", "b"]}), tmp_path / "made.parquet")
    with pytest.raises(ValueError, match=r"d.parquet: column 'text': expected what its type says: .*UTF8"):
        go({"d.parquet": (tmp_path / "made.parquet").read_bytes()})


@pytest.mark.parametrize("encoder", ["transformer", "transformer_bpe"])
def test_nul_characters_are_characters(go, encoder):
    rows = changed(text={5: "a\0b", 6: "\0"}, words={7: ["\0", "\u200b"]}, answer={8: "\0"}, label={9: "a\0"})
    assert go({"d.jsonl": jsonl(rows)}, encoder=encoder, tasks=tuple(TASKS))["status"] == "finished"


def test_labels_unseen_in_training_count_as_wrong_and_are_told(go, caplog):
    new = changed(label=dict.fromkeys(range(5), "new"), several={0: ["new"]}, tags={0: ["O", "B-new"]})
    record = go({"a.jsonl": jsonl(ROWS), "b.jsonl": jsonl(new)}, tasks=("classes", "several", "tags"))
    for task, count, label in (("classes", 10, "new"), ("several", 2, "new"), ("tags", 2, "B-new")):
        # in val and test, which are the same here
        assert f"task '{task}': {count} row(s) of val and test have labels that never occur in training" in caplog.text
        assert f"count as wrong: {label}." in caplog.text
    assert record["test"]["classes/accuracy"] <= 55 / 60


@pytest.mark.parametrize("task", TASKS)
def test_a_column_without_any_label_is_refused(go, task):
    column = TASKS[task]["column"]
    files = {"d.jsonl": jsonl(changed(**{column: dict.fromkeys(range(60))}))}
    with pytest.raises(ValueError, match=f"task '{task}', split 'train': expected a label in some row of .*'{column}'"):
        go(files, tasks=(task,))


@pytest.mark.parametrize(
    ("task", "value", "refused"),
    [
        ("classes", "a", True),  # the trivial predictor is perfect: no score could be told from it
        ("span", [], True),
        ("number", 1.0, False),
        ("several", ["p"], False),
        ("tags", ["O", "O"], False),
        ("answer", "one", False),
    ],
)
def test_a_val_split_whose_labels_are_all_alike(go, task, value, refused):
    alike = changed(**{TASKS[task]["column"]: dict.fromkeys(range(60), value)})
    files = {"a.jsonl": jsonl(ROWS), "b.jsonl": jsonl(alike)}
    if refused:
        with pytest.raises(ValueError, match=f"Task '{task}': always predicting the majority .* is perfect on the val"):
            go(files, tasks=(task,))
    else:
        assert go(files, tasks=(task,))["status"] == "finished"


@pytest.mark.parametrize(
    "overrides",
    [
        ("balancer=equal",), ("balancer=uncertainty",), ("balancer=pcgrad",), ("balancer=gradnorm",),
        ("balancer=independent",), ("balancer=pcgrad", "mixing=proportional", "mixing.group_steps=3"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_steps_in_which_a_task_has_no_label(go, tmp_path, overrides):
    # One labelled row in sixteen, and batches of two: most steps have tasks without any label.
    columns = [task["column"] for task in TASKS.values()]
    rows = [{**row, **(dict.fromkeys(columns) if i % 16 else {})} for i, row in enumerate(changed())]
    rows[17] = ROWS[17]  # an odd one, for both classes
    record = go({"a.jsonl": jsonl(rows), "b.jsonl": jsonl(ROWS)}, "data.batch_size=2", *overrides, tasks=tuple(TASKS))
    assert record["status"] == "finished"
    losses = metrics(tmp_path).filter(like="train/loss/")
    assert losses.shape[1] == len(TASKS) and losses.notna().all(axis=None)  # means over the steps with labels
    weights = metrics(tmp_path).filter(like="weight/")
    if overrides == ("balancer=equal",):
        assert (weights < 1).all(axis=None)  # 1 in a step with labels, 0 in the others


@pytest.mark.parametrize("balancer", ["equal", "pcgrad"])
def test_a_task_without_a_label_in_a_step_has_weight_0_and_its_head_stays(balancer, monkeypatch, go):
    from mtlbench.lit.module import MultiTaskModule

    seen = []
    step = MultiTaskModule.optimizer_step

    def watch(self, *args, **kwargs):
        before = {name: [p.detach().clone() for p in head.parameters()] for name, head in self.model.heads.items()}
        step(self, *args, **kwargs)
        for i, name in enumerate(self.tasks):
            same = all(map(torch.equal, before[name], self.model.heads[name].parameters()))
            seen.append((bool(self.record.losses[i].isnan()), float(self.record.weights[:, i].max()), same))

    monkeypatch.setattr(MultiTaskModule, "optimizer_step", watch)
    rows = changed(number={i: None for i in range(60) if i % 6}, several={i: None for i in range(60) if i % 5})
    files = {"a.jsonl": jsonl(rows), "b.jsonl": jsonl(ROWS)}
    go(files, "data.batch_size=2", f"balancer={balancer}", tasks=("classes", "number", "several"))
    without = [(weight, same) for missing, weight, same in seen if missing]
    assert without and set(without) == {(0.0, True)}
    assert all(weight > 0 and not same for missing, weight, same in seen if not missing)


@pytest.fixture
def saved(tmp_path: Path):
    """A folder with a tiny pretrained encoder of so many tokens, and a tokenizer with or without a pad token."""

    def make(*, vocabulary: int, pad: bool) -> str:
        folder = tmp_path / "model"
        tokenizer = train_bytelevel((row["text"] for row in ROWS), vocab_size=300)
        if not pad:
            tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
        BertModel(
            BertConfig(
                vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
            )
        ).save_pretrained(folder)
        return str(folder)

    return make


def test_a_tokenizer_without_a_pad_token_is_refused_unless_one_is_named(go, saved, tmp_path):
    model = saved(vocabulary=400, pad=False)
    with pytest.raises(ValueError, match=r"no pad token; give it one of its tokens, such as \+encoder.tokenizer.pad_t"):
        go({"d.jsonl": jsonl(ROWS)}, f"encoder.model={model}", encoder="pretrained", small=())
    shutil.rmtree(tmp_path / "run")  # of another configuration
    given = (f"encoder.model={model}", "+encoder.tokenizer.pad_token='[SEP]'")
    assert go({"d.jsonl": jsonl(ROWS)}, *given, encoder="pretrained", small=())["status"] == "finished"


def test_an_encoder_with_fewer_tokens_than_its_tokenizer_is_refused(go, saved):
    model = saved(vocabulary=50, pad=True)
    with pytest.raises(ValueError, match=r"embeds 50 tokens, but its tokenizer knows \d+: they do not fit"):
        go({"d.jsonl": jsonl(ROWS)}, f"encoder.model={model}", encoder="pretrained", small=())
