"""Paired comparisons: known values, corrections, and restraint where there is too little to say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mtlbench.results.stats import compare, detectable, holm, interval


def test_interval_is_the_paired_t_test() -> None:
    # Mean 2, standard deviation 1, three pairs: t = 2 sqrt(3) with 2 degrees of freedom, whose 97.5 % point is 4.3027.
    mean, low, high, p = interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((2.0, 2 - half, 2 + half))
    t = 2 * math.sqrt(3)
    assert p == pytest.approx(1 - t / math.sqrt(t * t + 2))  # closed form for 2 degrees of freedom


def test_one_pair_and_constant_differences_are_not_tested() -> None:
    assert interval([0.5])[0] == 0.5
    assert np.isnan(interval([0.5])[1:]).all()
    assert np.isnan(interval([0.1, 0.1 + 1e-15, 0.1])[1:]).all()
    assert interval([0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0)
    assert np.isnan(interval([])).all()


def test_holm_steps_down_and_never_decreases() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    np.testing.assert_allclose(holm([math.nan, 0.02]), [math.nan, 0.02])
    assert holm([]).shape == (0,)


def test_verdicts() -> None:
    equal = {0: 0.80, 1: 0.82, 2: 0.84, 3: 0.81, 4: 0.83}
    jitter = [0.001, -0.001, 0.0, 0.0005, -0.0005]
    scores = {
        "equal": equal,
        "above": {seed: score + 0.05 + e for (seed, score), e in zip(equal.items(), jitter, strict=True)},
        "below": {seed: score - 0.05 + e for (seed, score), e in zip(equal.items(), jitter, strict=True)},
        "alike": {seed: score + 10 * e for (seed, score), e in zip(equal.items(), jitter, strict=True)},
        "single": {0: 0.99},
    }
    result = compare(scores, dict.fromkeys(scores, "equal"))
    assert {method: comparison.verdict for method, comparison in result.items()} == {
        "above": "better",
        "below": "worse",
        "alike": "no difference shown",
        "single": "not tested",
    }
    assert result["above"].difference == pytest.approx(0.05)
    assert result["above"].low < 0.05 < result["above"].high
    assert result["above"].p_holm == pytest.approx(3 * result["above"].p)  # of three tests, "single" is none


def test_pairs_are_the_shared_seeds() -> None:
    scores = {"equal": {0: 0.1, 1: 0.2, 2: 0.4}, "other": {1: 0.3, 2: 0.6, 7: 0.0}}
    comparison = compare(scores, {"other": "equal"})["other"]
    assert comparison.pairs == 2
    assert comparison.difference == pytest.approx(0.15)


def test_what_can_be_detected() -> None:
    assert detectable(3) == pytest.approx(2.484, abs=1e-3)
    assert detectable(10) == pytest.approx(0.715, abs=1e-3)
