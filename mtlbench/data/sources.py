"""Where examples come from: local files or the Hugging Face hub -> {"train", "val", "test"} -> pandas table."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


def local_or_hub(
    *,
    data_dir: str | None,
    folder: str,
    files: Mapping[str, str],
    hub: Mapping[str, Any] | None = None,
    split: Mapping[str, Any] | None = None,
) -> dict[str, pd.DataFrame]:
    """Reads a dataset from `data_dir` if one is given, and from the hub if none is. Never from the other one.

    Args:
        data_dir: the folder of all data (`data.dir`, MTLBENCH_DATA); None for the hub.
        folder: the dataset's folder in it.
        files: "train", "val" and "test" -> file name; or "all" -> file name, which `split` then divides.
        hub: arguments of `from_hub`; None where no copy on the hub is known.
        split: arguments of `random_split`, for a set without official splits.

    Raises:
        FileNotFoundError: `data_dir`, or the dataset in it, is not there.
        ConnectionError: the hub cannot be reached.
        ValueError: a file cannot be read, or neither source is configured.
    """
    if data_dir is not None:
        frames = {name: read_table(_locate(data_dir, folder=folder, file=file)) for name, file in files.items()}
        log.info("%s: read from %s", folder, Path(data_dir) / folder)
    elif hub is not None:
        frames = from_hub(**hub)
        log.info("%s: read from the hub, %s", folder, hub["path"])
    else:
        raise ValueError(
            f"'{folder}' has no copy on the Hugging Face hub that mtlbench knows of, and no data directory is set: "
            f"set MTLBENCH_DATA (or data.dir) to a folder that holds {folder}/{next(iter(files.values()))}."
        )
    return frames if split is None else random_split(frames["all"], **split)


def _locate(data_dir: str, *, folder: str, file: str) -> Path:
    path = Path(data_dir) / folder / file
    for expected, what in ((Path(data_dir), "the data directory"), (path.parent, "the dataset"), (path, "the file")):
        if not expected.exists():
            raise FileNotFoundError(
                f"{what} is missing: {expected} does not exist. Expected {folder}/{file} in the data directory "
                f"{data_dir} (data.dir, by default MTLBENCH_DATA); set it to another folder, or to null to read from "
                "the Hugging Face hub."
            )
    return path


def read_table(path: Path) -> pd.DataFrame:
    """Reads .jsonl, .csv (both also .gz) or .parquet. An empty csv cell is missing; the text "NA" stays text.

    Raises:
        ValueError: naming file and line.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    try:
        if kind == "csv":
            return pd.read_csv(path, keep_default_na=False, na_values=[""])
        if kind == "parquet":
            return _plain(pd.read_parquet(path))
        if kind == "jsonl":
            return _read_jsonl(path)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 {kind}: {error}") from error
    raise ValueError(f"{path}: expected a name that ends in .jsonl, .csv (or these with .gz) or .parquet.")


def _read_jsonl(path: Path) -> pd.DataFrame:
    # Not pandas.read_json: it turns text that looks like numbers or dates into them, and names no line.
    rows = []
    with (gzip.open if path.suffix == ".gz" else open)(path, mode="rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}.")
            rows.append(row)
    return pd.DataFrame(rows)


def from_hub(
    *,
    path: str,
    splits: Mapping[str, str],
    name: str | None = None,
    revision: str | None = None,
    data_files: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, pd.DataFrame]:
    """Loads a dataset of the Hugging Face hub.

    Args:
        path: the hub id.
        splits: our split name -> the hub's.
        name: its configuration, as in `datasets.load_dataset`.
        revision: commit or branch, likewise.
        data_files: the hub's split name -> file in the repository, likewise.
        columns: the hub's column name -> ours.

    Raises:
        ConnectionError: the hub cannot be reached, or has no such dataset.
        ValueError: it lacks a split.
    """
    import datasets  # a second of import that local files do without

    try:
        found = datasets.load_dataset(
            path, name=name, revision=revision, data_files=None if data_files is None else dict(data_files)
        )
    except OSError as error:  # ConnectionError, offline mode, DatasetNotFoundError: all of them OSErrors
        raise ConnectionError(
            f"The dataset '{path}' could not be loaded from the Hugging Face hub: {error} Check the network, or set "
            "MTLBENCH_DATA (or data.dir) to a folder that holds the data."
        ) from error
    for theirs in splits.values():
        if theirs not in found:
            raise ValueError(f"The hub's '{path}' has no split '{theirs}'; it has: {', '.join(found)}.")
    return {
        ours: _plain(found[theirs].to_pandas()).rename(columns=dict(columns or {})) for ours, theirs in splits.items()
    }


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Arrow gives a list as a numpy array; the rest of the code expects a list."""
    for name in frame.columns[frame.dtypes == "object"]:
        frame[name] = [value.tolist() if isinstance(value, np.ndarray) else value for value in frame[name]]
    return frame


def random_split(
    frame: pd.DataFrame, *, fractions: Mapping[str, float], seed: int, by: str | None = None
) -> dict[str, pd.DataFrame]:
    """Divides rows at random into train, val and test: the same rows for every run, whatever the run's seed.

    Args:
        frame: N rows.
        fractions: split -> share of the rows; the shares sum to 1.
        seed: of the division.
        by: a column; the shares then hold within the rows of each of its values (stratified).

    Raises:
        ValueError: the fractions do not sum to 1, or `by` is no column.
    """
    if set(fractions) != set(SPLITS) or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ValueError(f"fractions must name {', '.join(SPLITS)} and sum to 1, got {dict(fractions)}.")
    if by is not None and by not in frame:
        raise ValueError(f"Cannot split by '{by}'; the columns are: {', '.join(map(str, frame.columns))}.")
    generator = np.random.default_rng(seed)
    strata = [np.arange(len(frame))] if by is None else list(frame.groupby(by, sort=True).indices.values())
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for stratum in strata:
        order = generator.permutation(np.sort(stratum))
        ends = np.rint(np.cumsum([fractions["train"], fractions["val"]]) * len(order)).astype(int)
        for name, part in zip(SPLITS, np.split(order, ends), strict=True):
            parts[name].append(part)
    return {name: frame.iloc[np.sort(np.concatenate(part))].reset_index(drop=True) for name, part in parts.items()}
