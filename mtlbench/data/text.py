"""Tokenisation, done once for all rows, and the alignment of words with their sub-words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from mtlbench.data.tables import IGNORE, Ragged

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2, lowercase: bool = True) -> Any:
    """Trains BERT's WordPiece tokeniser; the same texts give the same vocabulary and ids, always.

    Args:
        texts: of the training split.
        vocab_size: the most entries it may have, the special tokens and every character included.
        min_frequency: how often a pair must occur to be merged.
        lowercase: lower-case and strip accents.

    Returns:
        a `transformers.PreTrainedTokenizerFast`.

    Raises:
        ValueError: `vocab_size` has no room for the characters of the texts.

    Note:
        `WordPieceTrainer` meets the "##x" forms of the characters in the order of a hash map, and their ids decide
        between equally frequent pairs: ids and vocabulary differ from run to run. Here all characters, in both forms,
        enter in sorted order ahead of training, which makes it deterministic.
    """
    from transformers import PreTrainedTokenizerFast  # 0.7 s of import

    texts = list(texts)
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    characters = sorted({c for text in texts for c in normalizer.normalize_str(text) if not c.isspace()})
    first = [*SPECIAL.values(), *characters, *(f"##{character}" for character in characters)]
    if vocab_size < len(first):
        raise ValueError(
            f"vocab_size={vocab_size} is too small: the training texts have {len(characters)} characters, which with "
            f"the special tokens take {len(first)} entries."
        )
    learner = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk"]))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    learner.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=first, show_progress=False
        ),
    )
    # A fresh tokeniser with the learnt vocabulary: to the learner, the characters are special tokens.
    vocabulary = learner.get_vocab()
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in (SPECIAL["cls"], SPECIAL["sep"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in SPECIAL.items()},
    )


def load_tokenizer(
    texts: Iterable[str] = (), *, name_or_path: str, trust_remote_code: bool = False, **options: Any
) -> Any:
    """Loads a pretrained tokeniser from the Hugging Face hub or a folder.

    Args:
        texts: not used; there so that a loaded and a trained tokeniser are called alike.
        name_or_path: hub id or folder.
        trust_remote_code: run code that comes with it.
        options: the tokeniser's own, such as pad_token or add_prefix_space.

    Raises:
        OSError: it is in neither place.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **options)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """N tokenised texts.

    Attributes:
        input_ids, attention_mask: N rows of L sub-words, special tokens included.
        word: (sum L,) int64, the index of the word that starts at this sub-word; -1 elsewhere.
        words_kept: (N,) int64, how many words have their first sub-word within `max_length`.
        truncated: (N,) bool, whether the text was cut at `max_length`.
        token_type_ids: N rows of L, 1 on the second text of a pair; None for single texts and for tokenisers whose
            model does not tell the two apart.
    """

    input_ids: Ragged
    attention_mask: Ragged
    word: Tensor
    words_kept: np.ndarray
    truncated: np.ndarray
    token_type_ids: Ragged | None = None


