"""Generation: metrics on fixtures, losses, the decoder, shared decoders, and a whole run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlbench.data.build import DatasetSource, build
from mtlbench.data.names import expand
from mtlbench.data.subwords import train_bytelevel
from mtlbench.data.tables import Reference, TaskInfo
from mtlbench.data.text import train_tokenizer
from mtlbench.metrics import TEXT_METRICS
from mtlbench.metrics.gleu import corpus_gleu
from mtlbench.metrics.squad import exact_match, token_f1
from mtlbench.models.encoders.base import Encoder, Stage
from mtlbench.models.heads.generation import GenerationHead
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.hard import Hard
from mtlbench.models.sharing.independent import Independent
from mtlbench.tasks.generation import Generation

Run = Callable[..., tuple[Path, dict[str, Any]]]
SETTINGS: dict[str, Any] = {
    "loss": "tokens",
    "max_length": 6,
    "num_beams": 2,
    "generate_examples": 3,
    "decoder_size": {"layers": 1, "attention_heads": 2, "intermediate": 16},
}
TOKENS = {"decoder": None, "start": 1, "end": 2, "pad": 0, "vocabulary": 11}
TARGETS = torch.tensor([[5, 6, 2, -100], [7, 2, -100, -100], [-100, -100, -100, -100]])


def make(name: str = "t", **options: Any) -> Generation:
    metrics = options.pop("metrics", None)
    info = TaskInfo(
        name=name,
        type="generation",
        dataset="d",
        num_outputs=1,
        options={**SETTINGS, **TOKENS, **options},
        metrics=metrics,
    )
    return Generation(info, TARGETS, head_options={"dropout": 0.0, "pooling": "first"})


def value(name: str, predictions: list[str], references: list[Reference]) -> float:
    metric = TEXT_METRICS[name]()
    metric.update(predictions[:1], references[:1])
    metric.update(predictions[1:], references[1:])
    return float(metric.compute())


def test_bleu_and_chrf_are_those_of_sacrebleu_with_its_signature() -> None:
    import sacrebleu

    predictions = ["the cat sat on a mat today", "Guten Tag, Welt!"]
    references = [
        Reference("", ("the cat sat on the mat today", "a cat was there")),
        Reference("", ("Guten Tag Welt!",)),
    ]
    layout = [[references[0].texts[0], references[1].texts[0]], [references[0].texts[1], None]]
    assert value("bleu", predictions, references) == pytest.approx(sacrebleu.corpus_bleu(predictions, layout).score)
    assert value("chrf", predictions, references) == pytest.approx(sacrebleu.corpus_chrf(predictions, layout).score)
    metric = TEXT_METRICS["bleu"]()
    metric.update(predictions, references)
    metric.compute()
    assert "tok:13a" in metric.signature
    assert "version:" in metric.signature


def test_rouge_by_hand() -> None:
    references = [Reference("", ("a b c d", "x y"))]
    assert value("rouge1", ["a b z"], references) == pytest.approx(100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert value("rougeL", ["b a"], references) == pytest.approx(100 * 2 * (1 / 2) * (1 / 4) / (1 / 2 + 1 / 4))


def test_gleu_by_hand() -> None:
    source, reference = "he go to the school now", "he goes to school now"
    assert corpus_gleu([reference], [source], [[reference]]) == pytest.approx(1.0)
    # "he goes to the school now": unigrams he goes to school now right, the (in the source, not the reference) wrong:
    # 5 - 1 of 6. Bigrams: "he goes", "goes to", "school now" right; "to the" and "the school" stand in the source
    # alone: 3 - 2 of 5. Trigrams: "he goes to" right, "to the school" and "the school now" wrong: 1 - 2 -> 0 of 4.
    assert corpus_gleu(["he goes to the school now"], [source], [[reference]]) == 0.0
    # Two sentences' counts add up before anything is divided, and lengths too: 6 + 5 words against 5 + 5.
    both = corpus_gleu(["he goes to the school now", reference], [source, source], [[reference]] * 2)
    assert both == pytest.approx(math.prod([(4 + 5) / 11, (1 + 4) / 9, (0 + 3) / 7, (0 + 2) / 5]) ** 0.25)
    # Shorter than the reference: the brevity penalty of BLEU.
    short = corpus_gleu(["he goes to school"], [source], [[reference]])
    assert short == pytest.approx(math.exp(1 - 5 / 4))


def test_gleu_draws_among_references() -> None:
    source, good, other = "a b c d x", "a b c d e", "p q r s t"
    # Whichever reference is drawn, the score is 1 or 0: the mean over 500 draws is the share of the first.
    score = corpus_gleu([good], [source], [[good, other]])
    assert score == pytest.approx(0.5, abs=0.07)
    assert score == corpus_gleu([good], [source], [[good, other]])
    with pytest.raises(ValueError, match="same number of references"):
        corpus_gleu([good, good], [source, source], [[good], [good, other]])


def test_squad_rules() -> None:
    assert exact_match("The  Eiffel tower.", ["eiffel tower"]) == 1
    assert token_f1("in Eiffel tower", ["the Eiffel Tower", "Paris"]) == pytest.approx(2 * 2 / 5)
    assert (exact_match("", []), token_f1("", [""]), token_f1("Paris", []), exact_match("", ["Paris"])) == (1, 1, 0, 0)


@pytest.mark.parametrize("loss", ["tokens", "sequences"])
def test_losses_mask_what_is_missing(loss: str) -> None:
    logits = torch.randn(3, 4, 11)
    found, count = make(loss=loss).loss(logits, TARGETS)
    rows = [F.cross_entropy(logits[0, :3], TARGETS[0, :3]), F.cross_entropy(logits[1, :2], TARGETS[1, :2])]
    expected = (3 * rows[0] + 2 * rows[1]) / 5 if loss == "tokens" else (rows[0] + rows[1]) / 2
    torch.testing.assert_close(found, expected)
    assert count == (5 if loss == "tokens" else 2)


def state(batch: int = 3) -> dict[str, Tensor]:
    mask = torch.ones(batch, 5, dtype=torch.int64)
    mask[0, 3:] = 0
    return {"x": torch.randn(batch, 5, 8), "attention_mask": mask}


def test_the_decoder_sees_earlier_tokens_and_the_unmasked_source_alone() -> None:
    torch.manual_seed(0)
    head = make().head(8).eval()
    given = state()
    outputs = head(given, TARGETS)
    assert outputs.shape == (3, 4, 11)
    later = TARGETS.clone()
    later[0, 2] = 9
    torch.testing.assert_close(head(given, later)[0, :3], outputs[0, :3])
    assert not torch.allclose(head(given, later)[0, 3], outputs[0, 3])
    masked = {**given, "x": given["x"].clone()}
    masked["x"][0, 3:] = 7.0
    torch.testing.assert_close(head(masked, TARGETS)[0], outputs[0])


def test_generation_is_greedy_with_one_beam() -> None:
    torch.manual_seed(0)
    head = make(num_beams=1).head(8).eval()
    for parameter in head.parameters():
        parameter.data.mul_(6)
    assert isinstance(head, GenerationHead)
    given = state()
    found = head.generate(given)
    assert found.shape[1] <= 6
    for row, tokens in enumerate(found.tolist()):
        length = tokens.index(2) + 1 if 2 in tokens else len(tokens)
        one = {key: tensor[row : row + 1] for key, tensor in given.items()}
        targets = torch.tensor([tokens[:length]])
        assert head(one, targets).argmax(-1).tolist() == targets.tolist()


def model(sharing: Any, *tasks: Generation) -> MultiTaskModel:
    class Embed(Stage):
        def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
            return {**state, "x": self.module(state["input_ids"])}

    return MultiTaskModel(sharing, lambda: Encoder([Embed(torch.nn.Embedding(11, 8))], features=8), tasks, seed=0)


def test_one_decoder_for_several_tasks_is_shared_unless_nothing_is() -> None:
    tasks = make("a", decoder="text"), make("b", decoder="text"), make("c")
    hard = model(Hard, *tasks)
    assert hard.heads["a"] is hard.heads["b"]
    assert hard.heads["c"] is not hard.heads["a"]
    shared = {id(p) for part in hard.shared() for p in part.parameters()}
    private = {id(p) for p in hard.private()}
    assert {id(p) for p in hard.heads["a"].parameters()} <= shared
    assert private == {id(p) for p in hard.heads["c"].parameters()}
    alone = model(Independent, *tasks)
    assert alone.heads["a"] is not alone.heads["b"]
    assert alone.shared() == []
    inputs = {"input_ids": torch.tensor([[3, 4]] * 3), "attention_mask": torch.ones(3, 2, dtype=torch.int64)}
    outputs = hard({"d": inputs}, {"a": TARGETS, "b": TARGETS, "c": TARGETS})
    torch.testing.assert_close(outputs["a"], outputs["b"])
    with pytest.raises(ValueError, match=r"generates: give its targets, or call generate\(\)"):
        hard({"d": inputs})


def test_byte_level_subwords_lose_nothing() -> None:
    texts = ["zwei-und-vierzig Bücher!", "Two  books, d'accord?"]
    tokenizer = train_bytelevel(texts, vocab_size=300)
    for text in [*texts, "日本 naïve"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
    assert train_bytelevel(texts, vocab_size=300).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ValueError, match="take 261 entries"):
        train_bytelevel(texts, vocab_size=200)


def data(*, train: Callable[..., Any] = train_bytelevel, **columns: list[Any]) -> Any:
    frame = pd.DataFrame({"text": ["one two", "two", "three one"], **columns})
    source = DatasetSource(
        load=lambda data_dir: dict.fromkeys(("train", "val", "test"), frame),
        input={"type": "text", "column": "text"},
    )
    return build(
        datasets={"d": source},
        tasks={"say": {"type": "generation", "dataset": "d", "column": "say", **SETTINGS}},
        select=None,
        data_dir=None,
        tokenizer=lambda texts: train(texts, vocab_size=300, min_frequency=1),
        max_length=None,
    )


def test_targets_references_and_token_options() -> None:
    found = data(say=["eins zwei", None, ["drei eins", "drei und eins und zwei und drei"]])
    split = found.splits["train"]["d"]
    batch = split.batch(torch.tensor([2, 1]))
    assert batch["rows"].tolist() == [2, 1]
    tokenizer, options = found.input_spec["d"].tokenizer, found.tasks["say"].options
    ids = batch["targets"]["say"]
    assert ids[1].tolist() == [-100] * ids.shape[1]
    assert ids[0][ids[0] != -100][-1] == options["end"] == tokenizer.sep_token_id
    assert tokenizer.decode(ids[0][ids[0] >= 0], skip_special_tokens=True).strip() == "drei eins"
    assert split.references["say"][0] == Reference("one two", ("eins zwei",))
    assert split.references["say"][1] is None
    assert split.references["say"][2].texts[1].startswith("drei und")
    with pytest.raises(
        ValueError, match=r"task 'say', split 'train', row 1\b.*expected a text, or a list of texts .*, got 3"
    ):
        data(say=["x", 3, "y"])


def test_a_tokenizer_that_changes_the_references_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Lower case, and hyphens set apart: no generated text could equal such references."""
    texts = ["Ein Haus", None, "zwei-und-vierzig"]
    data(say=texts)
    assert "back changed" not in caplog.text
    data(say=texts, train=train_tokenizer)
    assert "task 'say', split 'test': the tokenizer gives 2 of 2 references back changed, such as 'Ein Haus' as " in (
        caplog.text
    )


