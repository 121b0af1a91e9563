"""The methods that look at losses alone: fixtures to six digits, options, identities, TorchJD."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torchjd.scalarization as reference
from hypothesis import given
from torch import Tensor

from mtlbench.balancing.cosmos import COSMOS
from mtlbench.balancing.famo import FAMO
from mtlbench.balancing.gls import GLS, geometric_mean
from mtlbench.balancing.go4align import GO4Align
from mtlbench.balancing.imtl_l import IMTLL, imtl_l_objective
from mtlbench.balancing.pbi import PBI
from mtlbench.balancing.rlw import RLW, random_weights
from mtlbench.balancing.scale_invariant import ScaleInvariant
from mtlbench.balancing.stch import STCH
from mtlbench.balancing.uncertainty import uncertainty_objective
from tests.balancing.losses import LOSSES, SPECS, derivative, modest, problems, tensor, unlike, vectors
from tests.balancing.rows import six

# ---------------------------------------------------------------- scale_invariant, gls


def test_scale_invariant() -> None:
    # methods, section 2, SI: sum ln l, here ln 2 + ln .5 + ln 1 = 0
    value, weights = derivative(ScaleInvariant(num_tasks=3, seed=0), tensor(*LOSSES))
    assert [value, *weights] == six(0, 0.5, 2, 1)


def test_gls() -> None:
    # methods, section 2, GLS: 1, d = GM / (K l) = (.166667, .666667, .333333)
    value, weights = derivative(GLS(num_tasks=3, seed=0), tensor(*LOSSES))
    assert [value, *weights] == six(1, 0.166667, 0.666667, 0.333333)


@pytest.mark.parametrize(
    ("losses", "mean"),
    [
        ([1e-12] * 40, 1e-12),  # whose product is 1e-480
        ([1e12] * 40, 1e12),
        ([1e-300, 1e300], 1),
        ([1e-310, 1e-310], 1e-310),  # 1 / 1e-310 overflows, the weight 1/2 does not
    ],
)
def test_gls_neither_under_nor_overflows(losses: list[float], mean: float) -> None:
    value, weights = derivative(GLS(num_tasks=len(losses), seed=0), tensor(*losses))
    assert value == pytest.approx(mean, rel=1e-10)
    assert weights == pytest.approx([mean / loss / len(losses) for loss in losses] if mean > 1e-300 else [0.5] * 2)


def test_gls_of_small_float32_losses() -> None:
    losses = torch.full((40,), 1e-3)
    value, weights = derivative(GLS(num_tasks=40, seed=0), losses)
    assert value == pytest.approx(1e-3, rel=1e-5)
    assert weights == pytest.approx([1 / 40] * 40, rel=1e-5)


@modest
@given(vectors(5, 1e-3, 1e3))
def test_gls_is_at_most_the_mean(losses: Tensor) -> None:
    value, weights = derivative(geometric_mean, losses)
    assert value <= float(losses.mean()) * (1 + 1e-12)
    assert float(tensor(*weights) @ losses) == pytest.approx(value)


def test_torchjd_gls() -> None:
    for losses in problems():
        assert unlike(GLS(num_tasks=len(losses), seed=0), reference.GeometricMean(), losses) <= 1e-12


# ---------------------------------------------------------------- rlw


def test_rlw_normal() -> None:
    # methods, section 4, rlw: softmax of normals times T; section 2: they sum to 1 in the paper
    drawn = torch.randn(3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected = torch.softmax(drawn, 0)
    assert derivative(RLW(num_tasks=3, seed=7), tensor(*LOSSES))[1] == pytest.approx((3 * expected).tolist())
    mean = RLW(num_tasks=3, seed=7, scale="mean")
    assert mean.weights_sum == "1"
    assert derivative(mean, tensor(*LOSSES))[1] == pytest.approx(expected.tolist())


def test_rlw_dirichlet() -> None:
    """Uniform over the simplex: means 1/T, variances (T - 1) / (T^2 (T + 1)), P(w_1 > a) = (1 - a)^(T - 1)."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_weights(3, generator=generator, distribution="dirichlet") for _ in range(4000)])
    assert drawn.sum(1).tolist() == pytest.approx([1] * 4000)
    assert drawn.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.012)
    assert drawn.var(0).tolist() == pytest.approx([1 / 18] * 3, rel=0.07)
    for bound in (0.2, 0.5, 0.8):
        assert float((drawn[:, 0] > bound).double().mean()) == pytest.approx((1 - bound) ** 2, abs=0.025)
    # methods, section 2, RLW: E[w] = 1/K for normals too
    normal = torch.stack([random_weights(3, generator=generator) for _ in range(4000)])
    assert normal.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.012)


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
def test_rlw_draws_alike_whichever_tasks_are_active(distribution: Any) -> None:
    whole, some = (RLW(num_tasks=3, seed=3, distribution=distribution) for _ in range(2))
    active = torch.tensor([0, 2])
    for _ in range(3):
        weights = derivative(whole, tensor(*LOSSES))[1]
        found = derivative(lambda losses: some(losses, active=active), tensor(2, 1))[1]
        assert found == pytest.approx([weights[0], weights[2]])


