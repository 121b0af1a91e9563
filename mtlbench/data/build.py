"""A benchmark's tables -> tensors in memory."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mtlbench.data.inputs import find_columns, make_inputs, read_texts, show
from mtlbench.data.masking import mask_evaluated
from mtlbench.data.names import MASKED, TaskNode, choose, expand, masked_datasets, nearest
from mtlbench.data.overlaps import Overlap, find_overlaps
from mtlbench.data.sources import ORIGIN, SPLITS, at
from mtlbench.data.sources.division import numbered
from mtlbench.data.tables import Data, Split, TaskInfo
from mtlbench.data.targets import Targets, make_targets
from mtlbench.data.text_targets import TEXT_TARGETS, target_texts

log = logging.getLogger(__name__)

LONGEST_WORD = 2000  # characters of one that a vocabulary is learnt from

Frames = dict[str, pd.DataFrame]  # split -> table


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A dataset as the YAML declares it.

    Attributes:
        load: called with `data_dir=`, gives "train", "val" and "test" -> table.
        input: `{type: text, column}`, with plain text or lists of words; `{type: image, column}`, with (H, W) or
            (C, H, W) arrays; or `{type: vector, columns, standardize}`, with names or globs. Two columns of plain text
            make pairs: `{type: text, column: [first, second]}`. Of lists of words, `longest_word` is how
            many sub-words the encoder sees of one at most.
    """

    load: Callable[..., Frames]
    input: Mapping[str, Any]


def build(
    *,
    datasets: Mapping[str, DatasetSource],
    tasks: Mapping[str, Mapping[str, Any]],
    select: Sequence[str] | None,
    data_dir: str | None,
    tokenizer: Callable[[Iterator[str]], Any] | None,
    max_length: int | None,
    overlaps: str = "drop",
    tables: Tables | None = None,
) -> Data:
    """Loads the datasets that the chosen tasks need.

    Rows of val and test are never dropped or reordered: row n of a split is row n of its table, also where no task
    labels it. Training loses what another dataset's val or test holds, see `read_tables`.

    Args:
        datasets: name -> source.
        tasks: the benchmark's `tasks` node, see `mtlbench.data.names`.
        select: names of the wanted tasks; None for all.
        data_dir: the data directory; None for the Hugging Face hub.
        tokenizer: from the training texts to a tokeniser; needed where a dataset's input is text. The texts are those
            of all the benchmark's datasets, so that training a subset of the tasks does not change it.
        max_length: the most sub-words of a text; None for no cut.
        overlaps: "drop" or "keep" such training rows.
        tables: the datasets, where they have been read already.

    Raises:
        ValueError: naming dataset, task, split and row of what is wrong; rows of train are counted after the drop.
    """
    nodes = choose(tasks, select)
    for node in nodes.values():
        if node.dataset not in datasets:
            raise ValueError(f"Task '{node.name}': no dataset '{node.dataset}'. {nearest(node.dataset, datasets)}")
    wanted = list(dict.fromkeys(node.dataset for node in nodes.values()))
    masked = masked_datasets(tasks)
    if tables is None:
        tables = read_tables(datasets, wanted=wanted, data_dir=data_dir, overlaps=overlaps, unlabelled=masked)
    frames = tables.frames

    def training_texts() -> Iterator[str]:
        seen: set[str] = set()  # a second copy of a dataset, to be masked, makes none of its words more frequent
        for name in sorted(datasets, key=masked.__contains__):
            if datasets[name].input["type"] == "text":
                place = f"dataset '{name}', split 'train'"
                for found in read_texts(frames[name]["train"], datasets[name].input["column"], place=place):
                    text = found if isinstance(found, str) else " ".join(found)
                    if name not in masked or text not in seen:
                        yield text
                    if masked:
                        seen.add(text)
        for node in expand(tasks).values():
            if node.type == "generation":
                yield from target_texts(frames[node.dataset], node)

    made = None
    if any(datasets[name].input["type"] == "text" for name in wanted):
        if tokenizer is None:
            raise ValueError("The benchmark's inputs are text, but the encoder brings no tokenizer. Choose a text one.")
        made = tokenizer(_broken(text) for text in training_texts())

    data = Data(splits={split: {} for split in SPLITS}, tasks={}, input_spec={})
    for name in wanted:
        inputs = make_inputs(frames[name], name, datasets[name].input, tokenizer=made, max_length=max_length)
        _check(frames[name], name, nodes=nodes, tasks=tasks, inputs=inputs.columns)
        data.input_spec[name] = inputs.spec
        references: dict[str, Mapping[str, Sequence[Any]]] = {}
        options: dict[str, Mapping[str, Any]] = {}
        own: dict[str, Targets] = {}
        for task, node in nodes.items():
            if node.dataset == name and node.type == MASKED:
                inputs, maskable, options[task] = mask_evaluated(node, inputs)
                own[task] = maskable, ()
            elif node.dataset == name and node.type in TEXT_TARGETS:
                found, references[task], options[task] = TEXT_TARGETS[node.type](frames[name], node, inputs)
                own[task] = found, ()
            elif node.dataset == name:
                own[task] = make_targets(frames[name], node, inputs)
        for task, (_, labels) in own.items():
            data.tasks[task] = TaskInfo(
                name=task, type=nodes[task].type, dataset=name, num_outputs=len(labels) or 1, labels=labels,
                options={**nodes[task].options, **options.get(task, {})},
                metrics=nodes[task].metrics, primary=nodes[task].primary,
            )  # fmt: skip
        for split in SPLITS:
            targets = {task: found[split] for task, (found, _) in own.items()}
            texts = {task: found[split] for task, found in references.items()}
            data.splits[split][name] = Split(inputs.tensors[split], targets=targets, references=texts)
        log.info("%s: %s rows", name, ", ".join(f"{split} {len(data.splits[split][name])}" for split in SPLITS))
    return Data(
        splits=data.splits,
        tasks={task: data.tasks[task] for task in nodes},
        input_spec=data.input_spec,
        overlaps={"found": [overlap.record() for overlap in tables.overlaps], "dropped": tables.dropped},
    )


