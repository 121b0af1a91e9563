"""Decoders of encoder-decoder models: equal to the library's models, tied to the encoder, balanced and saved right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from mtlbench.balancing.equal import Equal
from mtlbench.balancing.gradnorm import GradNorm
from mtlbench.balancing.pcgrad import PCGrad
from mtlbench.data.tables import InputSpec, TaskInfo
from mtlbench.gradients import GradientEngine
from mtlbench.lit.optim import build_optimizer
from mtlbench.models.encoders.transformer import from_config, pretrained
from mtlbench.models.heads.generation import FreshDecoder
from mtlbench.models.heads.own_decoder import OwnDecoder
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.base import Sharing
from mtlbench.models.sharing.hard import Hard
from mtlbench.models.sharing.independent import Independent
from mtlbench.models.sharing.shared_private import SharedPrivate
from mtlbench.tasks import Classification, Task
from mtlbench.tasks.generation import Generation

T5 = {"d_model": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32}
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40,
}  # fmt: skip
SETTINGS = {"t5": T5, "bart": BART, "mbart": BART, "pegasus": BART}
TOKENS: dict[str, dict[str, Any]] = {
    "t5": {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    "bart": {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0},
    "mbart": {"decoder_start_token_id": 9, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0},
}
TOKENS["pegasus"] = TOKENS["t5"]
PREFIX = {"bart": 0}  # what its tokenizer begins with
KINDS = list(SETTINGS)


def spec(kind: str) -> InputSpec:
    return InputSpec(type="text", vocab_size=30, pad_id=TOKENS[kind]["pad_token_id"])


def library(kind: str, folder: Path, *, own_output: bool = False) -> PreTrainedModel:
    """A random model of the library, in evaluation mode, and its folder; `own_output`: as Flan-T5's."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=30, **SETTINGS[kind], **TOKENS[kind])
    model = AutoModelForSeq2SeqLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(3)  # far from uniform
    model.save_pretrained(folder)
    if own_output:
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {"lm_head.weight": torch.randn(30, 16)}, folder / "model.safetensors", {"format": "pt"})
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def generation(kind: str, name: str = "say", **changes: Any) -> Generation:
    tokens = TOKENS[kind]
    options = {
        "loss": "tokens", "max_length": 6, "num_beams": 3, "generate_examples": 3, "decoder": None, "vocabulary": 30,
        "decoder_size": {"layers": 1, "attention_heads": 2, "intermediate": 16}, "start": 5,
        "prefix": PREFIX.get(kind), "end": tokens["eos_token_id"], "pad": tokens["pad_token_id"], **changes,
    }  # fmt: skip
    info = TaskInfo(name=name, type="generation", dataset="d", num_outputs=1, options=options)
    return Generation(info, targets(kind), head_options={"dropout": 0.0})


def classification() -> Classification:
    info = TaskInfo(name="kind", type="classification", dataset="d", num_outputs=2, labels=("a", "b"))
    options = {"pooling": "mean", "hidden": [], "activation": "relu", "dropout": 0.0}
    return Classification(info, CLASSES, head_options=options)