def test_torchjd_rlw() -> None:
    """It draws from the global generator, and its weights sum to 1."""
    for seed, losses in enumerate(problems()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            assert unlike(RLW(num_tasks=len(losses), seed=seed, scale="mean"), reference.Random(), losses) <= 1e-12


# ---------------------------------------------------------------- imtl_l


def test_imtl_l() -> None:
    # methods, section 2, IMTL-L: s = 0 -> 2.5; s = (.5, -.5) -> 3.600708, ds = (2.297443, -.696735)
    balancer = IMTLL(num_tasks=2, seed=0).double()
    assert derivative(balancer, tensor(2, 0.5)) == (2.5, [1, 1])
    balancer.scales.data = tensor(0.5, -0.5)
    value, weights = derivative(balancer, tensor(2, 0.5))
    assert [value, *weights] == six(3.600708, math.exp(0.5), math.exp(-0.5))
    balancer(tensor(2, 0.5)).backward()
    assert balancer.scales.grad is not None
    assert balancer.scales.grad.tolist() == six(2.297443, -0.696735)


@modest
@given(vectors(3, 0.01, 100), vectors(3, -3, 3))
def test_imtl_l_is_twice_uncertainty_of_the_negative(losses: Tensor, scales: Tensor) -> None:
    # methods, section 2, IMTL-L: = 2 UW(-s)
    assert torch.allclose(imtl_l_objective(losses, scales), 2 * uncertainty_objective(losses, -scales))


def test_torchjd_imtl_l() -> None:
    for losses in problems():
        ours, theirs = IMTLL(num_tasks=len(losses), seed=0).double(), reference.IMTLL(len(losses)).double()
        scales = torch.linspace(-1, 1, len(losses), dtype=torch.float64)
        for balancer in (ours, theirs):
            (parameter,) = balancer.parameters()
            parameter.data = scales.clone()
        assert unlike(ours, theirs, losses) <= 1e-12


# ---------------------------------------------------------------- all of them


def test_one_task_has_one_direction() -> None:
    assert derivative(COSMOS(num_tasks=1, seed=0), tensor(0.3))[1] == six(1)
    assert derivative(PBI(num_tasks=1, seed=0), tensor(0.3))[1] == six(1)
    assert derivative(STCH(num_tasks=1, seed=0), tensor(0.3))[1] == six(1)
    assert derivative(GLS(num_tasks=1, seed=0), tensor(0.3))[1] == six(1)
    assert derivative(FAMO(num_tasks=1, seed=0), tensor(0.3))[1] == six(1)


@pytest.mark.parametrize(
    ("balancer", "expected"),
    [
        (ScaleInvariant, ([0.5, 0.0, 1.0], [0.0, 0.0, 0.0])),
        (GLS, ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])),
        (FAMO, ([1 / 3, 0.0, 2 / 3], [0.0, 0.0, 0.0])),
        (GO4Align, ([0.75, 0.0, 0.75], [0.0, 0.0, 0.0])),
        (lambda **given: STCH(**given, log=True), ([0.5, 0.0, 1.0], [0.0, 0.0, 0.0])),
        (COSMOS, (None, [1.0, 1.0, 1.0])),
    ],
)
def test_losses_of_zero(balancer: Any, expected: tuple[list[float] | None, list[float]]) -> None:
    """The declared degenerate results, and back to solved after them."""
    made = balancer(num_tasks=3, seed=0)
    some, none = expected
    if some is not None:
        # GO4Align: p = 1/3 each but for eta, so v = (1/2, -, 1), whose mean in one group is 3/4
        tolerance = 1e-3 if isinstance(made, GO4Align) else 1e-12
        if isinstance(made, GO4Align):
            made.groups = 1
        assert derivative(made, tensor(2, 0, 1))[1] == pytest.approx(some, rel=tolerance)
        assert made.status == "degenerate"
    assert derivative(made, tensor(0, 0, 0))[1] == pytest.approx(none)
    assert made.status == "degenerate"
    derivative(made, tensor(*LOSSES))
    assert made.status == "solved"


