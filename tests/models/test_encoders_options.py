"""What may be said of a transformer: frozen parts, adapters, checkpointed activations, dropout, attention, lengths."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtlbench.balancing.mgda import MGDA
from mtlbench.balancing.pcgrad import PCGrad
from mtlbench.data.tables import InputSpec
from mtlbench.gradients import GradientEngine
from mtlbench.models.encoders.base import Encoder
from mtlbench.models.encoders.transformer import from_config, pretrained

TEXT = InputSpec(type="text", vocab_size=50, pad_id=0)
BERT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 40,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT,
    "modernbert": BERT | {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "deberta-v2": BERT | {"relative_attention": True, "norm_rel_ebd": "layer_norm", "pos_att_type": ["p2c", "c2p"]},
    "albert": BERT | {"embedding_size": 8},
    "t5": {"d_model": 16, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 32},
    "bart": {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40,
    },
    "gpt2": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "max_position_embeddings": 40},
    "qwen2": BERT | {"num_key_value_heads": 1, "attention_dropout": 0.1},
}  # fmt: skip
INPUTS = {
    "input_ids": torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.tensor([[1] * 4 + [0] * 3, [1] * 7, [1] * 7]),
}


def make(architecture: str, **options: Any) -> Encoder:
    torch.manual_seed(0)
    return from_config(spec=TEXT, architecture=architecture, config=CONFIGS[architecture], **options)


def losses(encoder: Encoder, *, seed: int = 0) -> dict[str, Tensor]:
    """Of two tasks at odds."""
    torch.manual_seed(seed)
    x = encoder(INPUTS)["x"][:, 0]
    return {"a": (x**2).mean(), "b": ((x - torch.arange(16.0) / 8) ** 2).mean()}


def gradients(encoder: Encoder, *, balancer: type = PCGrad) -> dict[str, Tensor]:
    engine = GradientEngine(encoder, balancer(num_tasks=2, seed=0), tasks=["a", "b"])
    engine.backward(losses(encoder))
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def trained(encoder: Encoder) -> set[str]:
    """What three balanced steps changed."""
    engine = GradientEngine(encoder, PCGrad(num_tasks=2, seed=0), tasks=["a", "b"])
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.5)
    for step in range(3):
        engine.backward(losses(encoder, seed=step))
        optimizer.step()
    return {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2", "deberta-v2"])
def test_frozen_stages_do_not_train_and_the_others_do(architecture: str) -> None:
    changed = trained(make(architecture, freeze={"embeddings": True, "blocks": 1}))
    assert changed
    assert {name.split(".")[1] for name in changed} == {"2"}
    changed = trained(make(architecture, freeze={"embeddings": False, "blocks": 1}))
    assert {name.split(".")[1] for name in changed} == {"0", "2"}


def test_frozen_stages_keep_their_dropout() -> None:
    frozen = make("bert", freeze={"embeddings": True, "blocks": 2})
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(module.training for module in frozen.modules())
    with torch.no_grad():
        assert not torch.equal(losses(frozen, seed=0)["b"], losses(frozen, seed=1)["b"])


def test_activations_of_an_architecture_that_can_not_are_refused() -> None:
    with pytest.raises(ValueError, match="AlbertModel does not support"):
        make("albert", gradient_checkpointing=True)


def test_what_can_not_be_frozen_is_refused() -> None:
    with pytest.raises(ValueError, match=r"blocks=3, and bert has 2 blocks"):
        make("bert", freeze={"embeddings": False, "blocks": 3})
    with pytest.raises(ValueError, match="albert comes as one piece"):
        make("albert", freeze={"embeddings": True, "blocks": 0})


@pytest.mark.parametrize("balancer", [PCGrad, MGDA])
@pytest.mark.parametrize("architecture", ["bert", "t5", "bart", "gpt2", "modernbert", "deberta-v2", "qwen2"])
def test_checkpointed_activations_give_the_same_gradients(architecture: str, balancer: type) -> None:
    """Two backward passes through blocks that run again, dropout included."""
    plain, checkpointed = make(architecture), make(architecture, gradient_checkpointing=True)
    runs = [0]
    first = next(module for module in checkpointed.modules() if isinstance(module, nn.Linear | Conv1D))
    first.register_forward_hook(lambda *_: runs.append(runs.pop() + 1))
    expected, got = gradients(plain, balancer=balancer), gradients(checkpointed, balancer=balancer)
    assert runs[0] >= 3  # once, and again for each task
    assert list(got) == list(expected)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_dropout_can_be_set_for_all_layers(architecture: str) -> None:
    with torch.no_grad():
        still, noisy = make(architecture, dropout=0.0), make(architecture, dropout=0.5)
        assert torch.equal(losses(still, seed=0)["b"], losses(still, seed=1)["b"])
        assert not torch.equal(losses(noisy, seed=0)["b"], losses(noisy, seed=1)["b"])


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if name != "deberta-v2"])
def test_attention_can_be_chosen_for_each_encoder(architecture: str) -> None:
    eager, sdpa = (make(architecture, attn_implementation=kind).eval() for kind in ("eager", "sdpa"))
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    with torch.no_grad():
        one, other = eager(INPUTS)["x"], sdpa(INPUTS)["x"]
    keep = INPUTS["attention_mask"].bool()
    torch.testing.assert_close(one[keep], other[keep], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "most"), [("bert", 40), ("roberta", 39), ("gpt2", 40), ("bart", 40), ("t5", None), ("albert", 40)]
)
def test_more_sub_words_than_positions_are_refused(architecture: str, most: int | None) -> None:
    """At set-up where the limit is known, else by the batch: never a crash inside torch."""
    length = 100 if most is None else most
    encoder = make(architecture, max_length=length)
    texts = {"input_ids": torch.ones(1, length, dtype=torch.long), "attention_mask": torch.ones(1, length)}
    assert encoder(texts)["x"].shape == (1, length, 16)
    if most is not None:
        with pytest.raises(ValueError, match=rf"data.max_length={most + 1}, and {architecture} has {most} positions"):
            make(architecture, max_length=most + 1)
        longer = {"input_ids": torch.ones(1, most + 1, dtype=torch.long), "attention_mask": torch.ones(1, most + 1)}
        with pytest.raises(ValueError, match=rf"has {most + 1} sub-words, .*say data.max_length={most}"):
            encoder(longer)


def test_settings_of_another_architecture_are_named(caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIGS["t5"] | {"hidden_dropout_prob": 0.1, "num_hidden_layers": 2, "max_position_embeddings": 8}
    from_config(spec=TEXT, architecture="t5", config=config, max_length=9)
    assert "t5 declares no setting hidden_dropout_prob, max_position_embeddings" in caplog.text
    assert "num_hidden_layers" not in caplog.text  # its num_layers by another name


def test_the_architecture_alone_of_a_saved_model(tmp_path: Path) -> None:
    encoder = make("t5", dropout=0.3)
    encoder.config.save_pretrained(tmp_path)
    again = pretrained(spec=TEXT, model=str(tmp_path), weights=False)
    assert list(again.state_dict()) == list(encoder.state_dict())
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(losses(again)["b"], losses(encoder)["b"])


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5", "albert"])
def test_adapters_alone_train(architecture: str) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear" if architecture == "albert" else None}
    encoder = make(architecture, lora=lora)
    engine = GradientEngine(encoder, PCGrad(num_tasks=2, seed=0), tasks=["a", "b"])
    adapters = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert adapters and all("lora_" in name for name in adapters)
    assert sum(p.numel() for p in engine.shared) < 0.2 * sum(p.numel() for p in encoder.parameters())
    assert trained(encoder) == adapters
    torch.testing.assert_close(losses(make(architecture).eval()), losses(make(architecture, lora=lora).eval()))


def test_adapters_with_frozen_blocks_and_checkpointed_activations() -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    options: dict[str, Any] = {"lora": {"r": 2, "alpha": 4, "target_modules": ["query", "dense"]}}
    assert {n.split(".")[1] for n in trained(make("bert", **options))} == {"1", "2"}
    assert {n.split(".")[1] for n in trained(make("bert", freeze={"blocks": 1}, **options))} == {"2"}
    plain, checkpointed = (
        gradients(make("bert", **options)),
        gradients(make("bert", gradient_checkpointing=True, **options)),
    )
    torch.testing.assert_close(checkpointed, plain)


def test_wrong_adapters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    with pytest.raises(ValueError, match="nowhere"):
        make("bert", lora={"r": 2, "alpha": 4, "target_modules": ["nowhere"]})
    with pytest.raises(ValueError, match=r"encoder.lora.*rank.*r, alpha, dropout, target_modules"):
        make("bert", lora={"rank": 2, "alpha": 4})
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'mtlbench\[peft\]'"):
        make("bert", lora={"r": 2, "alpha": 4})


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing-like-it"):
        from_config(spec=TEXT, architecture="nothing-like-it", config={})
