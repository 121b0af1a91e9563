"""The methods whose weights follow the losses from step to step: fixtures to six digits, identities, TorchJD."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torchjd.scalarization as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlbench.balancing.base import Property
from mtlbench.balancing.famo import FAMO
from mtlbench.balancing.go4align import GO4Align, group_means
from tests.balancing.losses import LOSSES, SPECS, derivative, modest, problems, tensor, unlike, vectors
from tests.balancing.rows import six

# ---------------------------------------------------------------- famo


def test_famo() -> None:
    # methods, section 2, FAMO: w = 0, (2, .5): dl = (.2, .8)
    balancer = FAMO(num_tasks=2, seed=0)
    value, weights = derivative(balancer, tensor(2, 0.5))
    assert weights == six(0.2, 0.8)
    assert value == pytest.approx(0, abs=1e-12)  # c (ln 2 + ln .5) / 2
    # ... Adam .025 after (1.5, .45) -> next dl at (1.5, .45) = (.222013, .777987)
    balancer.after_step(tensor(2, 0.5), tensor(1.5, 0.45))
    # ... dw = (.045580, -.045580), which the first moments hold a tenth of
    assert (10 * balancer.adam[0]).tolist() == six(0.045580, -0.045580)
    assert derivative(balancer, tensor(1.5, 0.45))[1] == six(0.222013, 0.777987)


def test_famo_of_bounds_by_task() -> None:
    balancer = FAMO(num_tasks=3, seed=0, tasks=SPECS, min_losses={"intent": -1.0, "domain": 0.75})
    assert Property.LOSS_SCALE_INVARIANT not in balancer.properties
    assert Property.LOSS_SCALE_INVARIANT in FAMO(num_tasks=3, seed=0).properties
    # 1 / (l - b) = (1/3, 2, 4), normalised
    assert derivative(balancer, tensor(*LOSSES))[1] == six(1 / 19, 6 / 19, 12 / 19)
    with pytest.raises(ValueError, match=r"at least 0\.75; task 'domain' has 0\.7\. Set min_losses"):
        balancer(tensor(1, 1, 0.7))
    with pytest.raises(ValueError, match=r"at least -1; task 'intent' has -2"):
        balancer.after_step(tensor(1, 1, 1), tensor(-2, 1, 1))
    assert FAMO(num_tasks=2, seed=0, min_losses=-21).min_losses.tolist() == [-21, -21]


def test_famo_adam_is_torchs() -> None:
    """Ten updates, decay included, against torch.optim.Adam on the logits."""
    balancer = FAMO(num_tasks=3, seed=0, lr=0.1, gamma=0.05)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1, weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        before, after = torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.1
        balancer.after_step(before, after)
        optimizer.zero_grad()
        (torch.softmax(logits, 0) @ (before.log() - after.log())).backward()
        optimizer.step()
        assert balancer.logits.tolist() == pytest.approx(logits.tolist(), rel=1e-12)


def test_famo_updates_the_tasks_that_have_losses() -> None:
    """As if there were no others; a loss at its bound has no logarithm and tells nothing."""
    balancer, pair = FAMO(num_tasks=3, seed=0), FAMO(num_tasks=2, seed=0)
    for _ in range(3):
        balancer.after_step(tensor(2, math.nan, 1), tensor(1.5, math.nan, 0.9))
        pair.after_step(tensor(2, 1), tensor(1.5, 0.9))
    assert balancer.logits[[0, 2]].tolist() == pair.logits.tolist()
    assert balancer.logits[1] == 0
    assert balancer.adam[2].tolist() == [3, 0, 3]
    balancer.after_step(tensor(2, 2, 2), tensor(math.inf, math.inf, math.inf))  # the next step will not take place
    balancer.after_step(tensor(2, 0, 1), tensor(1.5, 1, 0))
    assert balancer.adam[2].tolist() == [4, 0, 3]
    balancer.after_step(tensor(0, 0, 0), tensor(1, 1, 1))
    assert balancer.adam[2].tolist() == [4, 0, 3]


def test_famo_of_losses_far_apart() -> None:
    value, weights = derivative(FAMO(num_tasks=2, seed=0), tensor(1e-300, 1e300))
    assert math.isfinite(value)
    assert weights == pytest.approx([1, 0])


@modest
@given(vectors(5, 0.01, 10), vectors(5, 0.01, 10))
def test_famo_gives_less_to_the_loss_that_falls_fastest(before: Tensor, after: Tensor) -> None:
    balancer = FAMO(num_tasks=5, seed=0, gamma=0)
    balancer.after_step(before, after)
    fall = (before / after).log()
    assert balancer.logits[fall.argmax()] <= balancer.logits[fall.argmin()]


def test_torchjd_famo() -> None:
    """It adds 1e-8 to the losses and keeps its logits in float32 unless told otherwise."""
    for losses in problems():
        ours, theirs = FAMO(num_tasks=len(losses), seed=0), reference.FAMO(len(losses)).double()
        for factor in (0.9, 1.1, 0.5):
            assert unlike(ours, theirs, losses) <= 1e-7 / float(losses.min())
            after = losses * torch.linspace(0.5, 1, len(losses), dtype=torch.float64) * factor
            ours.after_step(losses, after)
            theirs.update(after)
            losses = after


# ---------------------------------------------------------------- go4align


def test_go4align() -> None:
    # methods, section 5, go4align: p <- norm(p e^(-eta l)); v = p sum(l) / l; a weight is its group's mean of v
    balancer = GO4Align(num_tasks=3, seed=0, eta=1.0)
    shares = np.exp([-2, -0.5, -1]) / np.exp([-2, -0.5, -1]).sum()
    values = shares * 3.5 / np.array(LOSSES)  # .2147, 3.8501, 1.1676: the second by itself
    pair = (values[0] + values[2]) / 2
    assert derivative(balancer, tensor(*LOSSES))[1] == six(pair, values[1], pair)
    assert balancer.logs.exp().tolist() == pytest.approx(shares.tolist())
    # ... with a group for each, v itself, and the sum of the losses as the objective
    value, weights = derivative(GO4Align(num_tasks=3, seed=0, eta=1.0, groups=3), tensor(*LOSSES))
    assert [value, *weights] == pytest.approx([3.5, *values])
    single = derivative(GO4Align(num_tasks=3, seed=0, eta=1.0, groups=1), tensor(*LOSSES))[1]
    assert single == pytest.approx([values.mean()] * 3)


def test_go4align_keeps_the_sum_of_the_active_tasks() -> None:
    balancer = GO4Align(num_tasks=3, seed=0, eta=1.0)
    weights = derivative(lambda losses: balancer(losses, active=torch.tensor([0, 2])), tensor(2, 1))[1]
    shares = np.exp([-2, -1]) / np.exp([-2, -1]).sum()
    assert weights == pytest.approx((shares * 3 / np.array([2, 1])).tolist())
    assert balancer.logs.exp().tolist() == pytest.approx([shares[0] * 2 / 3, 1 / 3, shares[1] * 2 / 3])
    # One task is one group.
    found = derivative(lambda losses: balancer(losses, active=torch.tensor([1])), tensor(5))
    assert [found[0], *found[1]] == pytest.approx([5, 1])


def test_go4align_survives_long_runs_of_large_losses() -> None:
    balancer = GO4Align(num_tasks=3, seed=0, eta=1.0)
    for _ in range(100):
        derivative(balancer, tensor(1e3, 1e6, 1e6))
    assert balancer.logs[0] == 0


def best(values: list[float], groups: int) -> float:
    """The least within-group sum of squares over all ways to put the values into groups."""
    costs = []
    for ways in itertools.product(range(groups), repeat=len(values)):
        parts = [[v for v, g in zip(values, ways, strict=True) if g == group] for group in range(groups)]
        costs.append(sum(float(np.var(part)) * len(part) for part in parts if part))
    return min(costs)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=1, max_size=6), st.integers(1, 3))
def test_groups_are_the_best(values: list[float], groups: int) -> None:
    means = group_means(tensor(*values), groups=groups)
    assert float((tensor(*values) - means).square().sum()) == pytest.approx(best(values, groups), abs=1e-8)
    assert len(set(means.tolist())) <= groups


def test_groups_of_values_far_apart() -> None:
    """Small values keep their differences beside a large one."""
    found = group_means(tensor(1e10, 1, 2, 1.1), groups=3).tolist()
    assert found == pytest.approx([1e10, 1.05, 2, 1.05])
