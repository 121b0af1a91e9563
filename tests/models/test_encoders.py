"""Encoders as lists of stages, equal to the networks they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from mtlbench.data.tables import InputSpec, TaskInfo
from mtlbench.models.encoders.lenet import lenet
from mtlbench.models.encoders.mlp import mlp
from mtlbench.models.encoders.transformer import from_config, pretrained
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.hard import Hard
from mtlbench.tasks import Classification

TEXT = InputSpec(type="text", vocab_size=50, pad_id=0)
SMALL = {
    "hidden_size": 16, "dim": 16, "num_hidden_layers": 2, "n_layers": 2, "num_attention_heads": 2, "n_heads": 2,
    "intermediate_size": 32, "hidden_dim": 32, "embedding_size": 16, "max_position_embeddings": 40,
}  # fmt: skip


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[0, 4:], mask[0, 4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    ("architecture", "stages"),
    [("bert", 3), ("roberta", 3), ("distilbert", 3), ("electra", 1), ("modernbert", 1)],
)
def test_stages_equal_the_model_they_come_from(architecture: str, stages: int, tmp_path: Path) -> None:
    known = AutoConfig.for_model(architecture).to_dict()
    settings = {key: value for key, value in SMALL.items() if key in known}
    extra = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(architecture, vocab_size=50, **settings, **extra)
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    model.save_pretrained(tmp_path)
    encoder = pretrained(spec=TEXT, model=str(tmp_path))
    assert len(encoder.stages) == stages
    assert encoder.features == 16
    inputs = batch()
    assert all(module.training for module in encoder.modules())
    model.eval(), encoder.eval()
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        got = encoder(inputs)["x"]
    keep = inputs["attention_mask"].bool()
    assert torch.equal(got[keep], expected[keep])


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
