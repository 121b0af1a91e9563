"""Paired comparison on the examples of the test split, from `predictions.parquet`.

This asks another question than the comparison over seeds: taking the trained networks as they are, would the
difference survive another draw of test examples?
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mtlbench.results.analysis import MANY, Analysis, Row
from mtlbench.results.records import PREDICTIONS
from mtlbench.results.stats import Comparison, interval


def compare_examples(analysis: Analysis) -> dict[str, dict[str, Comparison]]:
    """Setting -> task -> paired difference in accuracy from equal over test examples, averaged over shared seeds.

    Only for tasks whose primary metric is accuracy, which is a mean over examples, and for at most `MANY` tasks;
    settings without predictions are left out.
    """
    tasks = [task.name for task in analysis.section.tasks if task.primary == "accuracy"]
    if not tasks or len(tasks) > MANY:
        return {}
    correct: dict[tuple[str, int], pd.Series[float]] = {}
    for row in analysis.rows:
        correct.update({(row.label, seed): hits for seed, hits in _hits(row, tasks).items()})
    result: dict[str, dict[str, Comparison]] = {}
    for label, comparison in analysis.against_equal.items():
        seeds = [
            seed
            for seed in analysis.row(label).seeds
            if (label, seed) in correct and (comparison.reference, seed) in correct
        ]
        if not seeds:
            continue
        # Aligned on (task, row): an example that either side lacks is NaN and drops out of the mean over seeds.
        differences = pd.concat([correct[label, seed] - correct[comparison.reference, seed] for seed in seeds], axis=1)
        mean = differences.mean(axis=1).dropna()
        result[label] = {
            str(task): Comparison(comparison.reference, len(group), *interval(group.to_numpy(dtype=np.float64)))
            for task, group in mean.groupby(level="task")
        }
    return result


def _hits(row: Row, tasks: list[str]) -> dict[int, pd.Series[float]]:
    """Seed -> 1.0 or 0.0 for each (task, row) of the test split."""
    hits = {}
    for run, seed in zip(row.setting.runs, row.seeds, strict=True):
        if (run.path / PREDICTIONS).exists():
            table = pd.read_parquet(run.path / PREDICTIONS)
            table = table[table["task"].isin(tasks)].set_index(["task", "row"])
            hits[seed] = (table["target"] == table["prediction"]).astype(float)
    return hits