CLASSES = torch.tensor([0, 1, 1])
INPUTS = {
    "input_ids": torch.randint(10, 30, (3, 7), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.tensor([[1] * 4 + [0] * 3, [1] * 7, [1] * 7]),
}


def targets(kind: str) -> Tensor:
    end = TOKENS[kind]["eos_token_id"]
    return torch.tensor([[11, 12, 13, end], [20, end, -100, -100], [14, 15, end, -100]])


def network(
    kind: str, folder: Path, *tasks: Task, sharing: Callable[..., Sharing] = Hard, **options: Any
) -> MultiTaskModel:
    make = lambda: pretrained(spec=spec(kind), model=str(folder), **{"decoder": True, **options})  # noqa: E731
    return MultiTaskModel(sharing, make, tasks or (generation(kind), classification()), seed=0)


def losses(model: MultiTaskModel, kind: str, *tasks: Task) -> dict[str, Tensor]:
    given = {task.name: targets(kind) if task.generates else CLASSES for task in tasks}
    outputs = model({"d": INPUTS}, given)
    return {task.name: task.loss(outputs[task.name], given[task.name])[0] for task in tasks}


def engine(model: MultiTaskModel, balancer: Any, **options: Any) -> GradientEngine:
    tasks = list(model.heads)
    balanced = balancer(num_tasks=len(tasks), seed=0)
    return GradientEngine(model.shared(), balanced, tasks=tasks, private=model.private(), **options)


def labels(kind: str) -> Tensor:
    """The library's, its tokenizer's first token included."""
    if kind not in PREFIX:
        return targets(kind)
    return F.pad(targets(kind), (1, 0), value=PREFIX[kind])


@pytest.mark.parametrize("kind", [*KINDS, "flan"])
def test_logits_loss_and_texts_are_the_library_s(kind: str, tmp_path: Path) -> None:
    kind, own_output = ("t5", True) if kind == "flan" else (kind, False)
    theirs = library(kind, tmp_path, own_output=own_output)
    task = generation(kind)
    ours = network(kind, tmp_path, task)
    assert all(module.training for module in ours.modules())
    ours.eval()
    with torch.no_grad():
        # mBART's own shift takes the language from the end of the labels.
        before = F.pad(labels(kind)[:, :-1], (1, 0), value=TOKENS[kind]["decoder_start_token_id"])
        before = before.masked_fill(before == -100, TOKENS[kind]["pad_token_id"])
        expected = theirs(**INPUTS, decoder_input_ids=before).logits
        skip = expected.shape[1] - targets(kind).shape[1]
        got = ours({"d": INPUTS}, {"say": targets(kind)})["say"]
        torch.testing.assert_close(got, expected[:, skip:], rtol=1e-5, atol=1e-5)
        if kind != "mbart":
            counted = labels(kind)
            counted[:, :skip] = -100  # what the tokenizer begins with is given
            wanted = theirs(**INPUTS, labels=counted, decoder_input_ids=before).loss
            torch.testing.assert_close(task.loss(got, targets(kind))[0], wanted, rtol=1e-5, atol=1e-6)
            assert torch.equal(before, theirs.prepare_decoder_input_ids_from_labels(labels(kind)))
        found = theirs.generate(
            **INPUTS, num_beams=3, max_new_tokens=6 + skip, do_sample=False,
            forced_bos_token_id=PREFIX.get(kind), forced_eos_token_id=None,
        )  # fmt: skip
        assert ours.generate(INPUTS, "say").tolist() == found[:, 1 + skip :].tolist()


def test_a_random_model_begins_as_the_task_says() -> None:
    task = generation("bart", start=7, prefix=7, end=8)
    make = lambda: from_config(spec=spec("bart"), architecture="bart", config=BART, decoder=True)  # noqa: E731
    head = MultiTaskModel(Hard, make, [task], seed=0).heads["say"]
    assert isinstance(head, OwnDecoder)
    assert head.begin == (7,)
    assert (head.decoder.generation_config.decoder_start_token_id, head.decoder.config.eos_token_id) == (7, 8)
    own = {**BART, "decoder_start_token_id": 9}
    make = lambda: from_config(spec=spec("bart"), architecture="bart", config=own, decoder=True)  # noqa: E731
    assert MultiTaskModel(Hard, make, [task], seed=0).heads["say"].begin == (9, 7)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_shared_gradients_pass_through_the_decoder_too(kind: str, tmp_path: Path) -> None:
    library(kind, tmp_path)
    tasks = (generation(kind), classification())
    model = network(kind, tmp_path, *tasks, dropout=0.0)
    shared, private = ({id(p) for p in model.sharing.parameters()}, {id(p) for p in model.private()})
    words = model.sharing.encoder_of("say").stages[0].words.weight
    head = model.heads["say"].decoder
    assert head.lm_head.weight is head.get_decoder().embed_tokens.weight is words
    assert id(words) in shared
    assert not shared & private
    assert shared | private == {id(p) for p in model.parameters()}
    assert {id(p) for p in model.heads["say"].parameters()} - private == {id(words)}
    copies = copy.deepcopy(model)
    engine(model, Equal).backward(losses(model, kind, *tasks))
    sum(losses(copies, kind, *tasks).values()).backward()
    for (name, mine), theirs in zip(model.named_parameters(), copies.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_last_shared_layer_is_the_encoder_s_not_the_tied_embeddings(tmp_path: Path) -> None:
    """Which the decoder and the output layer use after it."""
    library("t5", tmp_path)
    tasks = (generation("t5"), classification())
    model = network("t5", tmp_path, *tasks)
    made = engine(model, GradNorm, measure="last_layer")
    made.backward(losses(model, "t5", *tasks))
    feed_forward = model.sharing.encoder.stages[-1].block.layer[-1].DenseReluDense
    assert [id(p) for p in made._measure.place.parameters] == [id(feed_forward.wo.weight)]


def test_checkpointed_decoders_give_the_same_gradients(tmp_path: Path) -> None:
    for kind in ("t5", "bart"):
        library(kind, tmp_path / kind)
        tasks = (generation(kind), classification())
        found = []
        for checkpointing in (False, True):
            model = network(kind, tmp_path / kind, *tasks, gradient_checkpointing=checkpointing)
            runs = [0]
            block = model.heads["say"].decoder.get_decoder()
            part = (block.block if kind == "t5" else block.layers)[0].get_submodule(
                "layer.0" if kind == "t5" else "fc1"
            )
            part.register_forward_hook(lambda *_, runs=runs: runs.append(runs.pop() + 1))
            torch.manual_seed(0)
            # Without a quick route's check, which goes through the first step once more.
            engine(model, PCGrad, route="sequential").backward(losses(model, kind, *tasks))
            assert runs == [1 + checkpointing]
            found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "bart", "flan"])
