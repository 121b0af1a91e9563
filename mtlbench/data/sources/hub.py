"""Datasets of the Hugging Face hub -> tables."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from mtlbench.data.nodes import NAMES, split_of
from mtlbench.data.sources.files import plain

log = logging.getLogger(__name__)


def from_hub(
    *,
    path: str,
    name: str | None = None,
    revision: str | None = None,
    data_files: Mapping[str, str] | None = None,
    splits: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Loads a dataset of the Hugging Face hub, or of a local folder that `datasets.load_dataset` reads.

    A column of classes (`ClassLabel`) comes as their numbers; -1, its mark of an unknown class, as missing.

    Args:
        path: the hub id.
        name: its configuration, as in `datasets.load_dataset`.
        revision: commit or branch, likewise.
        data_files: the hub's split name -> file in the repository, likewise.
        splits: our split name -> the hub's; None: by their names, validation being val.
        columns: the hub's column name -> ours.

    Returns:
        the tables by our split names, and the hub's names of the splits.

    Raises:
        ConnectionError: the hub cannot be reached, or has no such dataset.
        ValueError: it lacks a split or column.
    """
    import datasets  # a second of import that local files do without

    try:
        found = datasets.load_dataset(
            path, name=name, revision=revision, data_files=None if data_files is None else dict(data_files)
        )
    except OSError as error:  # ConnectionError, offline mode, DatasetNotFoundError: all of them OSErrors
        raise ConnectionError(
            f"The dataset '{path}' could not be loaded from the Hugging Face hub: {str(error).rstrip('.')}. Check "
            "its name and the network (HF_HUB_OFFLINE=1 reads what was downloaded before), or set MTLBENCH_DATA (or "
            "data.dir) to a folder that holds the data."
        ) from error
    theirs = _by_name(found, path) if splits is None else dict(splits)
    frames = {}
    for ours, split in theirs.items():
        if split not in found:
            raise ValueError(f"The hub's '{path}' has no split '{split}'; it has: {', '.join(found)}.")
        frames[ours] = _table(found[split], place=f"The hub's '{path}', split '{split}'", columns=columns or {})
    return frames, theirs


def _by_name(found: Iterable[str], path: str) -> dict[str, str]:
    theirs: dict[str, str] = {}
    for name in found:
        ours = split_of(name)
        if ours is None:
            log.warning("%s: its split '%s' is not used; `splits` of `hub` would name it.", path, name)
        elif ours in theirs:
            raise ValueError(f"The hub's '{path}' has the splits '{theirs[ours]}' and '{name}': say hub.splits.{ours}.")
        else:
            theirs[ours] = name
    if "train" not in theirs:
        raise ValueError(
            f"The hub's '{path}' has no split called train; it has: {', '.join(found)}. Say which is which: "
            f"splits: {{{', '.join(f'{split}: ...' for split in NAMES)}}}."
        )
    return theirs


def _table(data: Any, *, place: str, columns: Mapping[str, str]) -> pd.DataFrame:
    frame = plain(data.to_pandas())
    for column, feature in data.features.items():
        if type(feature).__name__ == "ClassLabel":
            frame[column] = frame[column].astype("Int64").mask(frame[column] == -1)
    for column in columns:
        if column not in frame:
            raise ValueError(f"{place} has no column '{column}'; it has: {', '.join(map(str, frame.columns))}.")
    return frame.rename(columns=dict(columns))
