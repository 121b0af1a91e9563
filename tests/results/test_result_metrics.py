"""delta_m, delta_p and mean rank against published tables and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mtlbench.results.metrics import absolute_gain, delta_m, delta_p, mean_rank, mean_std, relative_gain

# Single-task results in the papers' public code (FAMO, Liu et al. 2023, arXiv:2306.03792).
NYU = [38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15]
NYU_HIGHER = [True, True, False, False, False, False, True, True, True]
NYU_TASKS = [0, 0, 1, 1, 2, 2, 2, 2, 2]  # segmentation, depth, normals
NYU_ROWS = {
    "equal": ([39.29, 65.33, 0.5493, 0.2263, 28.15, 23.96, 22.09, 47.50, 61.08], 5.589),
    "pcgrad": ([38.06, 64.64, 0.5550, 0.2325, 27.41, 22.80, 23.86, 49.83, 63.14], 3.972),
    "cagrad": ([39.79, 65.49, 0.5486, 0.2250, 26.31, 21.58, 25.61, 52.36, 65.58], 0.194),
    "nash_mtl": ([40.13, 65.93, 0.5261, 0.2171, 25.26, 20.08, 28.40, 55.47, 68.15], -4.047),
    "aligned_mtl": ([40.82, 66.33, 0.5300, 0.2200, 25.19, 19.71, 28.88, 56.23, 68.54], -4.769),
}
CITY = [74.01, 93.16, 0.0125, 27.77]
CITY_HIGHER = [True, True, False, False]
CITY_ROWS = {
    "equal": [75.18, 93.49, 0.0155, 46.77],
    "si": [70.95, 91.73, 0.0161, 33.83],
    "rlw": [74.57, 93.41, 0.0158, 47.79],
    "dwa": [75.24, 93.52, 0.0160, 44.37],
    "uncertainty": [72.02, 92.85, 0.0140, 30.13],
    "mgda": [68.84, 91.54, 0.0309, 33.50],
    "pcgrad": [75.13, 93.48, 0.0154, 42.07],
    "graddrop": [75.27, 93.53, 0.0157, 47.54],
    "cagrad": [75.16, 93.48, 0.0141, 37.60],
    "imtl_g": [75.33, 93.49, 0.0135, 38.41],
    "moco": [75.42, 93.55, 0.0149, 34.19],
    "nash_mtl": [75.41, 93.66, 0.0129, 35.02],
    "famo": [74.54, 93.29, 0.0145, 32.59],
    "fairgrad": [75.72, 93.68, 0.0134, 32.25],
}


@pytest.mark.parametrize("method", NYU_ROWS)
def test_delta_m_equals_the_published_nyuv2_rows(method: str) -> None:
    row, published = NYU_ROWS[method]
    assert delta_m(row, NYU, NYU_HIGHER) == pytest.approx(published, abs=6e-4)


def test_delta_m_equals_the_published_cityscapes_row_within_the_rounding_of_its_table() -> None:
    assert delta_m(CITY_ROWS["equal"], CITY, CITY_HIGHER) == pytest.approx(22.60, abs=0.1)


def test_delta_p_of_the_same_row_has_another_sign_and_size() -> None:
    row, _ = NYU_ROWS["aligned_mtl"]
    assert delta_p(row, NYU, NYU_HIGHER, NYU_TASKS) == pytest.approx(8.16, abs=6e-3)


def test_deltas_by_hand() -> None:
    # Gains over the baseline: +10 %, -20 % (task 0), +50 % of a loss that halves (task 1).
    values, baseline, higher = [1.1, 0.8, 0.5], [1.0, 1.0, 1.0], [True, True, False]
    np.testing.assert_allclose(relative_gain(values, baseline, higher), [10, -20, 50])
    assert delta_m(values, baseline, higher) == pytest.approx(-40 / 3)
    assert delta_p(values, baseline, higher, [0, 0, 1]) == pytest.approx((-5 + 50) / 2)


def test_deltas_of_seeds_average_to_the_delta_of_their_mean() -> None:
    seeds = np.random.default_rng(0).uniform(0.5, 1.5, (4, 9)) * NYU
    assert delta_m(seeds, NYU, NYU_HIGHER).shape == (4,)
    assert delta_m(seeds, NYU, NYU_HIGHER).mean() == pytest.approx(delta_m(seeds.mean(0), NYU, NYU_HIGHER))
    per_seed = delta_p(seeds, NYU, NYU_HIGHER, NYU_TASKS)
    assert per_seed.mean() == pytest.approx(delta_p(seeds.mean(0), NYU, NYU_HIGHER, NYU_TASKS))


@pytest.mark.parametrize("bad", [0.0, -0.3, math.nan])
def test_a_baseline_that_is_not_above_zero_is_left_out(bad: float) -> None:
    values, baseline, higher = [0.2, 1.1, 0.9], [bad, 1.0, 1.0], [True, True, True]
    assert np.isnan(relative_gain(values, baseline, higher)).tolist() == [True, False, False]
    assert delta_m(values, baseline, higher) == pytest.approx(0)
    assert delta_p(values, baseline, higher, [0, 0, 1]) == pytest.approx(0)
    assert np.isnan(delta_m(values[:1], baseline[:1], higher[:1]))
    assert np.isnan(delta_p(values[:1], baseline[:1], higher[:1], [0]))


def test_a_result_that_is_no_number_is_not_averaged_away() -> None:
    assert np.isnan(delta_m([math.nan, 1.0], [1.0, 1.0], [True, True]))
    assert np.isnan(delta_p([math.nan, 1.0], [1.0, 1.0], [True, True], [0, 1]))


def test_absolute_gain_is_positive_where_better() -> None:
    np.testing.assert_allclose(absolute_gain([0.3, 0.3], [-0.1, 0.5], [True, False]), [0.4, 0.2])


def test_mean_rank_of_the_cityscapes_methods() -> None:
    rank = dict(zip(CITY_ROWS, mean_rank(list(CITY_ROWS.values()), CITY_HIGHER).tolist(), strict=True))
    expected = {"fairgrad": 1.5, "nash_mtl": 3.25, "equal": 8.625, "famo": 7.75, "mgda": 11.5}
    assert {method: rank[method] for method in expected} == expected


def test_tied_methods_share_their_ranks() -> None:
    np.testing.assert_allclose(mean_rank([[0.9, 1.0], [0.9, 2.0], [0.8, 2.0]], [True, False]), [1.25, 2.0, 2.75])


def test_mean_and_standard_deviation_over_seeds() -> None:
    mean, std = mean_std([[1.0, 4.0], [3.0, 4.0]])
    np.testing.assert_allclose(mean, [2, 4])
    np.testing.assert_allclose(std, [math.sqrt(2), 0])
    mean, std = mean_std([[1.0, 4.0]])
    assert mean.tolist() == [1, 4]
    assert np.isnan(std).all()
