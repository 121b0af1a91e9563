"""What the rules promise, on generated inputs. The reference's identities are in `test_identities`."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from mtlbench.balancing.cagrad import cagrad_weights
from mtlbench.balancing.dwa import dwa_weights
from mtlbench.balancing.gradnorm import Parametrization, gradnorm_update
from mtlbench.balancing.mgda import mgda_weights
from mtlbench.balancing.pcgrad import pcgrad_weights
from mtlbench.balancing.uncertainty import uncertainty_objective
from tests.balancing.losses import modest, vectors
from tests.balancing.rows import matrices
from tests.balancing.solvers import on_tensors


@modest
@given(matrices(), st.floats(1e-6, 1e6))
def test_mgda_does_not_depend_on_the_common_scale(rows: Tensor, factor: float) -> None:
    losses = torch.ones(len(rows), dtype=torch.float64)
    plain, scaled = (on_tensors(mgda_weights)(j @ j.T, losses)[0] @ rows for j in (rows, factor * rows))
    assert torch.allclose(plain, scaled, atol=1e-6 * float(rows.norm(dim=1).max()))


@modest
@given(matrices(), st.floats(0.01, 3))
def test_cagrad_stays_in_its_ball_and_serves_the_worst_off(rows: Tensor, c: float) -> None:
    weights, regular = on_tensors(cagrad_weights)(rows @ rows.T, c=c)
    direction, mean = weights @ rows, rows.mean(0)
    noise = 1e-6 * float(rows.norm(dim=1).max()) * (1 + c)
    assert (direction - mean).norm() <= c * mean.norm() + noise
    lengths = rows.norm(dim=1).max()
    assert (rows @ direction).min() >= (rows @ mean).min() - noise * lengths
    if not regular and mean.norm() > noise:
        assert (rows @ direction).min() >= -noise * lengths  # harms none


@modest
@given(matrices(smallest=2, largest=2))
def test_pcgrad_of_two_is_the_sum_of_mutual_projections(rows: Tensor) -> None:
    g, h = rows
    assume(g.norm() > 1e-3)
    assume(h.norm() > 1e-3)
    inner = torch.clamp(g @ h, max=0)
    expected = (g - inner / (h @ h) * h) + (h - inner / (g @ g) * g)
    weights = on_tensors(pcgrad_weights)((rows @ rows.T)[None], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(weights[0] @ rows, expected, atol=1e-9 * float(rows.norm()))
    assert (rows @ expected >= -1e-9 * rows.norm() ** 2).all()


@modest
@given(matrices())
def test_pcgrad_without_conflict_is_the_sum(rows: Tensor) -> None:
    weights = on_tensors(pcgrad_weights)((rows.abs() @ rows.abs().T)[None], generator=None)
    assert torch.equal(weights, torch.ones(1, len(rows), dtype=torch.float64))


@modest
@given(vectors(4, 0.01, 5), vectors(4, 0, 100), vectors(4, 0, 10), st.sampled_from(["weights", "softmax"]))
def test_gradnorm_keeps_the_sum_and_the_sign(
    weights: Tensor, lengths: Tensor, ratios: Tensor, parametrization: Parametrization
) -> None:
    updated = on_tensors(gradnorm_update)(weights, lengths, ratios, parametrization=parametrization)
    assert torch.allclose(updated.sum(), weights.sum())
    assert (updated >= 0).all()


@modest
@given(vectors(5, 0, 1e3), st.floats(0.1, 10))
def test_dwa_sums_to_the_number_of_tasks(ratios: Tensor, temperature: float) -> None:
    weights = dwa_weights(ratios, temperature=temperature)
    assert torch.allclose(weights.sum(), torch.tensor(5.0, dtype=torch.float64))
    assert torch.equal(weights.argsort(), ratios.argsort()) or len(set(weights.tolist())) < 5


@modest
@given(vectors(3, 0.01, 100), vectors(3, -3, 3))
def test_uncertainty_forms_agree(losses: Tensor, scales: Tensor) -> None:
    half = uncertainty_objective(losses, scales)
    assert torch.allclose(2 * half, uncertainty_objective(losses, scales, form="sum"))
    assert torch.allclose(half, uncertainty_objective(losses, torch.exp(scales / 2), form="sigma"))
    assert half >= uncertainty_objective(losses, losses.log()) - 1e-9  # whose scales are the optimum
