"""Models of the transformers library as lists of stages: the embeddings, then a stage for each block.

One family of architectures a class or two: what its embeddings give to the blocks rides along in the state. The final
norm belongs to the last block's stage. An architecture in no family is one single stage: it trains alike, but
nothing can be woven between its blocks, and neither freezing nor rates go layer by layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)

from mtlbench.models.encoders.base import State


class First(nn.Module, ABC):
    """A stage 0: refuses what the model has no position embedding for.

    Args:
        model: the model it comes from.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.config = model.config
        self.longest = positions(model)

    def forward(self, state: State) -> State:
        length = state["input_ids"].shape[1]
        if self.longest is not None and length > self.longest:
            raise ValueError(
                f"A text has {length} sub-words, and the encoder ({self.config.model_type}) {self.longest} positions: "
                f"say data.max_length={self.longest} or less."
            )
        return self.begin(state)

    @abstractmethod
    def begin(self, state: State) -> State:
        """The state with what the blocks take."""

    def _types(self, state: State) -> dict[str, Tensor]:
        """`token_type_ids`, where the inputs have them and the architecture tells types apart."""
        known = getattr(self.config, "type_vocab_size", 0) > 1
        return {"token_type_ids": state["token_type_ids"]} if known and "token_type_ids" in state else {}

    def _bidirectional(self, state: State, x: Tensor) -> State:
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=state["attention_mask"])
        return {**state, "x": x, "block_mask": mask}


class Whole(First):
    """A model whose blocks can't be told apart from outside."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.model = model

    def begin(self, state: State) -> State:
        output = self.model(input_ids=state["input_ids"], attention_mask=state["attention_mask"], **self._types(state))
        return {**state, "x": output.last_hidden_state}


class Block(nn.Module):
    """One transformer block of the form (x, mask) -> x.

    Args:
        block: the library's module.
        norm: what follows the last block.
    """

    def __init__(self, block: nn.Module, *, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.block, self.norm = block, norm

    def forward(self, state: State) -> State:
        state = self.step(state)
        return state if self.norm is None else {**state, "x": self.norm(state["x"])}

    def step(self, state: State) -> State:
        """Without the norm."""
        return {**state, "x": self.block(state["x"], state["block_mask"])}


# ---------------------------------------------------------------- BERT and its kin


class Embeddings(First):
    """Sums of word, position and type embeddings; ELECTRA projects them where they are narrower than the blocks."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.embeddings = model.embeddings
        narrow = model.config.model_type == "electra" and model.config.embedding_size != model.config.hidden_size
        self.project = model.embeddings_project if narrow else None

    def begin(self, state: State) -> State:
        x = self.embeddings(input_ids=state["input_ids"], **self._types(state))
        return self._bidirectional(state, x if self.project is None else self.project(x))


def _bert(model: PreTrainedModel) -> list[nn.Module]:
    layers = model.transformer.layer if model.config.model_type == "distilbert" else model.encoder.layer
    return [Embeddings(model), *map(Block, layers)]


# ---------------------------------------------------------------- DeBERTa v2 and v3


class DebertaEmbeddings(First):
    """Embeddings, and the relative positions that all blocks share."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.embeddings, self.relative = model.embeddings, model.encoder  # which has lost its blocks by now

    def begin(self, state: State) -> State:
        mask = state["attention_mask"]
        x = self.embeddings(input_ids=state["input_ids"], mask=mask, **self._types(state))
        return {
            **state,
            "x": x,
            "block_mask": self.relative.get_attention_mask(mask),
            "relative_positions": self.relative.get_rel_pos(x),
            "relative_embeddings": self.relative.get_rel_embedding(),
        }


class DebertaBlock(Block):
    """A block of disentangled attention; after the first one, some models have a convolution."""

    def __init__(self, block: nn.Module, *, convolution: nn.Module | None = None) -> None:
        super().__init__(block)
        self.convolution = convolution

    def step(self, state: State) -> State:
        x, _ = self.block(
            state["x"],
            state["block_mask"],
            relative_pos=state["relative_positions"],
            rel_embeddings=state["relative_embeddings"],
        )
        if self.convolution is not None:
            x = self.convolution(state["x"], x, state["attention_mask"])
        return {**state, "x": x}


def _deberta(model: PreTrainedModel) -> list[nn.Module]:
    first, *others = model.encoder.layer
    convolution, model.encoder.conv, model.encoder.layer = model.encoder.conv, None, nn.ModuleList()
    return [DebertaEmbeddings(model), DebertaBlock(first, convolution=convolution), *map(DebertaBlock, others)]


# ---------------------------------------------------------------- encoders of encoder-decoder models


class BartEmbeddings(First):
    """Words and learned positions, normalised, with dropout."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.words, self.positions, self.norm = model.embed_tokens, model.embed_positions, model.layernorm_embedding
        self.dropout = nn.Dropout(model.dropout)

    def begin(self, state: State) -> State:
        x = self.words(state["input_ids"])
        return self._bidirectional(state, self.dropout(self.norm(x + self.positions(state["input_ids"]))))


def _bart(model: PreTrainedModel) -> list[nn.Module]:
    if model.layerdrop:  # whole blocks left out at random: the library's own loop does that
        return [Whole(model)]
    return [BartEmbeddings(model), *map(Block, model.layers)]