@pytest.mark.parametrize("sharing", [Hard, Independent])
def test_saved_weights_come_back(kind: str, sharing: Any, tmp_path: Path) -> None:
    """Into a network that is built from the saved config alone."""
    kind, own_output = ("t5", True) if kind == "flan" else (kind, False)
    library(kind, tmp_path, own_output=own_output)
    tasks = (generation(kind, "say", decoder="one"), generation(kind, "tell", decoder="one"), classification())
    model = network(kind, tmp_path, *tasks, sharing=sharing)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    save_model(model, str(tmp_path / "weights.safetensors"))
    model.sharing.encoder_of("say").config.save_pretrained(tmp_path / "config")
    again = network(kind, tmp_path / "config", *tasks, sharing=sharing, weights=False)
    load_model(again, str(tmp_path / "weights.safetensors"))
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
    model.eval(), again.eval()
    given = {"say": targets(kind), "tell": targets(kind)}
    for name, expected in model({"d": INPUTS}, given).items():
        assert torch.equal(again({"d": INPUTS}, given)[name], expected)
    with torch.no_grad():
        encoder = again.sharing.encoder_of("say")
        whole = encoder.seq2seq.whole(again.heads["say"].decoder)
        whole.save_pretrained(tmp_path / "out")
        loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
        begin = torch.tensor(again.heads["say"].begin).expand(3, -1)
        for made in (whole, loaded):
            logits = made(**INPUTS, decoder_input_ids=begin).logits[:, -1]
            expected = model({"d": INPUTS}, given)["say"][:, 0]
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        skip = len(again.heads["say"].begin)
        assert loaded.generate(**INPUTS)[:, skip:].tolist() == model.generate(INPUTS, "say").tolist()


def test_one_decoder_for_a_group_and_one_for_each_encoder(tmp_path: Path) -> None:
    library("t5", tmp_path)
    tasks = (generation("t5", "a", decoder="x"), generation("t5", "b", decoder="x"), generation("t5", "c"))
    hard = network("t5", tmp_path, *tasks)
    assert hard.heads["a"] is hard.heads["b"] is not hard.heads["c"]
    group = {id(p) for p in hard.heads["a"].parameters()}
    assert group <= {id(p) for part in hard.shared() for p in part.parameters()}
    words = hard.sharing.encoder.stages[0].words.weight
    assert {id(p) for p in hard.private()} == {id(p) for p in hard.heads["c"].parameters()} - {id(words)}
    alone = network("t5", tmp_path, *tasks, sharing=Independent)
    assert alone.shared() == []
    seen: set[int] = set()
    for name in "abc":
        own = {id(p) for p in alone.network(name).parameters()}
        assert not seen & own
        seen |= own
        assert alone.heads[name].decoder.lm_head.weight is alone.sharing.encoders[name].stages[0].words.weight
    # Alone and beside others, a task's network begins alike: a random one too.
    make = lambda: from_config(spec=spec("t5"), architecture="t5", config=T5, decoder=True)  # noqa: E731
    beside = MultiTaskModel(Independent, make, tasks, seed=0).network("b").state_dict()
    torch.testing.assert_close(MultiTaskModel(Independent, make, tasks[1:2], seed=0).network("b").state_dict(), beside)


