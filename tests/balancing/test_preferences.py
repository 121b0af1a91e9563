"""The methods that weigh losses against a preference: fixtures to six digits, identities, TorchJD."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torchjd.scalarization as reference
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlbench.balancing.base import Scalarizer, TaskSpec
from mtlbench.balancing.cosmos import COSMOS, cosmos_objective
from mtlbench.balancing.pbi import PBI, pbi_objective
from mtlbench.balancing.stch import STCH, smooth_maximum
from tests.balancing.losses import LOSSES, SPECS, derivative, modest, problems, tensor, unlike, vectors
from tests.balancing.rows import six

# ---------------------------------------------------------------- stch


@pytest.mark.parametrize(
    ("mu", "value", "weights"),
    [
        # methods, section 2, STCH: r = 1, mu = 1: 2.464369, w = (.628532, .140244, .231224); mu = .1: 2.000005
        (1.0, 2.464369, (0.628532, 0.140244, 0.231224)),
        (0.1, 2.000005, None),
    ],
)
def test_stch(mu: float, value: float, weights: tuple[float, ...] | None) -> None:
    found, slopes = derivative(STCH(num_tasks=3, seed=0, mu=mu), tensor(*LOSSES))
    assert found == pytest.approx(value, abs=6e-7)
    assert weights is None or slopes == six(*weights)


def test_stch_log() -> None:
    # methods, section 2, STCH: LibMTL: ln(l / nadir) after 4 warm-up epochs of sum ln l, times K, mu = 1;
    # nadir (1, 1, 2): 1.216395, d = (1, 1, .5)
    balancer = STCH(num_tasks=3, seed=0, log=True)
    assert balancer.weights_sum == "free"
    for epoch in range(5):
        assert derivative(balancer, tensor(*LOSSES))[1] == six(0.5, 2, 1)
        balancer.end_epoch(tensor(1, 1, 2) if epoch == 4 else tensor(7, 8, 9))
    balancer.end_epoch(tensor(7, 8, 9))
    value, weights = derivative(balancer, tensor(*LOSSES))
    assert weights == six(1, 1, 0.5)
    # ... whose value leaves out the greatest term, K ln(l_1 / n_1) = 3 ln 2
    assert value - 3 * math.log(2) == pytest.approx(1.216395, abs=6e-7)


def test_stch_log_of_a_task_that_appears_late() -> None:
    balancer = STCH(num_tasks=2, seed=0, log=True, warmup=0)
    balancer.end_epoch(tensor(2, math.nan))
    assert derivative(balancer, tensor(4, 4))[1] == six(0.25, 0.25)  # still sum ln l
    balancer.end_epoch(tensor(9, 1))
    assert balancer.nadir.tolist() == [2, 1]
    # 2 softmax(ln 2, ln 4) / l
    assert derivative(balancer, tensor(4, 4))[1] == six(2 / 3 / 4, 4 / 3 / 4)


def test_stch_by_task() -> None:
    balancer = STCH(
        num_tasks=3, seed=0, tasks=SPECS, preference={"slots": 4.0}, ideal={"intent": 1.5, "domain": -1}, mu=0.5
    )
    assert balancer.weights_sum == "free"
    terms = torch.softmax(tensor(0.5, 2, 2) / 0.5, 0)
    assert derivative(balancer, tensor(*LOSSES))[1] == pytest.approx((tensor(1, 4, 1) * terms).tolist())


# ---------------------------------------------------------------- cosmos, pbi


def test_cosmos() -> None:
    # methods, section 5, cosmos: r.l - lambda cos(r, l); r = (1, 1), l = (2, .5): cos = 2.5 / sqrt(2 * 4.25)
    cosine = 2.5 / math.sqrt(8.5)
    value, weights = derivative(COSMOS(num_tasks=2, seed=0), tensor(2, 0.5))
    # d cos = r / (|r| |l|) - cos l / |l|^2
    slope = [1 / math.sqrt(8.5) - cosine * loss / 4.25 for loss in (2, 0.5)]
    assert [value, *weights] == six(2.5 - cosine, 1 - slope[0], 1 - slope[1])
    balancer = COSMOS(num_tasks=3, seed=0, tasks=SPECS, preference={"intent": 3.0}, penalty=0)
    assert derivative(balancer, tensor(*LOSSES)) == (7.5, [3, 1, 1])


def test_cosmos_of_tiny_losses() -> None:
    """The cosine depends on no scale: 1e-200 squared is no longer a float64."""
    small = derivative(lambda losses: cosmos_objective(losses, tensor(1, 1)), tensor(2e-200, 0.5e-200))[0]
    large = derivative(lambda losses: cosmos_objective(losses, tensor(1, 1)), tensor(2e200, 0.5e200))
    assert small == pytest.approx(-2.5 / math.sqrt(8.5))
    assert large[1] == pytest.approx([1, 1])


def test_pbi() -> None:
    # methods, section 5, pbi: d1 = (l - z).r / |r|, d2 = |l - z - d1 r / |r||, theta 5, z 0
    value, weights = derivative(PBI(num_tasks=2, seed=0), tensor(2, 0.5))
    # r = (1, 1): d1 = 2.5 / sqrt 2, what is left (.75, -.75): d2 = .75 sqrt 2, both with slopes of 1 / sqrt 2
    root = math.sqrt(2)
    assert [value, *weights] == six(2.5 / root + 5 * 0.75 * root, 6 / root, -4 / root)
    balancer = PBI(num_tasks=2, seed=0, tasks=SPECS[:2], preference={"intent": 4.0}, ideal={"slots": 0.25}, theta=1)
    # l - z = (2, .25), r / |r| = (4, 1) / sqrt 17: d1 = 8.25 / sqrt 17, d2 = |(2, .25) x (4, 1)| / sqrt 17
    assert derivative(balancer, tensor(2, 0.5))[0] == pytest.approx((8.25 + 1) / math.sqrt(17))


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 1e200])
@pytest.mark.parametrize("preference", [[1.0, 1.0, 1.0], [0.1, 0.7, 0.3]])
def test_pbi_on_the_preference_is_the_way_along_it(scale: float, preference: list[float]) -> None:
    """Where the distance is 0 but for rounding, its slope counts as 0."""
    axis = tensor(*preference)
    expected = (axis / axis.norm()).tolist()
    assert derivative(lambda losses: pbi_objective(losses, axis), scale * axis)[1] == pytest.approx(expected)
    off = scale * axis * tensor(1 + 1e-9, 1, 1)
    assert max(derivative(lambda losses: pbi_objective(losses, axis), off)[1]) > 2  # a real distance is seen


# ---------------------------------------------------------------- identities


@modest
@given(vectors(4, -100, 100), st.floats(1e-6, 10))
def test_smooth_maximum_is_near_the_maximum(values: Tensor, mu: float) -> None:
    value, weights = derivative(lambda given: smooth_maximum(given, mu=mu), values)
    top = float(values.max())
    assert top - 1e-9 <= value <= top + mu * math.log(4) + 1e-9
    assert sum(weights) == pytest.approx(1)


@modest
@given(vectors(4, 0.01, 100), vectors(4, 0.01, 10))
def test_pbi_splits_the_losses_at_a_right_angle(losses: Tensor, preference: Tensor) -> None:
    along = float(pbi_objective(losses, preference, theta=0))
    off = float(pbi_objective(losses, preference, theta=1)) - along
    assert along**2 + off**2 == pytest.approx(float(losses @ losses))
    # And the distance is nothing on the preference itself.
    on = along * preference / preference.norm()
    assert float(pbi_objective(on, preference)) == pytest.approx(along)


@modest
@given(vectors(4, 0.01, 100), vectors(4, 0.01, 10), st.floats(0.1, 100))
def test_cosmos_penalty_does_not_see_the_losses_scale(losses: Tensor, preference: Tensor, factor: float) -> None:
    def penalty(losses: Tensor) -> float:
        return float(preference @ losses - cosmos_objective(losses, preference))

    assert penalty(losses * factor) == pytest.approx(penalty(losses), abs=1e-9 * factor * float(losses.sum() + 1))
    assert penalty(preference * factor) == pytest.approx(1)


# ---------------------------------------------------------------- TorchJD


def test_torchjd_stch() -> None:
    """Its preferences are 1/T unless given."""
    for mu, losses in zip(itertools.cycle([0.01, 0.1, 1.0]), problems(), strict=False):
        ones, shift = torch.ones_like(losses), torch.full_like(losses, 0.25)
        ours = STCH(num_tasks=len(losses), seed=0, mu=mu, ideal=0.25)
        assert unlike(ours, reference.STCH(mu, weights=ones, reference=shift), losses) <= 1e-12
        mean = STCH(num_tasks=len(losses), seed=0, mu=mu, preference=1 / len(losses))
        assert unlike(mean, reference.STCH(mu), losses) <= 1e-12


def test_torchjd_cosmos() -> None:
    for losses in problems():
        preference = losses.flip(0).sqrt()
        specs = [TaskSpec(str(index), "regression") for index in range(len(losses))]
        by_name = {str(index): value for index, value in enumerate(preference.tolist())}
        ours: Scalarizer = COSMOS(num_tasks=len(losses), seed=0, tasks=specs, preference=by_name, penalty=0.3)
        # The slope of the cosine is a difference of near numbers where the losses are small: rounding over them.
        assert unlike(ours, reference.COSMOS(0.3, preference), losses) <= 1e-11


def test_torchjd_pbi() -> None:
    """It adds 1e-12 to the square of d2, so that on the preference, and with one task, its value is 1e-6 theta more."""
    for losses in problems():
        if len(losses) > 1:
            preference = losses.flip(0).sqrt()
            specs = [TaskSpec(str(index), "regression") for index in range(len(losses))]
            by_name = {str(index): value for index, value in enumerate(preference.tolist())}
            ours = PBI(num_tasks=len(losses), seed=0, tasks=specs, preference=by_name, ideal=-0.1)
            theirs = reference.PBI(5.0, preference, torch.full_like(losses, -0.1))
            distance = float(
                pbi_objective(losses + 0.1, preference, theta=1) - pbi_objective(losses + 0.1, preference, theta=0)
            )
            assert unlike(ours, theirs, losses) <= 1e-12 + 1e-11 / distance**2
