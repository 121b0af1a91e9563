"""A sub-word vocabulary that loses nothing: for tasks that write text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mtlbench.data.text import SPECIAL


def train_bytelevel(texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2, lowercase: bool = False) -> Any:
    """Trains a byte-level BPE tokeniser; what it decodes is the text that it encoded, spaces and all.

    Sennrich, Haddow and Birch 2016, arXiv:1508.07909; on bytes by Radford et al. 2019.

    Args:
        texts: of the training split, inputs and targets.
        vocab_size: the most entries it may have, the special tokens and 256 bytes included.
        min_frequency: how often a pair must occur to be merged.
        lowercase: lower-case all texts, those that are written too.

    Returns:
        a `transformers.PreTrainedTokenizerFast` with BERT's special tokens.

    Raises:
        ValueError: `vocab_size` has no room for the bytes.
    """
    from transformers import PreTrainedTokenizerFast  # 0.7 s of import

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(SPECIAL) + len(alphabet)
    if vocab_size < least:
        raise ValueError(f"vocab_size={vocab_size} is too small: bytes and special tokens take {least} entries.")
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk"]))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(SPECIAL.values()),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    vocabulary = tokenizer.get_vocab()
    template = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in (SPECIAL["cls"], SPECIAL["sep"])],
    )
    # Offsets leave out the space that a token begins with.
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in SPECIAL.items()},
    )
