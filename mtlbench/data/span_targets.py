"""Answers that stand in a context -> positions of tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mtlbench.data.inputs import Frames, Inputs, find_columns, show
from mtlbench.data.names import TaskNode
from mtlbench.data.tables import IGNORE, SpanReference

log = logging.getLogger(__name__)


def make_span_targets(
    frames: Frames, node: TaskNode, inputs: Inputs
) -> tuple[dict[str, Tensor], dict[str, Sequence[SpanReference | None]], dict[str, Any]]:
    """Of each split (N, 2) the first and last token of each row's first answer, and the references.

    A cell is a list of `{text, answer_start}`, empty where the context has no answer. Without an answer, or with one
    beyond `data.max_length`, the target is position 0; the references keep it.

    Raises:
        ValueError: the inputs are no pairs of question and context, or an answer does not stand where it should.
    """
    if inputs.texts is None or inputs.encoded is None or not isinstance(inputs.texts["train"][0], tuple):
        raise ValueError(f"Task '{node.name}' finds answers, but the inputs of '{node.dataset}' are no pairs of texts.")
    targets: dict[str, Tensor] = {}
    references: dict[str, Sequence[SpanReference | None]] = {}
    for split, frame in frames.items():
        place = f"dataset '{node.dataset}', task '{node.name}', split '{split}'"
        [column] = find_columns(frame, node.column, place=place)
        texts, lengths = inputs.texts[split], inputs.encoded[split].input_ids.offsets.diff()
        # The same cut as that of the inputs, whose own offsets are not kept.
        found = inputs.spec.tokenizer(
            texts, truncation=True, max_length=int(lengths.max()), return_offsets_mapping=True
        ).encodings
        ends: list[tuple[int, int]] = []
        rows: list[SpanReference | None] = []
        cut = 0
        for row, (cell, (_, context), encoding) in enumerate(zip(frame[column], texts, found, strict=True)):
            assert len(encoding.ids) == int(lengths[row]), "tokenised differently from the inputs"
            answers = _answers(cell, context, place=f"{place}, row {row}")
            if answers is None:
                ends.append((IGNORE, IGNORE))
                rows.append(None)
                continue
            positions = [i for i, part in enumerate(encoding.sequence_ids) if part == 1]
            first = positions[0] if positions else 0
            offsets = tuple(encoding.offsets[i] for i in positions)
            rows.append(SpanReference(context, tuple(text for text, _ in answers), first, offsets))
            span = _span(answers[0], offsets) if answers else None
            cut += bool(answers) and span is None
            ends.append((0, 0) if span is None else (first + span[0], first + span[1]))
        if cut:
            log.warning("%s: %d answers lie beyond data.max_length.", place, cut)
        targets[split], references[split] = torch.tensor(ends, dtype=torch.int64), rows
    return targets, references, {}


def _answers(cell: Any, context: str, *, place: str) -> list[tuple[str, int]] | None:
    if not isinstance(cell, (list, tuple)):
        if pd.isna(cell):
            return None
        raise ValueError(f"{place}: expected a list of answers, got {show(cell)}.")
    answers = []
    for answer in cell:
        if not isinstance(answer, Mapping) or not {"text", "answer_start"} <= set(answer):
            raise ValueError(f"{place}: an answer has 'text' and 'answer_start', got {answer!r}.")
        text, start = answer["text"], int(answer["answer_start"])
        if not text or context[start : start + len(text)] != text:
            raise ValueError(f"{place}: the context does not have {text!r} at {start}.")
        answers.append((text, start))
    return answers


def _span(answer: tuple[str, int], offsets: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """First and last of the tokens that overlap the answer; None where it goes beyond the last token."""
    text, start = answer
    end = start + len(text.rstrip())
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    return (inside[0], inside[-1]) if inside and offsets[-1][1] >= end else None
