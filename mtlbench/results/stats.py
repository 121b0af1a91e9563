"""Is the difference real? Paired comparisons over seeds, and over test examples.

Few seeds carry little evidence, and this module does not hide it: intervals are Student's t on the paired
differences (wide for two or three seeds), verdicts pay for the number of comparisons, and `detectable` says
how large a difference had to be to be seen at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """One method against a reference, on the seeds that both have. Positive differences favour the method."""

    reference: str
    pairs: int
    difference: float = math.nan  # mean of the paired differences
    low: float = math.nan  # 95 % interval of this one comparison
    high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan  # paid for all comparisons of the family
    verdict: str = "not tested"  # better, worse, no difference shown, not tested


def interval(differences: ArrayLike) -> tuple[float, float, float, float]:
    """Mean, 95 % limits and two-sided p of paired differences (N,): the paired t-test.

    Limits and p are NaN for N < 2, and where all differences are one and the same number other than 0: their
    spread cannot be estimated then. All 0 gives 0, 0, 0 and p = 1.
    """
    differences = np.asarray(differences, dtype=float)
    mean = float(differences.mean()) if len(differences) else math.nan
    if len(differences) >= 2 and not differences.any():
        return 0.0, 0.0, 0.0, 1.0
    # Differences that agree to rounding have no spread to speak of: a t-test on it would be certain of nothing.
    if len(differences) < 2 or float(np.ptp(differences)) <= 1e-12 * abs(mean):
        return mean, math.nan, math.nan, math.nan
    result = stats.ttest_1samp(differences, 0.0)
    limits = result.confidence_interval(1 - LEVEL)
    return mean, float(limits.low), float(limits.high), float(result.pvalue)


def compare(scores: Mapping[str, Mapping[int, float]], references: Mapping[str, str | None]) -> dict[str, Comparison]:
    """Every method against its reference, paired by seed, corrected together.

    Args:
        scores: method -> seed -> score, higher is better.
        references: method -> the method to compare it with; None or itself: it is not compared.

    Returns:
        method -> comparison, for the methods that have a reference other than themselves.
    """
    result = {}
    for method, reference in references.items():
        if reference is None or reference == method:
            continue
        seeds = sorted(scores[method].keys() & scores[reference].keys())
        differences = np.array([scores[method][seed] - scores[reference][seed] for seed in seeds])
        result[method] = Comparison(reference, len(seeds), *interval(differences))
    adjusted = holm([comparison.p for comparison in result.values()])
    return {
        method: replace(comparison, p_holm=float(p), verdict=_verdict(comparison.difference, float(p)))
        for (method, comparison), p in zip(result.items(), adjusted, strict=True)
    }


def holm(p: Sequence[float]) -> NDArray[np.float64]:
    """(N,) p-values adjusted by Holm's step-down rule; NaNs stay NaN and do not count as comparisons.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)[: np.isfinite(values).sum()]  # NaNs sort last
    adjusted = np.full_like(values, np.nan)
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def detectable(pairs: int) -> float:
    """How many standard deviations of the paired difference its mean must reach to be told from 0 (one test at 5 %)."""
    return float(stats.t.ppf(1 - LEVEL / 2, pairs - 1) / math.sqrt(pairs))


def _verdict(difference: float, p: float) -> str:
    if math.isnan(p):
        return "not tested"
    if p >= LEVEL:
        return "no difference shown"
    return "better" if difference > 0 else "worse"
