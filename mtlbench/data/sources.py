"""Where examples come from: local files or the Hugging Face hub -> {"train", "val", "test"} -> pandas table."""

from __future__ import annotations

import functools
import gzip
import json
import logging
from collections.abc import Mapping, Sequence
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
    where: Mapping[str, Any] | None = None,
    val_from_train: Mapping[str, Any] | None = None,
) -> dict[str, pd.DataFrame]:
    """Reads a dataset from `data_dir` if one is given, and from the hub if none is. Never from the other one.

    Args:
        data_dir: the folder of all data (`data.dir`, MTLBENCH_DATA); None for the hub.
        folder: the dataset's folder in it.
        files: "train", "val" and "test" -> file name; or "all" -> file name, which `split` then divides.
        hub: arguments of `from_hub`; None where no copy on the hub is known.
        split: for a set without official splits, arguments of `random_split`, or of `fold_split` where a column says
            which fold a row is in.
        where: column -> value: rows with other values are left out, ahead of any division.
        val_from_train: arguments of `hold_out`, for a set without a val split: a part of train becomes it.

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
    if where is not None:
        frames = {name: _rows_where(frame, where, place=f"{folder}, {name}") for name, frame in frames.items()}
    if split is not None:
        frames = fold_split(frames["all"], **split) if "folds" in split else random_split(frames["all"], **split)
    return frames if val_from_train is None else hold_out(frames, **val_from_train)


def _rows_where(frame: pd.DataFrame, where: Mapping[str, Any], *, place: str) -> pd.DataFrame:
    for column, value in where.items():
        if column not in frame:
            raise ValueError(f"{place}: no column '{column}'; there is: {', '.join(map(str, frame.columns))}.")
        kept = frame[frame[column] == value]
        if not len(kept):
            found = ", ".join(map(str, sorted(frame[column].unique(), key=str)[:20]))
            raise ValueError(f"{place}: no row has {column}={value}; there is: {found}.")
        frame = kept
    return frame.reset_index(drop=True)


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

    The last two files are kept, for benchmarks whose datasets are parts of one file.

    Raises:
        ValueError: naming file and line.
    """
    state = path.stat()
    return _read_table(path, state.st_mtime_ns, state.st_size).copy(deep=False)


@functools.lru_cache(maxsize=2)
def _read_table(path: Path, modified: int, size: int) -> pd.DataFrame:
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
    parts = _divide(frame, ends=[fractions["train"], fractions["train"] + fractions["val"]], seed=seed, by=by)
    return dict(zip(SPLITS, parts, strict=True))


def fold_split(frame: pd.DataFrame, *, column: str, folds: Mapping[str, Sequence[Any]]) -> dict[str, pd.DataFrame]:
    """Divides rows by a column with the number of their fold.

    Args:
        frame: N rows.
        column: the one with the folds.
        folds: "val" and "test" -> their folds; all others are train.

    Raises:
        ValueError: there is no such column, or no such fold in it.
    """
    if column not in frame:
        raise ValueError(f"Cannot split by '{column}'; the columns are: {', '.join(map(str, frame.columns))}.")
    if set(folds) != {"val", "test"} or set(folds["val"]) & set(folds["test"]):
        raise ValueError(f"folds must name val and test, without a fold in both, got {dict(folds)}.")
    missing = {*folds["val"], *folds["test"]} - set(frame[column])
    if missing:
        raise ValueError(f"The column '{column}' has no fold {', '.join(map(str, missing))}.")
    rows = {split: frame[column].isin(list(folds[split])) for split in ("val", "test")}
    rows["train"] = ~(rows["val"] | rows["test"])
    return {split: frame[rows[split]].reset_index(drop=True) for split in SPLITS}


def hold_out(
    frames: Mapping[str, pd.DataFrame], *, fraction: float, seed: int, by: str | None = None
) -> dict[str, pd.DataFrame]:
    """Makes a part of train the val split: the same rows for every run, whatever the run's seed.

    Args:
        frames: "train" and "test" -> table.
        fraction: the part of train's rows, between 0 and 1.
        seed: of the division.
        by: a column; the part is then taken of the rows of each of its values (stratified).

    Raises:
        ValueError: there is a val split already, or the fraction is none.
    """
    if "val" in frames:
        raise ValueError("val_from_train is for sets without a val split, and files or hub name one.")
    if not 0 < fraction < 1:
        raise ValueError(f"val_from_train: the fraction must lie between 0 and 1, got {fraction}.")
    train, val = _divide(frames["train"], ends=[1 - fraction], seed=seed, by=by)
    return {**frames, "train": train, "val": val}


def _divide(frame: pd.DataFrame, *, ends: Sequence[float], seed: int, by: str | None) -> list[pd.DataFrame]:
    """Random parts of the rows, in the table's order, that end at these shares of it (or of each stratum)."""
    if by is not None and by not in frame:
        raise ValueError(f"Cannot split by '{by}'; the columns are: {', '.join(map(str, frame.columns))}.")
    generator = np.random.default_rng(seed)
    strata = [np.arange(len(frame))] if by is None else list(frame.groupby(by, sort=True).indices.values())
    parts: list[list[np.ndarray]] = [[] for _ in range(len(ends) + 1)]
    for stratum in strata:
        order = generator.permutation(np.sort(stratum))
        cuts = np.rint(np.asarray(ends) * len(order)).astype(int)
        for rows, part in zip(parts, np.split(order, cuts), strict=True):
            rows.append(part)
    return [frame.iloc[np.sort(np.concatenate(rows))].reset_index(drop=True) for rows in parts]
