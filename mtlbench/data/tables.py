"""Datasets in memory as tensors, and what is known of their inputs and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # the class index of a missing label, as in torch's cross_entropy

Batch = dict[str, dict[str, Tensor]]


class Ragged:
    """N sequences of different lengths, stored end to end.

    Args:
        values: (sum L,) the elements.
        offsets: (N + 1,) int64; sequence n is `values[offsets[n]:offsets[n + 1]]`.
        pad: what fills a batch's shorter rows.
    """

    def __init__(self, values: Tensor, *, offsets: Tensor, pad: int | float) -> None:
        assert offsets[[0, -1]].tolist() == [0, len(values)], "offsets must span the values"
        self.values, self.offsets, self.pad = values, offsets, pad

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, indices: Tensor) -> Tensor:
        """(B,) int64 -> (B, Lmax) padded to the longest of the chosen sequences."""
        start = self.offsets[indices]
        length = self.offsets[indices + 1] - start
        position = torch.arange(int(length.max()) if len(length) else 0)
        outside = position >= length[:, None]
        where = (start[:, None] + position).masked_fill_(outside, 0)
        return self.values[where].masked_fill_(outside, self.pad)


class Split:
    """One dataset's split in memory.

    Targets of one number a row and one dtype are stored as a table (N, T'), gathered once for a batch and unbound:
    with 40 tasks, 40 gathers would cost more than the rest of the loader.

    Args:
        inputs: name -> (N, ...) tensor or `Ragged` of N rows. Text: input_ids, attention_mask; image and vector: x.
        targets: task -> classification (N,) int64, -100 missing; regression (N,) float32, NaN missing; multilabel
            (N, C) float32, NaN missing; tagging `Ragged` int64, -100 on all but the words' first sub-words.
    """

    def __init__(self, inputs: Mapping[str, Tensor | Ragged], *, targets: Mapping[str, Tensor | Ragged]) -> None:
        self.inputs = dict(inputs)
        self._order = list(targets)
        self._wide = {n: t for n, t in targets.items() if isinstance(t, Ragged) or t.ndim > 1}
        groups: dict[torch.dtype, dict[str, Tensor]] = {}
        for name, target in targets.items():
            if isinstance(target, Tensor) and target.ndim == 1:
                groups.setdefault(target.dtype, {})[name] = target
        self._tables = [(list(group), torch.stack(list(group.values()), dim=1)) for group in groups.values()]
        lengths = {name: len(value) for name, value in {**self.inputs, **targets}.items()}
        assert len(set(lengths.values())) == 1, f"inputs and targets differ in length: {lengths}"
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    @property
    def targets(self) -> dict[str, Tensor | Ragged]:
        """All targets by task, as they were given."""
        found = dict(self._wide)
        for names, table in self._tables:
            found.update(zip(names, table.unbind(1), strict=True))
        return {name: found[name] for name in self._order}

    def encoded(self, encode: Mapping[str, Callable[[Tensor], Tensor]]) -> Split:
        """The same rows with some tasks' (N, ...) targets mapped, once and for all."""
        targets = {
            name: target if isinstance(target, Ragged) or name not in encode else encode[name](target)
            for name, target in self.targets.items()
        }
        return Split(self.inputs, targets=targets)

    def batch(self, indices: Tensor) -> Batch:
        """(B,) int64 -> {"inputs": {name: (B, ...)}, "targets": {task: (B,), (B, C) or (B, Lmax)}}."""
        found = {name: _take(value, indices) for name, value in self._wide.items()}
        for names, table in self._tables:
            found.update(zip(names, table.index_select(0, indices).unbind(1), strict=True))
        return {
            "inputs": {name: _take(value, indices) for name, value in self.inputs.items()},
            "targets": {name: found[name] for name in self._order},
        }


def _take(value: Tensor | Ragged, indices: Tensor) -> Tensor:
    return value.take(indices) if isinstance(value, Ragged) else value.index_select(0, indices)


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What the data say of a task.

    Attributes:
        num_outputs: classes of classification and tagging, labels of multilabel, 1 for regression.
        labels: their names in the order of the outputs; () for regression.
    """

    name: str
    type: str
    dataset: str
    num_outputs: int
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What an encoder must know of a dataset's inputs.

    Attributes:
        type: text, image or vector.
        shape: of one example, without the batch dimension; (C, H, W) or (D,); () for text.
        vocab_size, pad_id, tokenizer: of text; None otherwise.
    """

    type: str
    shape: tuple[int, ...] = ()
    vocab_size: int | None = None
    pad_id: int | None = None
    tokenizer: Any = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """A benchmark in memory.

    Attributes:
        splits: "train", "val", "test" -> dataset -> its rows.
        tasks: the chosen tasks in the benchmark's order, which is the order of rows and of balancer state.
        input_spec: dataset -> what its inputs look like.
    """

    splits: dict[str, dict[str, Split]]
    tasks: dict[str, TaskInfo]
    input_spec: dict[str, InputSpec]
