"""Encoders as lists of stages, equal to the networks they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from mtlbench.data.tables import InputSpec, TaskInfo
from mtlbench.models.encoders.lenet import lenet
from mtlbench.models.encoders.mlp import mlp
from mtlbench.models.encoders.transformer import from_config, pretrained
from mtlbench.models.heads.base import pool
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.hard import Hard
from mtlbench.tasks import Classification

TEXT = InputSpec(type="text", vocab_size=50, pad_id=0)
SMALL = {
    "hidden_size": 16, "dim": 16, "num_hidden_layers": 2, "n_layers": 2, "num_attention_heads": 2, "n_heads": 2,
    "intermediate_size": 32, "hidden_dim": 32, "embedding_size": 8, "max_position_embeddings": 40,
    "num_key_value_heads": 1, "head_dim": 8, "d_model": 16, "d_kv": 8, "d_ff": 32, "encoder_layers": 2,
    "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}  # fmt: skip
TOKENS = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
V3 = {  # the settings of DeBERTa v3
    "relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
ARCHITECTURES = [
    ("bert", {}, 3),
    ("roberta", {}, 3),
    ("roberta", {"type_vocab_size": 1}, 3),
    ("xlm-roberta", {}, 3),
    ("camembert", {}, 3),
    ("distilbert", {}, 3),
    ("electra", {}, 3),
    ("electra", {"embedding_size": 16}, 3),
    ("deberta-v2", V3, 3),
    ("deberta-v2", V3 | {"conv_kernel_size": 3, "type_vocab_size": 2, "position_biased_input": True}, 3),
    ("deberta", {}, 1),
    ("modernbert", {"local_attention": 4, "global_attn_every_n_layers": 2}, 3),
    ("t5", {}, 3),
    ("mt5", {}, 3),
    ("bart", {}, 3),
    ("bart", {"encoder_layerdrop": 0.5}, 1),
    ("gpt2", {}, 3),
    ("qwen2", {}, 3),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}, 3),
    ("qwen3", {}, 3),
    ("llama", {}, 3),
    ("albert", {}, 1),
]


def settings(architecture: str) -> dict[str, Any]:
    """Those of SMALL that the architecture knows."""
    default = AutoConfig.for_model(architecture)
    return {key: value for key, value in SMALL.items() if key in {*default.to_dict(), *default.attribute_map}}


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[0, 4:], mask[0, 4:] = 0, 0
    kinds = (torch.arange(7) > 3).long().expand(3, 7)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}


@pytest.mark.parametrize(("architecture", "extra", "stages"), ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_stages_equal_the_model_they_come_from(
    architecture: str, extra: dict[str, Any], stages: int, attention: str, tmp_path: Path
) -> None:
    if attention == "sdpa" and architecture in ("deberta", "deberta-v2"):
        pytest.skip("the library has no sdpa for it")
    config = AutoConfig.for_model(architecture, **{"vocab_size": 50, **settings(architecture), **TOKENS, **extra})
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation=attention)
    model.save_pretrained(tmp_path)
    encoder = pretrained(spec=TEXT, model=str(tmp_path), attn_implementation=attention)
    assert len(encoder.stages) == stages
    assert encoder.features == 16
    assert encoder.causal == (architecture in ("gpt2", "qwen2", "qwen3", "llama"))
    assert all(module.training for module in encoder.modules())
    inputs = batch()
    if config.is_encoder_decoder:
        model = model.get_encoder()
    assert {tuple(p.shape) for p in encoder.parameters()} <= {tuple(p.shape) for p in model.parameters()}
    model.eval(), encoder.eval()
    tells_types = getattr(config, "type_vocab_size", 0) > 1
    given = {name: value for name, value in inputs.items() if tells_types or name != "token_type_ids"}
    with torch.no_grad():
        expected = model(**given).last_hidden_state
        got = encoder(inputs)["x"]
        one_text = encoder({name: inputs[name] for name in ("input_ids", "attention_mask")})["x"]
    keep = inputs["attention_mask"].bool()
    assert torch.equal(got[keep], expected[keep])
    assert torch.equal(one_text, got) != tells_types


@pytest.mark.parametrize("architecture", ["bert", "t5", "bart", "gpt2", "modernbert", "deberta-v2", "albert"])
def test_every_parameter_of_an_encoder_is_reached(architecture: str) -> None:
    """No pooler, no decoder: what no loss reaches is neither shared nor private."""
    extra = V3 if architecture == "deberta-v2" else {}
    encoder = from_config(spec=TEXT, architecture=architecture, config=settings(architecture) | TOKENS | extra)
    encoder(batch())["x"].sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None]


@pytest.mark.parametrize("architecture", ["bert", "t5", "bart", "gpt2", "qwen2", "modernbert", "deberta-v2"])
def test_what_a_text_is_padded_with_does_not_matter(architecture: str) -> None:
    """So that `last` pools the last token of each text, which decoder-only models need."""
    extra = V3 if architecture == "deberta-v2" else {}
    torch.manual_seed(0)
    encoder = from_config(spec=TEXT, architecture=architecture, config=settings(architecture) | TOKENS | extra).eval()
    with torch.no_grad():
        together = pool(encoder(batch()), "last")
        alone = pool(encoder({name: value[:1, :4] for name, value in batch().items()}), "last")
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_a_pooler_is_left_out() -> None:
    """What one task alone would reach is not shared."""
    encoder = from_config(spec=TEXT, architecture="bert", config={k: SMALL[k] for k in list(SMALL)[:1]} | {
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8})  # fmt: skip
    assert not [name for name, _ in encoder.named_parameters() if "pooler" in name]
    assert encoder.stages[0].embeddings.word_embeddings.num_embeddings == 50


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=20, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=8)).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match="embeds 20 tokens, but its tokenizer knows 50"):
        pretrained(spec=TEXT, model=str(tmp_path))


def test_only_safetensors_are_loaded(tmp_path: Path) -> None:
    config = AutoConfig.for_model("bert", vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8)  # fmt: skip
    model = AutoModel.from_config(config)
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        pretrained(spec=TEXT, model=str(tmp_path))


def test_the_multi_mnist_lenet_has_the_published_size() -> None:
    # 27,450 parameters: Pareto MTL (Lin et al. 2019, arXiv:1912.12854) and MGDA's Multi-MNIST network on 28 x 28.
    spec = InputSpec(type="image", shape=(1, 28, 28))
    tasks = [
        Classification(
            TaskInfo(name=name, type="classification", dataset="digits", num_outputs=10, labels=tuple("0123456789")),
            torch.arange(10),
            head_options={"pooling": "first", "hidden": [50]},
        )
        for name in ("left", "right")
    ]
    model = MultiTaskModel(Hard, lambda: lenet(spec=spec), tasks, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 27450
    outputs = model({"digits": {"x": torch.zeros(2, 1, 28, 28)}})
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {"left": (2, 10), "right": (2, 10)}


def test_wrong_inputs_are_refused() -> None:
    vector = InputSpec(type="vector", shape=(5,))
    for make in (lambda: lenet(spec=vector), lambda: from_config(spec=vector, architecture="bert", config={})):
        with pytest.raises(ValueError, match="takes"):
            make()
    with pytest.raises(ValueError, match="takes vectors"):
        mlp(spec=TEXT, hidden=[3])
    with pytest.raises(ValueError, match="at least one hidden layer"):
        mlp(spec=vector, hidden=[])


def test_mlp_flattens_images() -> None:
    encoder = mlp(spec=InputSpec(type="image", shape=(1, 4, 4)), hidden=[8, 3], dropout=0.5)
    assert encoder({"x": torch.zeros(2, 1, 4, 4)})["x"].shape == (2, 3)
    assert len(encoder.stages) == 2
