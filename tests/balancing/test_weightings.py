"""GradVac, Krum and CR-MOGM: fixtures, identities, agreement with TorchJD, degenerate input. Wrong options of all.

Rows of A, B and C are task gradients, as in the fixtures of the other methods.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchjd.aggregation as reference
from hydra.utils import instantiate
from hypothesis import given
from omegaconf import OmegaConf

from mtlbench.balancing.base import Balancer, Property, Weighting
from mtlbench.balancing.crmogm import CRMOGM
from mtlbench.balancing.equal import Equal
from mtlbench.balancing.gradvac import GradVac
from mtlbench.balancing.krum import Krum, krum_scores
from mtlbench.balancing.mgda import MGDA
from mtlbench.balancing.modo import MoDo
from mtlbench.balancing.pcgrad import PCGrad
from mtlbench.balancing.sdmgrad import SDMGrad
from tests.balancing.rows import OPPOSITE, SEEDS, A, B, C, direction, jacobian, six, tensor, weigh
from tests.contract.balancers import BUILT, NAMES, load, specs


@pytest.mark.parametrize(
    ("balancer", "options", "message"),
    [
        (GradVac, {"beta": -0.1}, "beta must be a finite number of at least 0"),
        (GradVac, {"beta": 1.5}, "beta must be a finite number of at least 0 and of at most 1"),
        (GradVac, {"order": "ascending"}, "order must be one of random, fixed"),
        (GradVac, {"groups": "matrix"}, "groups must be one of all, layer"),
        (Krum, {"byzantine": -1}, "byzantine must be a whole number of at least 0"),
        (Krum, {"byzantine": 2}, "byzantine=2 needs at least 5 tasks, got 4"),
        (Krum, {"selected": 0}, "selected must be a whole number of at least 1"),
        (Krum, {"selected": 5}, "can't select 5 of 4 tasks"),
        (Krum, {"distance": "cosine"}, "distance must be one of squared, plain"),
        (CRMOGM, {"weighting": MGDA, "alpha": 1.1}, "alpha must be a finite number of at least 0 and of at most 1"),
        (CRMOGM, {"weighting": MGDA, "alpha": -1}, "alpha must be a finite number of at least 0"),
        (CRMOGM, {"weighting": Equal}, "Equal is none"),
        (SDMGrad, {"lambda_": -0.3}, "lambda_ must be a finite number of at least 0"),
        (SDMGrad, {"solver": "sgd"}, "solver must be one of exact, stochastic"),
        (SDMGrad, {"steps": 0}, "steps must be a whole number of at least 1"),
        (SDMGrad, {"lr": 0}, "lr must be a finite number above 0"),
        (SDMGrad, {"momentum": 1}, "momentum must be a finite number of at least 0 and below 1"),
        (MoDo, {"gamma": 0}, "gamma must be a finite number above 0"),
        (MoDo, {"rho": -1}, "rho must be a finite number of at least 0"),
    ],
)
def test_wrong_options_are_refused(balancer: type[Balancer], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        balancer(num_tasks=4, seed=0, **options)


# ---------------------------------------------------------------- gradvac


def test_gradvac() -> None:
    # methods, section 2, GradVac: beta 0.5, phi 0 at first; calls 1, 2 and 3 on A
    balancer = GradVac(num_tasks=2, seed=0)
    for expected in [(2.4, 3.2), (2.216467, 2.649402), (2.115172, 2.345517)]:
        assert direction(balancer, tensor(A)).tolist() == six(*expected)
        assert balancer.status == "solved"


@given(SEEDS)
def test_gradvac_starts_as_pcgrad_and_stays_it_without_memory(seed: int) -> None:
    rows = jacobian(seed)
    first, always, pcgrad = (
        make(num_tasks=len(rows), seed=seed) for make in (GradVac, functools.partial(GradVac, beta=0.0), PCGrad)
    )
    expected = weigh(pcgrad, rows)
    assert torch.allclose(weigh(first, rows), expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(weigh(always, rows), expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(weigh(always, rows), weigh(pcgrad, rows), rtol=1e-9, atol=1e-12)


@given(SEEDS)
def test_gradvac_reaches_the_cosine_that_it_wants(seed: int) -> None:
    """With two tasks the corrected gradient of either is seen alone: g_i + w g_j."""
    rows = jacobian(seed, (2, 5))
    balancer = GradVac(num_tasks=2, seed=0, beta=1.0)
    weigh(balancer, rows)  # phi is now the cosine of these
    other = jacobian(seed + 1, (2, 5))
    wanted = float(torch.cosine_similarity(rows[0], rows[1], dim=0))
    had = float(torch.cosine_similarity(other[0], other[1], dim=0))
    weights = weigh(balancer, other)
    corrected = other[0] + (weights[1] - 1) * other[1]
    assert float(torch.cosine_similarity(corrected, other[1], dim=0)) == pytest.approx(max(wanted, had), abs=1e-6)


@pytest.mark.parametrize("make", [GradVac, PCGrad])
@given(SEEDS)
def test_two_gradients_are_three_with_a_zero_one(make: Callable[..., Weighting], seed: int) -> None:
    """Two have a way of their own; a zero gradient neither changes nor is changed."""
    two, three = make(num_tasks=2, seed=0), make(num_tasks=3, seed=0)
    for step in range(3):
        rows = jacobian(seed + step, (2, 3)) * torch.tensor([[1.0], [1e-3]])
        expected = weigh(three, torch.cat([rows, torch.zeros(1, 3)]))[:2]
        assert weigh(two, rows).tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_gradvac_by_layer_treats_each_layer_by_itself() -> None:
    rows = jacobian(3, (4, 10))
    blocks = [rows[:, :3], rows[:, 3:]]
    together = GradVac(num_tasks=4, seed=0, groups="layer", order="fixed")
    single = [GradVac(num_tasks=4, seed=0, order="fixed") for _ in blocks]
    for _ in range(3):
        found = together(torch.stack([block @ block.T for block in blocks]), torch.ones(4).double())
        expected = torch.stack([weigh(balancer, block) for balancer, block in zip(single, blocks, strict=True)])
        assert torch.allclose(found, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="2 groups, as in the steps before, got 1"):
        weigh(together, rows)


def test_gradvac_equals_torchjd() -> None:
    """200 Jacobians, three calls each, the next with the memory of those before. TorchJD draws an order of the others
    where ours draws one of all tasks, so both are made ascending."""
    worst = 0.0
    for seed in range(200):
        rows = jacobian(seed)
        theirs, ours = reference.GradVac(beta=0.5, eps=0.0), GradVac(num_tasks=len(rows), seed=0, order="fixed")
        for call in range(3):
            step = jacobian(1000 * call + seed, tuple(rows.shape))  # type: ignore[arg-type]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "randperm", torch.arange)
                expected = theirs(step)
            found = direction(ours, step)
            worst = max(worst, float((found - expected).norm() / expected.norm()))
    assert worst <= 1e-9


def test_gradvac_of_zero_opposite_and_identical_gradients() -> None:
    balancer = GradVac(num_tasks=2, seed=0)
    assert direction(balancer, tensor(OPPOSITE)).norm() == pytest.approx(0, abs=1e-12)
    assert balancer.status == "degenerate"
    balancer = GradVac(num_tasks=2, seed=0)
    assert weigh(balancer, tensor([[1.0, 2.0], [0.0, 0.0]])).tolist() == [1, 1]
    assert balancer.targets.values.tolist() == [[[0, 0], [0, 0]]]
    for _ in range(100):
        weigh(balancer, tensor([[1.0, 2.0], [1.0, 2.0]]))
    found = weigh(balancer, tensor(A))  # phi is 1 by now
    assert found.isfinite().all()
    assert found.max() < 1000


def test_gradvac_keeps_the_targets_of_tasks_without_labels() -> None:
    balancer = GradVac(num_tasks=3, seed=0, order="fixed")
    weigh(balancer, tensor(C))
    before = balancer.targets.values.clone()
    weigh(balancer, tensor(C)[:2], torch.tensor([0, 2]))
    changed = balancer.targets.values != before
    assert changed[0].nonzero().tolist() == [[0, 2], [2, 0]]


# ---------------------------------------------------------------- krum


def test_krum() -> None:
    """Four gradients on a line at 0, 1, 3 and 100: with one that may lie, each has 4 - 1 - 2 = 1 closest other."""
    rows = tensor([[0.0], [1.0], [3.0], [100.0]])
    gramian = rows @ rows.T
    assert krum_scores(gramian, byzantine=1).tolist() == [1, 1, 4, 97**2]
    assert krum_scores(gramian, byzantine=0).tolist() == [10, 5, 13, 97**2 + 99**2]
    assert krum_scores(gramian, byzantine=0, distance="plain").tolist() == [4, 3, 5, 196]
    assert weigh(Krum(num_tasks=4, seed=0), rows).tolist() == [0, 1, 0, 0]
    assert weigh(Krum(num_tasks=4, seed=0, byzantine=1), rows).tolist() == [1, 0, 0, 0]  # the first of two equal scores
    assert weigh(Krum(num_tasks=4, seed=0, selected=2), rows).tolist() == [0.5, 0.5, 0, 0]


def test_krum_equals_torchjd() -> None:
    for seed in range(200):
        rows = jacobian(seed, (5 + seed % 8, 6))
        size = len(rows)
        byzantine, selected = seed % (size - 4), 1 + seed % 3
        ours = Krum(num_tasks=size, seed=0, byzantine=byzantine, selected=selected, distance="plain")
        theirs = reference.Krum(byzantine, selected)
        assert torch.allclose(direction(ours, rows), theirs(rows), rtol=1e-12, atol=1e-12)


def test_krum_settles_ties_by_the_tasks_order() -> None:
    """Of three gradients the two closest have the same score; their Gramian's two halves may differ by rounding."""
    gramian = tensor([[1.0, 0.1 + 0.2, 0.0], [0.3, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert gramian[0, 1] != gramian[1, 0]
    for one in (gramian, gramian.T):
        scores = krum_scores(one)
        assert scores[0] == scores[1] < scores[2]
        weights = Krum(num_tasks=3, seed=0)(one[None], torch.ones(3, dtype=torch.float64))
        assert weights.tolist() == [[1, 0, 0]]


def test_krum_of_too_few_active_tasks_is_their_mean() -> None:
    balancer = Krum(num_tasks=4, seed=0, byzantine=1, selected=4)
    assert weigh(balancer, tensor(C), torch.tensor([0, 1, 3])).tolist() == [1 / 3] * 3
    assert balancer.status == "degenerate"
    balancer = Krum(num_tasks=4, seed=0, selected=4)
    assert weigh(balancer, tensor(C), torch.tensor([0, 1, 3])).tolist() == [1 / 3] * 3
    assert balancer.status == "solved"


@given(SEEDS)
def test_krum_leaves_out_an_outlier(seed: int) -> None:
    rows = jacobian(seed, (6, 4))
    rows[seed % 6] += 1e3
    assert weigh(Krum(num_tasks=6, seed=0, byzantine=1, selected=3), rows)[seed % 6] == 0


# ---------------------------------------------------------------- crmogm


def test_crmogm_smooths_the_weights() -> None:
    # methods, section 5, crmogm: alpha 0.9; MGDA's weights on A are (.4, .6) and on B (.098361, .901639)
    balancer = CRMOGM(num_tasks=2, seed=0, weighting=MGDA)
    assert weigh(balancer, tensor(A)).tolist() == six(0.4, 0.6)
    expected = [0.9 * 0.4 + 0.1 * 0.098361, 0.9 * 0.6 + 0.1 * 0.901639]
    assert weigh(balancer, tensor(B)).tolist() == six(*expected)
    expected = [0.9 * expected[0] + 0.1 * 0.4, 0.9 * expected[1] + 0.1 * 0.6]
    assert weigh(balancer, tensor(A)).tolist() == six(*expected)


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(BUILT[name], Weighting)])
def test_crmogm_around_any_weighting(name: str) -> None:
    """With the one override that says which: its own options have their defaults, or are given beside it."""
    inner = {"_target_": load(name)._target_} | ({"weighting": load(name).weighting} if name == "crmogm" else {})
    node = OmegaConf.merge(load("crmogm"), {"weighting": inner})
    balancer = instantiate(node, _partial_=True, _convert_="all")(num_tasks=3, seed=0, tasks=specs(3))
    assert type(balancer.inner) is type(BUILT[name])


def test_crmogm_equals_torchjd() -> None:
    """200 Jacobians in sequences of five, over PCGrad with equal draws."""
    for seed in range(40):
        rows = jacobian(seed)
        ours = CRMOGM(num_tasks=len(rows), seed=seed, weighting=PCGrad, alpha=0.7)
        theirs = reference.CRMOGMWeighting(reference.PCGradWeighting(), alpha=0.7)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for call in range(5):
                step = jacobian(100 * call + seed, tuple(rows.shape))  # type: ignore[arg-type]
                expected = theirs(step @ step.T)
                assert torch.allclose(weigh(ours, step), expected, rtol=1e-11, atol=1e-12)


def test_crmogm_is_the_inner_weighting_in_all_else() -> None:
    by_layer = CRMOGM(num_tasks=3, seed=0, weighting=functools.partial(PCGrad, groups="layer"))
    assert by_layer.groups == "layer"
    assert by_layer.properties == frozenset()
    plain = CRMOGM(num_tasks=3, seed=0, weighting=MGDA, alpha=0.0)
    assert plain.weights_sum == "1"
    assert plain.properties == {Property.PERMUTATION_EQUIVARIANT}
    for seed in range(5):
        rows = jacobian(seed, (3, 4))
        assert torch.equal(weigh(plain, rows), weigh(MGDA(num_tasks=3, seed=0), rows))
    weigh(plain, tensor([*OPPOSITE, [1.0, 1.0]]))
    assert plain.status == "degenerate"


def test_crmogm_of_a_task_that_appears_late() -> None:
    balancer = CRMOGM(num_tasks=3, seed=0, weighting=MGDA)
    weigh(balancer, tensor(A), torch.tensor([0, 2]))
    assert balancer.weights.values[0, [0, 2]].tolist() == six(0.4, 0.6)
    found = weigh(balancer, tensor(C))
    inner = weigh(MGDA(num_tasks=3, seed=0), tensor(C))
    assert found[1] == inner[1]
    assert found[0] == pytest.approx(0.9 * 0.4 + 0.1 * float(inner[0]))


def test_crmogm_saves_the_inner_state_too() -> None:
    make = functools.partial(CRMOGM, num_tasks=3, weighting=GradVac)
    balancer, fresh = make(seed=1), make(seed=2)
    for seed in range(3):
        weigh(balancer, jacobian(seed, (3, 4)))
    file = io.BytesIO()
    torch.save(balancer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(3):
        rows = jacobian(seed, (3, 4))
        assert torch.equal(weigh(balancer, rows), weigh(fresh, rows))