def test_settings_are_checked_by_name() -> None:
    node = {"type": "generation", "dataset": "d", "column": "x", **SETTINGS}
    assert expand({"t": node})["t"].options["decoder"] is None
    for change, message in (
        ({"loss": "words"}, "loss 'words'"),
        ({"num_beams": 0}, "num_beams is a whole number of at least 1, got 0"),
        ({"decoder_size": {"layers": 1}}, "decoder_size needs layers, attention_heads, intermediate"),
    ):
        with pytest.raises(ValueError, match=message):
            expand({"t": {**node, **change}})
    with pytest.raises(ValueError, match="lacks 'loss'; it needs: loss, max_length"):
        expand({"t": {"type": "generation", "dataset": "d", "column": "x"}})


@pytest.mark.slow
@pytest.mark.parametrize("balancer", ["pcgrad", "independent"])
def test_number_words_from_end_to_end(run: Run, balancer: str) -> None:
    small = [f"benchmark.datasets.{d}.load.{s}=24" for d in ("english", "sentences") for s in ("train", "val", "test")]
    run_dir, summary = run(
        "a",
        "benchmark=number_words",
        f"balancer={balancer}",
        *small,
        "benchmark.tasks.translation.generate_examples=5",
        "benchmark.tasks.translation.max_length=8",
        "trainer.max_epochs=1",
        "trainer.enable_progress_bar=false",
        tiny=False,
    )
    assert summary["tasks"]["translation"]["metrics"]["bleu"]["signature"].startswith("nrefs:1|")
    assert summary["tasks"]["translation"]["metrics"]["perplexity"] == {"higher_is_better": False}
    predictions = pd.read_parquet(run_dir / "predictions.parquet")
    translated = predictions[predictions["task"] == "translation"]
    assert translated["row"].tolist() == list(range(24))
    references = [Reference("", (text,)) for text in translated["target"]]
    assert summary["test"]["translation/bleu"] == pytest.approx(
        value("bleu", list(translated["prediction"]), references)
    )
    assert math.log(summary["test"]["translation/perplexity"]) == pytest.approx(
        summary["test"]["loss/translation"], rel=1e-3
    )
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "finished"


def test_number_words_share_no_number_and_say_what_they_mean() -> None:
    from mtlbench.data.benchmarks.number_words import number_words

    frames = number_words(languages=["en", "de"], train=200, val=60, test=60, seed=0)
    numbers = {split: set(frame["number"]) for split, frame in frames.items()}
    assert not numbers["train"] & numbers["val"]
    assert not numbers["train"] & numbers["test"]
    assert not numbers["val"] & numbers["test"]
    again = number_words(languages=["en", "de"], train=200, val=60, test=60, seed=0)
    for split, frame in frames.items():
        pd.testing.assert_frame_equal(frame, again[split])
        assert ((frame["number"] % 2 == 1) == (frame["parity"] == "odd")).all()
        assert set(frame["magnitude"]) == {"below hundred", "hundreds", "thousands"}
        own = [row[row["language"]] for _, row in frame.iterrows()]
        assert own == list(frame["text"])
    other = number_words(languages=["fr"], train=300, val=60, test=60, seed=5)
    assert not set(other["test"]["number"]) & numbers["train"]
    with pytest.raises(ValueError, match="got \\['it'\\]"):
        number_words(languages=["it"], train=1, val=1, test=1, seed=0)