def _broken(text: str) -> str:
    """With a space after every 2,000 characters of a word: learning a vocabulary is quadratic in a word's length."""
    return text if len(text) <= LONGEST_WORD else re.sub(rf"(\S{{{LONGEST_WORD}}})(?=\S)", r"\1 ", text)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Datasets as they were read.

    Attributes:
        frames: dataset -> split -> table, without the training rows that were dropped.
        overlaps: what was found in common, whether dropped or not.
        dropped: dataset -> how many of its training rows were dropped.
    """

    frames: dict[str, Frames]
    overlaps: list[Overlap]
    dropped: dict[str, int]


def read_tables(
    datasets: Mapping[str, DatasetSource],
    *,
    wanted: Sequence[str],
    data_dir: str | None,
    overlaps: str,
    unlabelled: Collection[str] = (),
) -> Tables:
    """Reads datasets, and drops training rows that hold a sentence of another dataset's val or test split.

    Where one of the wanted has text, all with text are read and compared, so that each dataset's training rows are the
    same whichever of the benchmark's tasks are trained.

    Args:
        datasets: name -> source.
        wanted: names of those that tasks need.
        data_dir: see `build`.
        overlaps: "drop", or "keep" to train on such rows all the same, as some papers' protocols do.
        unlabelled: datasets of which a task reads the texts alone, see `find_overlaps`.
    """
    if overlaps not in ("drop", "keep"):
        raise ValueError(f"data.overlaps is drop or keep, got {overlaps!r}.")
    text = [name for name, source in datasets.items() if source.input["type"] == "text"]
    needed = {*wanted, *(text if set(text) & set(wanted) else ())}
    frames = {name: _load(source, name, data_dir) for name, source in datasets.items() if name in needed}
    compared = [name for name in text if name in needed]
    if len(compared) < 2:
        return Tables(frames=frames, overlaps=[], dropped={})
    texts = {
        name: {
            split: read_texts(frame, datasets[name].input["column"], place=f"dataset '{name}', split '{split}'")
            for split, frame in frames[name].items()
        }
        for name in compared
    }
    found = find_overlaps(texts, unlabelled=unlabelled)
    dropped = {}
    for overlap in found:
        log.warning("%s: %s.", overlap, "dropped there" if overlaps == "drop" else "kept, as data.overlaps says")
    for name in dict.fromkeys(overlap.train for overlap in found) if overlaps == "drop" else ():
        train = frames[name]["train"]
        rows = np.unique(np.concatenate([overlap.rows for overlap in found if overlap.train == name]))
        if len(rows) == len(train):
            raise ValueError(f"dataset '{name}': all training rows stand in other datasets' val and test splits.")
        frames[name]["train"] = numbered(train[~np.isin(np.arange(len(train)), rows)])
        dropped[name] = len(rows)
        log.warning("%s: %d of %d training rows dropped.", name, len(rows), len(train))
    return Tables(frames=frames, overlaps=found, dropped=dropped)


def _load(source: DatasetSource, name: str, data_dir: str | None) -> Frames:
    try:
        frames = source.load(data_dir=data_dir)
    except ValueError as error:
        raise ValueError(f"dataset '{name}': {error}") from error
    for split in SPLITS:
        if split not in frames:
            raise ValueError(f"dataset '{name}' has no split '{split}'; it has: {', '.join(frames)}.")
        if not len(frames[split]):
            raise ValueError(f"dataset '{name}': the split '{split}' is empty.")
        twice = frames[split].columns[frames[split].columns.duplicated()]
        if len(twice):
            raise ValueError(f"dataset '{name}', split '{split}': two columns are called '{twice[0]}'.")
        log.info("%s, %s: %s", name, split, frames[split].attrs.get(ORIGIN, "from its source"))
    return {split: numbered(frames[split]) for split in SPLITS}


def _check(
    frames: Frames,
    name: str,
    *,
    nodes: Mapping[str, TaskNode],
    tasks: Mapping[str, Mapping[str, Any]],
    inputs: Sequence[str],
) -> None:
    """No input column is a task's label, and the values that a `split_by` declares are those in the data."""
    for task, node in nodes.items():
        labels = {node.column} if isinstance(node.column, str) else set(node.column)
        if node.dataset == name and labels & set(inputs):
            raise ValueError(f"dataset '{name}': the label of task '{task}' is among the inputs: {', '.join(inputs)}.")
    for task, given in tasks.items():
        if given.get("split_by") is None or given["dataset"] != name:
            continue
        values = given["values"]
        declared = list(range(values) if isinstance(values, int) else values)
        for split, frame in frames.items():
            place = f"dataset '{name}', task '{task}', split '{split}'"
            [column] = find_columns(frame, given["split_by"], place=place)
            unknown = np.flatnonzero(~frame[column].isin(declared))
            if len(unknown):
                found = frame[column].iloc[unknown[0]]
                raise ValueError(
                    f"{place}, {at(frame, unknown[0])}: column '{column}': expected one of the task's values: "
                    f"{values}, got {show(found)}."
                )