class T5Embeddings(First):
    """Words alone: positions are relative, in the blocks."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.words, self.dropout = model.embed_tokens, model.dropout

    def begin(self, state: State) -> State:
        return self._bidirectional(state, self.dropout(self.words(state["input_ids"])))


class T5Block(Block):
    """The first block's bias of relative positions serves all."""

    def step(self, state: State) -> State:
        x, bias, _ = self.block(state["x"], state["block_mask"], state.get("position_bias"))
        return {**state, "x": x, "position_bias": bias}


def _t5(model: PreTrainedModel) -> list[nn.Module]:
    norm = nn.Sequential(model.final_layer_norm, model.dropout)
    return [T5Embeddings(model), *_blocks(T5Block, model.block, norm)]


# ---------------------------------------------------------------- GPT-2


class GPT2Embeddings(First):
    """Words and learned positions; a position sees those before it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.words, self.positions, self.dropout = model.wte, model.wpe, model.drop

    def begin(self, state: State) -> State:
        words = self.words(state["input_ids"])
        place = torch.arange(words.shape[1], device=words.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=words,
            attention_mask=state["attention_mask"],
            past_key_values=None,
            position_ids=place,
        )
        return {**state, "x": self.dropout(words + self.positions(place)), "block_mask": mask}


class GPT2Block(Block):
    """Its mask comes third, after a cache that an encoder has none of."""

    def step(self, state: State) -> State:
        return {**state, "x": self.block(state["x"], None, state["block_mask"])}


def _gpt2(model: PreTrainedModel) -> list[nn.Module]:
    return [GPT2Embeddings(model), *_blocks(GPT2Block, model.h, model.ln_f)]


# ---------------------------------------------------------------- rotary positions: ModernBERT, Qwen, Llama


class RotaryEmbeddings(First):
    """Words; for each kind of attention that blocks have, its mask and its rotations."""

    def __init__(self, model: PreTrainedModel, kinds: Iterable[str]) -> None:
        super().__init__(model)
        self.both_ways = model.config.model_type == "modernbert"
        self.words = model.embeddings if self.both_ways else model.embed_tokens
        self.rotary, self.kinds = model.rotary_emb, sorted(set(kinds))

    def begin(self, state: State) -> State:
        x = self.words(state["input_ids"])
        place = torch.arange(x.shape[1], device=x.device)[None]
        given = {"config": self.config, "inputs_embeds": x, "attention_mask": state["attention_mask"]}
        if not self.both_ways:
            given |= {"past_key_values": None, "position_ids": place}
        found: dict[str, Any] = {}
        for kind in self.kinds:
            found[f"block_mask/{kind}"] = _MASKS[self.both_ways, kind](**given)
            cos, sin = self.rotary(x, place, kind) if self.both_ways else self.rotary(x, place)
            found |= {f"cos/{kind}": cos, f"sin/{kind}": sin}
        return {**state, **found, "x": x}


_MASKS = {
    (True, "full_attention"): create_bidirectional_mask,
    (True, "sliding_attention"): create_bidirectional_sliding_window_mask,
    (False, "full_attention"): create_causal_mask,
    (False, "sliding_attention"): create_sliding_window_causal_mask,
}


class RotaryBlock(Block):
    """A block of one kind of attention."""

    def __init__(self, block: nn.Module, *, kind: str, norm: nn.Module | None) -> None:
        super().__init__(block, norm=norm)
        self.kind = kind

    def step(self, state: State) -> State:
        x = self.block(
            state["x"],
            attention_mask=state[f"block_mask/{self.kind}"],
            position_embeddings=(state[f"cos/{self.kind}"], state[f"sin/{self.kind}"]),
        )
        return {**state, "x": x}


def _rotary(model: PreTrainedModel) -> list[nn.Module]:
    kinds = ["full_attention"] * len(model.layers)
    if model.config.model_type != "llama":
        kinds = model.config.layer_types
    norm = model.final_norm if model.config.model_type == "modernbert" else model.norm
    norms = [*[None] * (len(kinds) - 1), norm]
    blocks = [RotaryBlock(b, kind=k, norm=n) for b, k, n in zip(model.layers, kinds, norms, strict=True)]
    return [RotaryEmbeddings(model, kinds), *blocks]


# ---------------------------------------------------------------- the table

_FAMILIES: dict[str, Callable[[PreTrainedModel], list[nn.Module]]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra"), _bert),
    "deberta-v2": _deberta,  # v3 too
    "bart": _bart,
    "t5": _t5,
    "mt5": _t5,
    "gpt2": _gpt2,
    **dict.fromkeys(("modernbert", "qwen2", "qwen3", "llama"), _rotary),
}


def split(model: PreTrainedModel) -> list[nn.Module]:
    """The stages of a model, which they take apart."""
    family = _FAMILIES.get(model.config.model_type)
    return [Whole(model)] if family is None else family(model)


def positions(model: PreTrainedModel) -> int | None:
    """How many positions the model was made for; None where that is unlimited (T5)."""
    if "max_position_embeddings" not in declared(model.config):
        return None
    longest = model.config.max_position_embeddings
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        return longest - model.config.pad_token_id - 1  # positions are counted from there on
    return longest


def declared(config: PretrainedConfig) -> set[str]:
    """The settings that an architecture has: a config takes any others too, without effect."""
    return {*type(config)().to_dict(), *config.attribute_map}


def _blocks(kind: type[Block], blocks: Iterable[nn.Module], norm: nn.Module) -> list[Block]:
    *others, last = blocks
    return [*map(kind, others), kind(last, norm=norm)]