def encode(
    texts: Sequence[str] | Sequence[Sequence[str]] | Sequence[tuple[str, str]],
    *,
    tokenizer: Any,
    max_length: int | None,
) -> Encoded:
    """Tokenises plain texts, texts already split into words, or pairs of plain texts.

    Pairs get the tokeniser's own separators; of one that is too long, the longer text is cut first.

    A word that the tokeniser makes nothing of (white space, control characters) becomes its unknown token, so that
    every word has a sub-word. An empty text has the special tokens alone.

    Args:
        texts: N strings, N lists of words, or N tuples of two strings.
        tokenizer: a fast tokeniser of transformers, with a pad token.
        max_length: the most sub-words of a text, special tokens included; None for no cut.

    Raises:
        ValueError: the tokeniser is no fast one, lacks a pad token, or an unknown token where one is needed.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is no fast tokeniser; words cannot be aligned with sub-words.")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"The tokeniser '{tokenizer.name_or_path}' has no pad token; give it one of its tokens, such as "
            f"+encoder.tokenizer.pad_token='{tokenizer.eos_token}'."
        )
    pairs = len(texts) > 0 and isinstance(texts[0], tuple)
    split = not pairs and not all(isinstance(text, str) for text in texts)
    words = _without_blanks(texts, tokenizer) if split else list(texts)
    cut = max_length is not None
    found = tokenizer(words, is_split_into_words=split, truncation=cut, max_length=max_length).encodings
    ids = [encoding.ids for encoding in found]
    offsets = torch.tensor([0, *itertools.accumulate(map(len, ids))])
    values = torch.tensor(list(itertools.chain.from_iterable(ids)), dtype=torch.int64)
    word = np.fromiter(
        (-1 if index is None else index for encoding in found for index in encoding.word_ids), int, len(values)
    )
    row = np.repeat(np.arange(len(found)), np.diff(offsets.numpy()))
    goes_on = (word[1:] == word[:-1]) & (row[1:] == row[:-1])
    word[1:][goes_on] = -1
    return Encoded(
        input_ids=Ragged(values, offsets=offsets, pad=tokenizer.pad_token_id),
        attention_mask=Ragged(torch.ones_like(values), offsets=offsets, pad=0),
        word=torch.from_numpy(word),
        words_kept=np.bincount(row[word >= 0], minlength=len(found)),
        truncated=np.array([bool(encoding.overflowing) for encoding in found], dtype=bool),
        token_type_ids=Ragged(
            torch.tensor([kind for encoding in found for kind in encoding.type_ids], dtype=torch.int64),
            offsets=offsets,
            pad=0,
        )
        if pairs and "token_type_ids" in tokenizer.model_input_names
        else None,
    )


def _without_blanks(rows: Sequence[Sequence[str]], tokenizer: Any) -> list[list[str]]:
    vocabulary = sorted({word for row in rows for word in row})
    ids = tokenizer(vocabulary, add_special_tokens=False)["input_ids"] if vocabulary else []
    blank = {word for word, found in zip(vocabulary, ids, strict=True) if not found}
    if blank and tokenizer.unk_token is None:
        raise ValueError(f"The tokeniser makes nothing of the word {min(blank)!r} and has no unknown token for it.")
    return [[tokenizer.unk_token if word in blank else word for word in row] for row in rows]


def shorten(rows: Sequence[Sequence[str]], *, tokenizer: Any, most: int) -> list[list[str]]:
    """Cuts words after their first `most` sub-words."""
    vocabulary = sorted({word for row in rows for word in row})
    found = tokenizer(vocabulary, add_special_tokens=False).encodings if vocabulary else []
    short = {
        word: word[: one.offsets[most - 1][1]] if len(one.ids) > most else word
        for word, one in zip(vocabulary, found, strict=True)
    }
    return [[short[word] for word in row] for row in rows]


def align(encoded: Encoded, *, labels: Sequence[Sequence[int]]) -> Ragged:
    """Puts each word's label on its first sub-word, -100 on all else.

    Args:
        encoded: N tokenised texts.
        labels: N sequences of one class index a word; an empty one for a row without labels.

    Returns:
        N rows, as long as those of `encoded.input_ids`. Labels of words beyond the cut are left out.
    """
    offsets = encoded.input_ids.offsets
    lengths = torch.tensor([len(row) for row in labels])
    flat = torch.tensor([*itertools.chain.from_iterable(labels), IGNORE])  # the last one: where no label is wanted
    row = torch.repeat_interleave(torch.arange(len(labels)), offsets.diff())
    first_label = torch.cumsum(lengths, 0) - lengths
    wanted = (encoded.word >= 0) & (lengths[row] > 0)
    where = torch.where(wanted, first_label[row] + encoded.word, len(flat) - 1)
    return Ragged(flat[where], offsets=offsets, pad=IGNORE)
