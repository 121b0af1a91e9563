"""What is made of test results: pure functions of arrays.

Shape letters: S seeds, M metrics (all tasks' metrics in a row), K compared methods.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]


def relative_gain(values: ArrayLike, baseline: ArrayLike, higher_is_better: ArrayLike) -> Floats:
    """Gain over the baseline in percent of the baseline; positive is better, whatever the metric's direction.

    Args:
        values: (..., M).
        baseline: (M,).
        higher_is_better: (M,) bool.

    Returns:
        (..., M); NaN for a metric whose baseline is not above zero: there, relative gain has no meaning.
    """
    values, baseline = np.asarray(values, dtype=float), np.asarray(baseline, dtype=float)
    gain = 100 * absolute_gain(values, baseline, higher_is_better)
    return np.asarray(gain / np.where(baseline > 0, baseline, np.nan))


def absolute_gain(values: ArrayLike, baseline: ArrayLike, higher_is_better: ArrayLike) -> Floats:
    """(..., M) difference from the baseline (M,) in the metric's own unit; positive is better."""
    sign = np.where(np.asarray(higher_is_better, dtype=bool), 1.0, -1.0)
    return np.asarray(sign * (np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)))


def delta_m(values: ArrayLike, baseline: ArrayLike, higher_is_better: ArrayLike) -> Floats:
    """Mean over *metrics* of the relative loss against the baseline, in percent. **Lower is better.**

    Args:
        values: (..., M).
        baseline: (M,) the single-task results.
        higher_is_better: (M,) bool.

    Returns:
        (...), over the metrics whose baseline is above zero; NaN where there is none.

    Maninis, Radosavovic and Kokkinos 2019, arXiv:1904.08918; sign as in Navon et al. 2022, arXiv:2202.01017.

    Note: a metric with a baseline at or below zero is left out; callers name it (see `relative_gain`).
    """
    gain, defined = relative_gain(values, baseline, higher_is_better), np.asarray(baseline, dtype=float) > 0
    if not defined.any():
        return np.full(gain.shape[:-1], np.nan)
    return np.asarray(-gain[..., defined].mean(axis=-1))


def delta_p(values: ArrayLike, baseline: ArrayLike, higher_is_better: ArrayLike, task_of_metric: ArrayLike) -> Floats:
    """Mean over *tasks* of the task's mean relative gain over the baseline, in percent. **Higher is better.**

    Args:
        values: (..., M).
        baseline: (M,) the single-task results.
        higher_is_better: (M,) bool.
        task_of_metric: (M,) int, which task a metric belongs to.

    Returns:
        (...), over the tasks with a metric whose baseline is above zero; NaN where there is none.

    Lin and Zhang 2023 (LibMTL), arXiv:2203.14338.

    Note: as for `delta_m`, metrics with a baseline at or below zero are left out.
    """
    gain, defined = relative_gain(values, baseline, higher_is_better), np.asarray(baseline, dtype=float) > 0
    tasks = np.asarray(task_of_metric)
    means = [gain[..., defined & (tasks == task)].mean(axis=-1) for task in np.unique(tasks[defined])]
    return np.asarray(np.mean(means, axis=0)) if means else np.full(gain.shape[:-1], np.nan)


def mean_rank(values: ArrayLike, higher_is_better: ArrayLike) -> Floats:
    """Mean over metrics of the rank among the compared methods; 1 is best. **Lower is better.**

    Args:
        values: (K, M) one row a method; the single-task baseline is no method.
        higher_is_better: (M,) bool.

    Returns:
        (K,). Tied methods share the mean of the ranks that they take up. It changes with the set of methods.
    """
    sign = np.where(np.asarray(higher_is_better, dtype=bool), -1.0, 1.0)
    return np.asarray(rankdata(sign * np.asarray(values, dtype=float), axis=0, method="average").mean(axis=1))


def mean_std(values: ArrayLike) -> tuple[Floats, Floats]:
    """Mean and sample standard deviation (divisor S - 1) over seeds.

    Args:
        values: (S, ...), S >= 1.

    Returns:
        Two arrays (...). The standard deviation of one seed is undefined: NaN.
    """
    values = np.asarray(values, dtype=float)
    mean = values.mean(axis=0)
    return mean, values.std(axis=0, ddof=1) if len(values) > 1 else np.full_like(mean, np.nan)
