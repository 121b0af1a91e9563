"""`metrics.csv` of the runs: one curve per setting and column, with its spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mtlbench.results.analysis import Analysis
from mtlbench.results.records import CURVES, Run


def read_curves(run: Run) -> pd.DataFrame:
    """The run's epochs, one row each, with `epoch` as index.

    Raises:
        ValueError: the file is absent, is no table or has no column `epoch`.
    """
    path = run.path / CURVES
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is absent") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not a table ({error})") from error
    if "epoch" not in table:
        raise ValueError(f"{path} has no column 'epoch'")
    # A resumed run writes the epoch that was cut short again: the later row is the one that counts.
    return table.drop_duplicates("epoch", keep="last").set_index("epoch").sort_index()


def all_curves(analysis: Analysis) -> tuple[dict[str, list[pd.DataFrame]], list[str]]:
    """Setting -> one table per run, and what could not be read."""
    curves: dict[str, list[pd.DataFrame]] = {}
    notes = []
    for row in analysis.rows:
        curves[row.label] = []
        for run in row.setting.runs:
            try:
                curves[row.label].append(read_curves(run))
            except ValueError as error:
                notes.append(f"Not in the figures: {error}.")
    return curves, notes


def mean_and_std(tables: Sequence[pd.DataFrame], column: str) -> pd.DataFrame:
    """Columns `mean` and `std` by epoch, over the epochs that every table has a value for.

    Epochs that only some seeds reached are left out: their mean would jump where a seed stops early. Empty where
    no table has the column.
    """
    having = [table[column] for table in tables if column in table]
    seeds = pd.concat(having, axis=1, join="inner").dropna() if having else pd.DataFrame()
    return pd.DataFrame({"mean": seeds.mean(axis=1), "std": seeds.std(axis=1, ddof=1)})


def combine(tables: Sequence[pd.DataFrame], columns: Sequence[str], how: str) -> list[pd.DataFrame]:
    """Each table's `mean`, `min` or `max` over `columns`, as tables with one column `value`."""
    result = []
    for table in tables:
        present = [column for column in columns if column in table]
        if present:
            result.append(table[present].agg(how, axis=1).to_frame("value"))
    return result
