"""The head of a generation task: a decoder that attends to the encoder's states."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel, DynamicCache, EncoderDecoderCache

from mtlbench.models.heads.base import State

IGNORED = -100


class GenerationHead(nn.Module):
    """A BERT-like causal decoder with cross-attention, from the transformers library, which also generates.

    Its embeddings are its own, tied to its output layer; its width is the encoder's.

    Rothe, Narayan and Severyn 2020, arXiv:1907.12461 (here initialised at random).

    Args:
        features: D.
        vocabulary: the number of tokens.
        start, end, pad: token ids: what generation begins with, what ends it, what fills up.
        max_length: the most tokens of a generated text, the end included.
        num_beams: of beam search; 1 for greedy search.
        layers, attention_heads, intermediate: the decoder's size.
        dropout: of its states and attention.
    """

    def __init__(
        self,
        features: int,
        vocabulary: int,
        *,
        start: int,
        end: int,
        pad: int,
        max_length: int,
        num_beams: int,
        layers: int,
        attention_heads: int,
        intermediate: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.start, self.end, self.pad = start, end, pad
        self.max_length, self.num_beams = max_length, num_beams
        self.decoder = BertLMHeadModel(
            BertConfig(
                vocab_size=vocabulary,
                hidden_size=features,
                num_hidden_layers=layers,
                num_attention_heads=attention_heads,
                intermediate_size=intermediate,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                max_position_embeddings=max_length + 1,  # the start token takes one
                is_decoder=True,
                add_cross_attention=True,
                bos_token_id=start,
                eos_token_id=end,
                pad_token_id=pad,
            )
        )

    def forward(self, state: State, targets: Tensor) -> Tensor:
        """(B, L, vocabulary) logits of each target token, given those before it.

        Args:
            state: with features (B, S, D) and an `attention_mask` (B, S).
            targets: (B, L) token ids, -100 after the end.
        """
        tokens = torch.where(targets == IGNORED, self.pad, targets)
        before = torch.cat([torch.full_like(tokens[:, :1], self.start), tokens[:, :-1]], dim=1)
        # No mask for pads: they come after the end, where a causal decoder's earlier outputs do not see them.
        return self.decoder(input_ids=before, use_cache=False, **_cross(state)).logits

    @torch.no_grad()
    def generate(self, state: State) -> Tensor:
        """(B, L) token ids without the start, by beam search; after the end, pads."""
        before = torch.full((len(state["x"]), 1), self.start, device=state["x"].device)
        config = self.decoder.config
        found = self.decoder.generate(
            input_ids=before,
            attention_mask=torch.ones_like(before),
            # By itself `generate` makes the cache of a model without cross-attention.
            past_key_values=EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config)),
            num_beams=self.num_beams,
            max_new_tokens=self.max_length,
            do_sample=False,
            **_cross(state),
        )
        return found[:, 1:]


def _cross(state: State) -> dict[str, Tensor]:
    if state["x"].ndim != 3:
        raise ValueError(f"Generation needs features (B, S, D) of tokens, got shape {tuple(state['x'].shape)}.")
    return {"encoder_hidden_states": state["x"], "encoder_attention_mask": state["attention_mask"]}