@pytest.mark.parametrize(
    "make",
    [ScaleInvariant, GLS, FAMO, GO4Align, lambda **given: STCH(**given, log=True)],
)
def test_a_negative_loss_is_named(make: Any) -> None:
    balancer = make(num_tasks=3, seed=0, tasks=SPECS)
    with pytest.raises(ValueError, match=r"losses of at least 0; task 'slots' has -0\.5\. "):
        balancer(tensor(2, -0.5, 1))
    with pytest.raises(ValueError, match="task 'domain' has -1"):
        balancer(tensor(2, -1), active=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="task '1' has -1"):
        make(num_tasks=3, seed=0)(tensor(2, -1, 1))


@pytest.mark.parametrize(
    ("balancer", "options", "message"),
    [
        (RLW, {"distribution": "uniform"}, "distribution must be one of normal, dirichlet"),
        (RLW, {"scale": "T"}, "scale must be one of sum, mean"),
        (STCH, {"mu": 0}, "mu must be a finite number above 0"),
        (STCH, {"log": "yes"}, "log must be one of True, False"),
        (STCH, {"warmup": -1}, "warmup must be a whole number of at least 0"),
        (STCH, {"preference": {"slot": 1.0}}, "unknown task 'slot'.*Did you mean 'slots'"),
        (STCH, {"preference": {"slots": 0.0}}, "preference.slots must be a finite number above 0"),
        (STCH, {"ideal": math.inf}, "ideal must be a finite number"),
        (FAMO, {"lr": 0}, "lr must be a finite number above 0"),
        (FAMO, {"gamma": -1}, "gamma must be a finite number of at least 0"),
        (FAMO, {"min_losses": {"other": 1}}, "min_losses names the unknown task 'other'"),
        (COSMOS, {"penalty": -1}, "penalty"),
        (COSMOS, {"preference": 0}, "preference must be a finite number above 0"),
        (PBI, {"theta": -1}, "theta"),
        (PBI, {"ideal": "0"}, "ideal must be a finite number"),
        (GO4Align, {"groups": 0}, "groups must be a whole number of at least 1"),
        (GO4Align, {"groups": 4}, "groups must be at most the number of tasks, 3; got 4"),
        (GO4Align, {"eta": 0}, "eta"),
    ],
)
def test_wrong_options_are_refused(balancer: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        balancer(num_tasks=3, seed=0, tasks=SPECS, **options)


@pytest.mark.parametrize(
    ("balancer", "option"), [(STCH, "preference"), (STCH, "ideal"), (FAMO, "min_losses"), (COSMOS, "preference")]
)
def test_numbers_by_name_need_specs(balancer: Any, option: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{option} has numbers by task name and so needs tasks")):
        balancer(num_tasks=3, seed=0, **{option: {"slots": 1.0}})
    balancer(num_tasks=3, seed=0, **{option: {}})
