"""Transformers as encoders: any architecture of the transformers library, fresh from a config or pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from mtlbench.data.tables import InputSpec
from mtlbench.models.encoders.base import Encoder, State

# Where the blocks are in architectures whose forward is embeddings, then blocks, then nothing. Any
# other architecture is one single stage: it trains alike, but nothing can be woven between its blocks.
_BLOCKS = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
    "camembert": "encoder.layer",
    "distilbert": "transformer.layer",
}


class Embeddings(nn.Module):
    """Stage 0: token ids to features, and the attention mask in the form that the blocks take."""

    def __init__(self, embeddings: nn.Module, config: PretrainedConfig) -> None:
        super().__init__()
        self.embeddings, self.config = embeddings, config

    def forward(self, state: State) -> State:
        x = self.embeddings(state["input_ids"])
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=state["attention_mask"])
        return {**state, "x": x, "block_mask": mask}


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: State) -> State:
        return {**state, "x": self.block(state["x"], state["block_mask"])}


class Whole(nn.Module):
    """A model whose blocks can't be told apart from outside."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, state: State) -> State:
        output = self.model(input_ids=state["input_ids"], attention_mask=state["attention_mask"])
        return {**state, "x": output.last_hidden_state}


def from_config(*, spec: InputSpec, architecture: str, config: Mapping[str, Any]) -> Encoder:
    """A randomly initialised transformer.

    Args:
        spec: gives the vocabulary's size and the padding token.
        architecture: a model type of the transformers library, such as `bert`.
        config: that architecture's own settings, by its own names.

    Raises:
        ValueError: the inputs are no text, or the architecture is unknown.
    """
    _check_text(spec, "transformer")
    settings = {"vocab_size": spec.vocab_size, "pad_token_id": spec.pad_id, **config}
    return _encoder(AutoModel.from_config(AutoConfig.for_model(architecture, **settings), **_no_pooler(architecture)))


def pretrained(*, spec: InputSpec, model: str, trust_remote_code: bool = False) -> Encoder:
    """A pretrained transformer from the Hugging Face hub or a local folder; safetensors only.

    Args:
        spec: says which tokenizer made the inputs; its vocabulary must fit the model's.
        model: hub id or path.
        trust_remote_code: run code that comes with the model. Off unless you say so.

    Raises:
        ValueError: the inputs are no text, or the model's vocabulary is smaller than the tokenizer's.
        OSError: the model can't be found or has no safetensors weights.
    """
    _check_text(spec, "pretrained")
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    network = AutoModel.from_pretrained(
        model, config=config, use_safetensors=True, trust_remote_code=trust_remote_code, **_no_pooler(config.model_type)
    )
    size = network.get_input_embeddings().num_embeddings
    if size < spec.vocab_size:
        raise ValueError(f"{model} embeds {size} tokens, but its tokenizer knows {spec.vocab_size}: they do not fit.")
    return _encoder(network.train())  # it comes in evaluation mode, and Lightning leaves modes as they are


def _encoder(model: PreTrainedModel) -> Encoder:
    config = model.config
    where = _BLOCKS.get(config.model_type)
    if where is None:
        return Encoder([Whole(model)], features=config.hidden_size)
    blocks = [Block(block) for block in attrgetter(where)(model)]
    return Encoder([Embeddings(model.embeddings, config), *blocks], features=config.hidden_size)


def _no_pooler(architecture: str) -> dict[str, bool]:
    """Pooling belongs to heads: a pooler that only some tasks use would be neither shared nor private."""
    return {"add_pooling_layer": False} if architecture in _BLOCKS and architecture != "distilbert" else {}


def _check_text(spec: InputSpec, name: str) -> None:
    if spec.type != "text":
        raise ValueError(f"encoder={name} takes text, and this benchmark has {spec.type} inputs; try encoder=mlp.")
