"""The closed forms for two gradients, where they could differ from the general solvers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from tests.balancing.rows import tensor
from tests.balancing.solvers import alpha_fair, dual_cone, min_norm

ANGLES = st.one_of(st.floats(0, math.pi), st.sampled_from([0.0, math.pi, math.pi - 1e-7, 1e-7, math.pi / 2]))
SCALES = st.sampled_from([1e-10, 1e-3, 1.0, 7.0, 1e10])
SIGNED = st.floats(-3, 3)


@given(ANGLES, SCALES, SIGNED, SIGNED)
def test_projections_of_any_combination(angle: float, scale: float, first: float, second: float) -> None:
    """Balancers project combinations with positive coefficients alone; the solver takes all."""
    rows = np.array([[1.0, 0.0], [scale * math.cos(angle), scale * math.sin(angle)]])
    combination = np.array([first, second]) @ rows
    weights = dual_cone(torch.from_numpy(rows @ rows.T), tensor([[first, second]]))[0].numpy()
    units = rows / np.array([[1.0], [scale]])
    expected = combination + nnls(units.T, -combination)[0] @ units
    # Products near zero are known to the rounding of the Gramian, which is twice that of the rows.
    assert weights @ rows == pytest.approx(expected, abs=1e-7 * (abs(first) + abs(second) * scale))


@pytest.mark.parametrize("alpha", [0.01, 0.5, 10.0, 30.0, 100.0, 1000.0])
@pytest.mark.parametrize("exponent", [0, 2, 4, 6])
def test_alpha_fair_of_two_is_the_root_at_any_alpha(alpha: float, exponent: int) -> None:
    """Also where the general solver can miss its tolerance: opposite up to 1e-6, alpha of 10 and more."""
    for ratio in (1e-3, 1.0, 40.0):
        rows = tensor([[1.0, 0.0], [-ratio, ratio * 10.0**-exponent]])
        gramian = rows @ rows.T
        weights, regular = alpha_fair(gramian, alpha=alpha)
        assert regular
        lengths = rows.norm(dim=1)
        gap = (gramian @ weights - weights ** (-1 / alpha)).abs() / lengths
        assert (gap <= 1e-15 * (weights @ lengths) * 8).all()


@given(st.floats(0.02, 20), st.floats(-3, 3))
def test_alpha_fair_of_two_parallel_gradients(alpha: float, exponent: float) -> None:
    """w_i proportional to |g_i|^-alpha, from the two equations' ratio."""
    ratio = 10.0**exponent
    rows = tensor([[1.0, 0.0], [ratio, 0.0]])
    weights, regular = alpha_fair(rows @ rows.T, alpha=alpha)
    assert regular
    assert float(weights[1] / weights[0]) == pytest.approx(ratio**-alpha, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_squares_of_lengths_neither_overflow_nor_vanish(scale: float) -> None:
    gramian = tensor([[4.0, -2.0], [-2.0, 3.0]]) * scale * scale
    assert min_norm(gramian).tolist() == pytest.approx([5 / 11, 6 / 11])
    weights, regular = alpha_fair(gramian, alpha=1.0)
    assert regular
    assert (gramian @ weights * weights).tolist() == pytest.approx([1, 1])


def test_what_is_no_gramian_is_refused() -> None:
    with pytest.raises(ValueError, match="finite Gramian with a non-negative diagonal"):
        min_norm(tensor([[1.0, 0.0], [0.0, -1.0]]))
    with pytest.raises(ValueError, match="positive semidefinite Gramian, its cosines have eigenvalues"):
        min_norm(tensor([[1.0, 2.0], [2.0, 1.0]]))
