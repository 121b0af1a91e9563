"""Texts that tasks generate -> token ids, and the references that generated texts are compared with."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from mtlbench.data.inputs import Frames, Inputs, find_columns, show, unicode_error, words_of
from mtlbench.data.names import TaskNode
from mtlbench.data.sources import at
from mtlbench.data.span_targets import make_span_targets
from mtlbench.data.tables import IGNORE, Ragged, Reference

log = logging.getLogger(__name__)

LOOKED_AT = 500  # of a test's references


def read_targets(frame: pd.DataFrame, node: TaskNode, *, split: str) -> list[tuple[str, ...] | None]:
    """Each row's right texts, None where missing: a cell holds one text, or a list of several.

    Answers may come as SQuAD has them, each a mapping with its `text`. Where the list is empty, as of a question
    without an answer, the right text is the empty one.

    Raises:
        ValueError: a cell holds something else.
    """
    place = f"dataset '{node.dataset}', task '{node.name}', split '{split}'"
    [name] = find_columns(frame, node.column, place=place)
    column = frame[name] if node.where is None else frame[name].where(frame[node.where[0]] == node.where[1])
    rows: list[tuple[str, ...] | None] = []
    for row, cell in enumerate(column):
        texts = tuple(map(_text, cell)) or ("",) if isinstance(cell, (list, tuple)) else (cell,)
        if not isinstance(cell, (str, list, tuple)) and pd.isna(cell):
            rows.append(None)
        elif all(isinstance(text, str) for text in texts):
            if error := unicode_error("".join(texts)):
                raise ValueError(
                    f"{place}, {at(frame, row)}: column '{name}': expected Unicode text: {error}"
                ) from error
            rows.append(texts)
        else:
            raise ValueError(
                f"{place}, {at(frame, row)}: column '{name}': expected a text, or a list of texts or of answers with a "
                f"'text', got {show(cell)}."
            )
    return rows


def make_text_targets(
    frames: Frames, node: TaskNode, inputs: Inputs
) -> tuple[dict[str, Ragged], dict[str, Sequence[Reference | None]], dict[str, Any]]:
    """Of each split the token ids (of the first text, with the end token) and the references; the token options.

    The same tokeniser serves the inputs and the targets. Training targets beyond `max_length` are cut; references
    never are.

    Raises:
        ValueError: the inputs are no text, or the tokeniser has no token to begin or end with.
    """
    if inputs.texts is None:
        raise ValueError(f"Task '{node.name}' generates text, but the inputs of '{node.dataset}' are no text.")
    tokenizer, limit = inputs.spec.tokenizer, node.options["max_length"]
    tokens = {
        "start": _first(tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id),
        "end": _first(tokenizer.sep_token_id, tokenizer.eos_token_id),
        "pad": tokenizer.pad_token_id,
        "vocabulary": len(tokenizer),
    }
    if None in tokens.values():
        raise ValueError(f"Task '{node.name}': the tokeniser needs tokens to start, end and pad; it has {tokens}.")
    added = tokenizer(text_target="")["input_ids"]
    tokens["prefix"] = added[0] if added and added[0] != tokens["end"] else None  # what it puts before a text
    targets: dict[str, Ragged] = {}
    references: dict[str, Sequence[Reference | None]] = {}
    for split, frame in frames.items():
        rows = read_targets(frame, node, split=split)
        firsts = [texts[0] for texts in rows if texts is not None]
        made = tokenizer(firsts, add_special_tokens=False)["input_ids"] if firsts else []
        if cut := sum(len(ids) >= limit for ids in made):
            log.warning(
                "dataset '%s', task '%s', split '%s': max_length=%d cuts %d of %d targets.",
                *(node.dataset, node.name, split, limit, cut, len(made)),
            )
        if split == "test":
            _warn_of_losses(tokenizer, firsts, made, node)
        found = iter(made)
        ids = [[IGNORE] if texts is None else [*next(found)[: limit - 1], tokens["end"]] for texts in rows]
        targets[split] = Ragged(
            torch.tensor(list(itertools.chain.from_iterable(ids)), dtype=torch.int64),
            offsets=torch.tensor([0, *itertools.accumulate(map(len, ids))]),
            pad=IGNORE,
        )
        if (targets[split].values == IGNORE).all():
            raise ValueError(
                f"dataset '{node.dataset}', task '{node.name}', split '{split}': expected a label in some row of "
                f"column '{node.column}', and all are missing."
            )
        references[split] = [
            None if texts is None else Reference(source_of(source), texts)
            for source, texts in zip(inputs.texts[split], rows, strict=True)
        ]
    return targets, references, tokens


def _warn_of_losses(tokenizer: Any, texts: Sequence[str], ids: Sequence[Sequence[int]], node: TaskNode) -> None:
    """Says so where the tokeniser can't give the test's references back: lower case, accents, divided words."""
    some = [" ".join(text.split()) for text in texts[:LOOKED_AT]]
    back = [" ".join(text.split()) for text in tokenizer.batch_decode(ids[:LOOKED_AT], skip_special_tokens=True)]
    changed = [(text, other) for text, other in zip(some, back, strict=True) if text != other]
    if changed:
        text, other = min(changed, key=lambda pair: len(pair[0]))
        log.warning(
            "dataset '%s', task '%s', split 'test': the tokenizer gives %d of %d references back changed, such as %r "
            "as %r. No generated text can match those: scores stay low whatever is learnt. A byte-level tokenizer "
            "(encoder=transformer_bpe, or a pretrained model that has one) keeps every letter.",
            *(node.dataset, node.name, len(changed), len(some), text, other),
        )


def source_of(text: Any) -> str:
    """An input as one text: the words of a list, the two of a pair, divided by spaces."""
    return text if isinstance(text, str) else " ".join(words_of(text))


def target_texts(frames: Mapping[str, pd.DataFrame], node: TaskNode) -> list[str]:
    """All training targets, for a tokeniser that is trained on both sides."""
    return [text for texts in read_targets(frames["train"], node, split="train") for text in texts or ()]


def _text(item: Any) -> Any:
    return item.get("text") if isinstance(item, Mapping) else item


def _first(*tokens: int | None) -> int | None:
    return next((token for token in tokens if token is not None), None)


TEXT_TARGETS: dict[str, Any] = {"generation": make_text_targets, "span": make_span_targets}
