"""The problem's losses and gradients: the reference's probes (published.md, section 3), and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlbench.toy.problem import losses_and_gradients, on_front, pareto_front

STARTS = {"S1": (-8.5, 7.5), "S2": (0.0, 0.0), "S3": (9.0, 9.0), "S4": (-7.5, -0.5), "S5": (9.0, -1.0)}
coordinates = st.floats(-10, 10)


def official(x: Tensor, scale: float) -> Tensor:
    """The formulas as they stand in the papers, for autograd."""
    x1, x2 = x
    bend, floor = torch.tanh(x2), 5e-6
    h1 = torch.clamp((0.5 * (-x1 - 7) + bend).abs(), min=floor).log() + 6
    h2 = torch.clamp((0.5 * (-x1 + 3) - bend + 2).abs(), min=floor).log() + 6
    q1 = ((7 - x1) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20
    q2 = ((x1 + 7) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20
    c1, c2 = torch.clamp(torch.tanh(x2 / 2), min=0), torch.clamp(torch.tanh(-x2 / 2), min=0)
    return torch.stack([scale * (c1 * h1 + c2 * q1), c1 * h2 + c2 * q2])


@pytest.mark.parametrize(
    ("point", "losses", "gradients"),
    [
        ((1, 2), (5.415339, 5.111038), ((0.125428, 1.475397), (-0.187034, 1.382790))),
        ((2, -3), (-15.613807, -10.544977), ((-0.905148, 1.649110), (1.629267, 1.143131))),
    ],
)
def test_probes(
    point: tuple[float, float], losses: tuple[float, ...], gradients: tuple[tuple[float, ...], ...]
) -> None:
    found = losses_and_gradients(np.array(point, dtype=float), scale=1.0)
    np.testing.assert_allclose(found[0], losses, atol=6e-7)
    np.testing.assert_allclose(found[1], gradients, atol=6e-7)


def test_losses_at_the_starts() -> None:
    expected = [(0.655236, 7.900798), (0, 0), (0.794395, 6.691495), (0.038881, -4.754484), (-0.883106, 2.814293)]
    np.testing.assert_allclose(losses_and_gradients(np.array(list(STARTS.values())), scale=0.1)[0], expected, atol=6e-7)


@given(x1=coordinates, x2=coordinates, scale=st.sampled_from([0.1, 1.0]))
def test_gradients_are_those_of_autograd(x1: float, x2: float, scale: float) -> None:
    check_against_autograd(x1, x2, scale)


@pytest.mark.parametrize("point", [(0.0, 0.0), (-7.0, 1e-7), (7.0, 40.0), (-5.0, 3.0)])
def test_gradients_where_a_maximum_has_equal_branches_or_a_logarithm_is_cut_off(point: tuple[float, float]) -> None:
    check_against_autograd(*point, 0.1)


def check_against_autograd(x1: float, x2: float, scale: float) -> None:
    x = torch.tensor([x1, x2], dtype=torch.float64)
    losses, gradients = losses_and_gradients(x.numpy(), scale=scale)
    np.testing.assert_allclose(losses, official(x, scale).numpy(), rtol=1e-12, atol=1e-12)
    expected = torch.autograd.functional.jacobian(lambda at: official(at, scale), x).numpy()
    # Near a logarithm's singularity a gradient is the reciprocal of a small difference.
    np.testing.assert_allclose(gradients, expected, rtol=1e-9, atol=1e-9)


def test_many_points_are_each_as_alone() -> None:
    points = np.random.default_rng(0).uniform(-10, 10, (3, 4, 2))
    losses, gradients = losses_and_gradients(points, scale=0.1)
    assert (losses.shape, gradients.shape) == ((3, 4, 2), (3, 4, 2, 2))
    alone = losses_and_gradients(points[2, 1], scale=0.1)
    np.testing.assert_array_equal(losses[2, 1], alone[0])
    np.testing.assert_array_equal(gradients[2, 1], alone[1])


def test_the_front() -> None:
    front = pareto_front(5)
    np.testing.assert_array_equal(front[:, 0], [-7, -3.5, 0, 3.5, 7])
    np.testing.assert_allclose(front[[0, 2, 4], 1], [-8.4345, -8.3551, -8.4345], atol=5e-5)
    assert on_front(front).all()
    assert not on_front(np.array([(-7.1, -8.4), (0.0, -8.6), (0.0, -7.9), (5.0, 3.9)])).any()
    for first, second in losses_and_gradients(front[1:-1], scale=0.1)[1]:
        cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        assert cosine == pytest.approx(-1, abs=1e-9)


def test_best_sums_lie_where_the_reference_has_them() -> None:
    front = pareto_front(1401)
    for scale, x1, losses in ((1.0, 0.0, (-15.0916, -15.0916)), (0.1, -5.73, (-0.380, -19.828))):
        found = losses_and_gradients(front, scale=scale)[0]
        best = found.sum(1).argmin()
        assert front[best, 0] == pytest.approx(x1, abs=0.011)
        np.testing.assert_allclose(found[best], losses, atol=2e-3)