def test_encoders_options_leave_the_decoder_s_own_alone(tmp_path: Path) -> None:
    """Tied embeddings go with the encoder: frozen with it, at its rate."""
    pytest.importorskip("peft", reason="peft is not installed")
    library("t5", tmp_path)
    tasks = (generation("t5"), classification())
    frozen = network("t5", tmp_path, *tasks, freeze={"embeddings": True, "blocks": 1})
    assert not frozen.heads["say"].decoder.lm_head.weight.requires_grad
    assert all(p.requires_grad for p in frozen.heads["say"].decoder.get_decoder().block.parameters())
    adapted = network("t5", tmp_path, *tasks, lora={"r": 2, "alpha": 4})
    names = {name for name, p in adapted.heads["say"].named_parameters() if not p.requires_grad}
    assert names == {"decoder.shared.weight"}
    assert {n for n, p in adapted.sharing.named_parameters() if p.requires_grad and "lora_" not in n} == set()
    for model in (frozen, adapted):
        engine(model, PCGrad).backward(losses(model, "t5", *tasks))
        assert all(p.grad is not None for p in model.heads["say"].parameters() if p.requires_grad)

    plain = network("t5", tmp_path, *tasks)
    optimizer = build_optimizer(
        lambda groups: torch.optim.SGD(groups, lr=1.0), plain, Equal(num_tasks=2, seed=0), head_lr=0.1,
        layer_lr_decay=0.5,
    )  # fmt: skip
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(plain.sharing.encoder.stages[0].words.weight)] == 0.25
    assert {rates[id(p)] for p in plain.private()} == {0.1}


def test_dropout_and_attention_reach_the_decoder(tmp_path: Path) -> None:
    library("bart", tmp_path)
    task = generation("bart")
    for dropout, same in ((0.0, True), (0.5, False)):
        model = network("bart", tmp_path, task, dropout=dropout, attn_implementation="eager")
        assert model.heads["say"].decoder.config._attn_implementation == "eager"
        state = {"x": torch.randn(3, 7, 16), "attention_mask": INPUTS["attention_mask"]}
        one, other = (model.heads["say"](state, targets("bart")) for _ in range(2))
        assert torch.equal(one, other) == same


def test_a_fresh_decoder_where_it_is_asked_for_or_there_is_no_other(tmp_path: Path) -> None:
    library("t5", tmp_path)
    assert isinstance(network("t5", tmp_path, decoder=False).heads["say"], FreshDecoder)
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    make = lambda: from_config(spec=spec("t5"), architecture="bert", config=bert, decoder=True)  # noqa: E731
    for sharing in (Hard, SharedPrivate):
        assert isinstance(MultiTaskModel(sharing, make, [generation("t5")], seed=0).heads["say"], FreshDecoder)
    with pytest.raises(ValueError, match=r"'say' would have the decoder .*SharedPrivate.*encoder.decoder=false"):
        network("t5", tmp_path, sharing=SharedPrivate)
    assert isinstance(network("t5", tmp_path, sharing=SharedPrivate, decoder=False).heads["say"], FreshDecoder)


def test_texts_longer_than_the_decoder_s_positions_are_refused(tmp_path: Path) -> None:
    library("bart", tmp_path)
    network("bart", tmp_path, generation("bart", max_length=39))
    with pytest.raises(ValueError, match=r"max_length=40 .*\(bart\) has 40 positions: say 39 or less"):
        network("bart", tmp_path, generation("bart", max_length=40))
    library("t5", tmp_path)
    network("t5", tmp_path, generation("t5", max_length=4000))
