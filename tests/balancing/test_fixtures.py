"""Every number of the papers' rules on small exact inputs, to six digits.

Rows of A, B and C are task gradients; the losses are 2, 0.5 and, with three tasks, 1.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, TaskSpec
from mtlbench.balancing.cagrad import CAGrad
from mtlbench.balancing.constant import Constant
from mtlbench.balancing.dwa import DWA, dwa_weights
from mtlbench.balancing.equal import Equal
from mtlbench.balancing.gradnorm import GradNorm, gradnorm_targets, gradnorm_update
from mtlbench.balancing.mgda import MGDA
from mtlbench.balancing.pcgrad import PCGrad
from mtlbench.balancing.uncertainty import Uncertainty
from tests.balancing.solvers import on_tensors

A = [[3.0, 0.0], [-1.0, 2.0]]
B = [[10.0, 0.0], [-1.0, 1.0]]
C = [[3.0, 0.0, 1.0], [-1.0, 2.0, 0.0], [-1.0, -1.0, 2.0]]
LOSSES = [2.0, 0.5, 1.0]


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def six(*values: float) -> object:
    return pytest.approx(list(values), abs=6e-7)


def direction(balancer: Balancer, rows: list[list[float]]) -> list[float]:
    jacobian = tensor(rows)
    weights = balancer((jacobian @ jacobian.T)[None], tensor(LOSSES[: len(rows)]))
    return (weights[0] @ jacobian).tolist()


def objective(balancer: Balancer, losses: list[float]) -> tuple[float, list[float]]:
    """The objective's value and its derivative by the losses."""
    leaf = tensor(losses).requires_grad_()
    value = balancer(leaf)
    return float(value.detach()), torch.autograd.grad(value, leaf, retain_graph=True)[0].tolist()


# ---------------------------------------------------------------- equal, constant


def test_equal() -> None:
    # methods, section 2, EW: sum 3.5, mean 1.166667
    assert objective(Equal(num_tasks=3, seed=0), LOSSES) == (3.5, [1, 1, 1])
    value, weights = objective(Equal(num_tasks=3, seed=0, reduction="mean"), LOSSES)
    assert [value, *weights] == six(1.166667, 0.333333, 0.333333, 0.333333)


def test_constant() -> None:
    # methods, section 4: weights by task name, 1 where none is given
    specs = [TaskSpec("left", "classification"), TaskSpec("right", "regression")]
    balancer = Constant(num_tasks=2, seed=0, tasks=specs, weights={"right": 0.25})
    assert objective(balancer, LOSSES[:2]) == (2.125, [1, 0.25])


# ---------------------------------------------------------------- uncertainty


@pytest.mark.parametrize(
    ("form", "by_kind", "scales", "value", "gradient"),
    [
        # methods, section 2, UW: (e^-s l + s) / 2 at s = (0, ln 4) [FAMO, LibMTL, TorchJD]
        ("half", False, (0.0, math.log(4)), 1.755647, (-0.5, 0.4375)),
        # ... e^-s l + s [Gal]
        ("sum", False, (0.0, math.log(4)), 3.511294, (-1, 0.875)),
        # ... sigma form l / (2 sigma^2) + ln sigma at sigma = (1, 2)
        ("sigma", False, (1.0, 2.0), 1.755647, (-1, 0.4375)),
        # ... classification l / sigma^2 + ln sigma
        ("sigma", True, (1.0, 2.0), 2.818147, (-3, 0.375)),
        # ... Liebel: ln(1 + sigma^2)
        ("liebel", False, (1.0, 2.0), 3.365085, (-1, 0.7375)),
    ],
)
def test_uncertainty(
    form: str, by_kind: bool, scales: tuple[float, ...], value: float, gradient: tuple[float, ...]
) -> None:
    specs = [TaskSpec("a", "classification"), TaskSpec("b", "tagging")]
    balancer = Uncertainty(num_tasks=2, seed=0, tasks=specs, form=form, by_kind=by_kind).double()  # type: ignore[arg-type]
    balancer.scales.data = tensor(scales)
    result = balancer(tensor(LOSSES[:2]))
    result.backward()
    assert float(result.detach()) == pytest.approx(value, abs=6e-7)
    assert balancer.scales.grad is not None
    assert balancer.scales.grad.tolist() == six(*gradient)


def test_uncertainty_by_kind_leaves_regression_alone() -> None:
    specs = [TaskSpec("a", "classification"), TaskSpec("b", "regression")]
    balancer = Uncertainty(num_tasks=2, seed=0, tasks=specs, by_kind=True)
    assert objective(balancer, LOSSES[:2])[1] == [1, 0.5]


def test_uncertainty_optimum() -> None:
    # methods, section 2, UW: s* = ln l gives (1 + ln l) / 2 = (.846574, .153426)
    for loss, expected in ((2.0, 0.846574), (0.5, 0.153426)):
        balancer = Uncertainty(num_tasks=1, seed=0, init=math.log(loss)).double()
        value = balancer(tensor([loss]))
        value.backward()
        assert float(value.detach()) == pytest.approx(expected, abs=6e-7)
        assert balancer.scales.grad is not None
        assert float(balancer.scales.grad) == pytest.approx(0, abs=6e-7)


@pytest.mark.parametrize("form", ["half", "sigma"])
def test_uncertainty_at_libmtls_init(form: str) -> None:
    # methods, section 2, UW: LibMTL at init -0.5: 1.560902; the sigma form starts at the same s
    balancer = Uncertainty(num_tasks=2, seed=0, form=form, init=-0.5).double()  # type: ignore[arg-type]
    assert float(balancer(tensor(LOSSES[:2])).detach()) == pytest.approx(1.560902, abs=6e-7)


# ---------------------------------------------------------------- dwa


def test_dwa() -> None:
    # methods, section 2, DWA: r = (.9, 1.1) and (.8, 1, .5)
    assert dwa_weights(tensor([0.9, 1.1])).tolist() == six(0.950042, 1.049958)
    assert dwa_weights(tensor([0.8, 1.0, 0.5])).tolist() == six(1.011505, 1.117885, 0.870610)
    # ... ones for the first two epochs
    balancer = DWA(num_tasks=2, seed=0)
    assert objective(balancer, LOSSES[:2])[1] == [1, 1]
    balancer.end_epoch(tensor([2.0, 4.0]))
    assert objective(balancer, LOSSES[:2])[1] == [1, 1]
    balancer.end_epoch(tensor([1.8, 4.4]))
    assert objective(balancer, LOSSES[:2])[1] == six(0.950042, 1.049958)
    balancer.end_epoch(tensor([0.9, 2.2]))
    assert objective(balancer, LOSSES[:2])[1] == six(1, 1)  # both halved


def test_dwa_of_a_task_without_labels() -> None:
    # methods, section 2, DWA: an epoch without labels of a task leaves its ratio alone, here .9 against 1.1
    balancer = DWA(num_tasks=2, seed=0)
    for means in ([2.0, math.nan], [1.8, 4.0], [math.nan, 4.4]):
        balancer.end_epoch(tensor(means))
    assert objective(balancer, LOSSES[:2])[1] == six(0.950042, 1.049958)
    balancer.end_epoch(tensor([0.0, 4.84]))
    balancer.end_epoch(tensor([1.0, 5.324]))  # from a mean of 0 there is no ratio: 1
    assert objective(balancer, LOSSES[:2])[1] == six(*dwa_weights(tensor([1.0, 1.1])).tolist())


def test_dwa_of_iterations() -> None:
    # methods, section 2, DWA: the Nash-MTL code's window, here of 2 iterations: r = (.9, 1.1) at the fourth
    balancer = DWA(num_tasks=2, seed=0, window=2)
    for losses in ([1.5, 3.5], [2.5, 4.5], [1.7, 4.3]):
        assert objective(balancer, losses)[1] == [1, 1]
    assert objective(balancer, [1.9, 4.5])[1] == six(0.950042, 1.049958)
    balancer.end_epoch(tensor([100.0, 1.0]))
    # the window moves on: (2.5, 1.7) then (1.9, 2.3), (4.5, 4.3) then (4.5, 4.3)
    assert objective(balancer, [2.3, 4.3])[1] == six(1, 1)


# ---------------------------------------------------------------- gradnorm


@pytest.mark.parametrize(
    ("alpha", "targets", "distance"),
    [
        # methods, section 2, GradNorm: norms (3, sqrt 5), L/L0 = (.5, .8)
        (0.0, (2.618034, 2.618034), 0.763932),
        (1.5, (1.766283, 3.574705), 2.572354),
        (0.12, (2.536893, 2.684086), 0.911126),
    ],
)
def test_gradnorm_targets(alpha: float, targets: tuple[float, ...], distance: float) -> None:
    norms = tensor([3, math.sqrt(5)])
    found = on_tensors(gradnorm_targets)(norms, tensor([0.5, 0.8]), alpha=alpha)
    assert found.tolist() == six(*targets)
    assert float((norms - found).abs().sum()) == pytest.approx(distance, abs=6e-7)


def test_gradnorm() -> None:
    # methods, section 2, GradNorm: SGD lr .025 -> (.925, 1.055902) -> renormalised (.933918, 1.066082)
    balancer = GradNorm(num_tasks=2, seed=0)
    gramian = (tensor(A) @ tensor(A).T)[None]
    # The paper's algorithm 1: a step uses the weights from before its own update.
    assert balancer(gramian, tensor([4.0, 5.0])).tolist() == [[1, 1]]
    balancer.weights.fill_(1)
    assert balancer(gramian, tensor([2.0, 4.0])).tolist() == [[1, 1]]
    assert balancer.weights.tolist() == six(0.933918, 1.066082)
    assert balancer(gramian, tensor([2.0, 4.0])).tolist()[0] == six(0.933918, 1.066082)


def test_gradnorm_measures_with_the_current_weights() -> None:
    # From w = (.5, 1.5): norms (1.5, 3.354102), alpha 0, target 2.427051: gradients (-3, 2.236068).
    updated = on_tensors(gradnorm_update)(tensor([0.5, 1.5]), tensor([3, math.sqrt(5)]), tensor([1.0, 1.0]), alpha=0)
    raw = [0.5 + 0.025 * 3, 1.5 - 0.025 * math.sqrt(5)]
    assert updated.tolist() == six(*[2 * w / sum(raw) for w in raw])


def test_gradnorm_softmax() -> None:
    # methods, section 4, gradnorm: w = T softmax(v), descent on v, against autograd
    logits = tensor([0.2, -0.4, 0.1]).requires_grad_()
    lengths, ratios = tensor([3.0, 1.0, 0.5]), tensor([0.5, 0.8, 1.0])
    weights = 3 * torch.softmax(logits, 0)
    norms = weights * lengths
    (norms - on_tensors(gradnorm_targets)(norms, ratios).detach()).abs().sum().backward()
    assert logits.grad is not None
    expected = 3 * torch.softmax(logits.detach() - 0.025 * logits.grad, 0)
    updated = on_tensors(gradnorm_update)(weights.detach(), lengths, ratios, parametrization="softmax")
    assert updated.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


# ---------------------------------------------------------------- gradient methods


@pytest.mark.parametrize(
    ("rows", "weights", "expected"),
    [
        # methods, section 2, MGDA, fixtures A, B, C
        (A, (0.4, 0.6), (0.6, 1.2)),
        (B, (0.098361, 0.901639), (0.081967, 0.901639)),
        (C, (56 / 209, 91 / 209, 62 / 209), (15 / 209, 120 / 209, 180 / 209)),
    ],
)
def test_mgda(rows: list[list[float]], weights: tuple[float, ...], expected: tuple[float, ...]) -> None:
    balancer = MGDA(num_tasks=len(rows), seed=0)
    jacobian = tensor(rows)
    assert balancer((jacobian @ jacobian.T)[None], tensor(LOSSES[: len(rows)])).tolist()[0] == six(*weights)
    assert direction(balancer, rows) == six(*expected)


@pytest.mark.parametrize(
    ("normalize", "scales"),
    [("l2", (3, math.sqrt(5))), ("loss", (2, 0.5)), ("loss+", (6, math.sqrt(5) / 2))],
)
def test_mgda_normalised(normalize: str, scales: tuple[float, float]) -> None:
    # methods, section 4, mgda: weights from the normalised gradients by the closed form for two tasks,
    # (g22 - g12) / (g11 + g22 - 2 g12), applied to the gradients as they are
    (aa, ab), (_, bb) = [[9 / scales[0] ** 2, -3 / (scales[0] * scales[1])], [0, 5 / scales[1] ** 2]]
    first = min(max((bb - ab) / (aa + bb - 2 * ab), 0), 1)
    found = direction(MGDA(num_tasks=2, seed=0, normalize=normalize), A)  # type: ignore[arg-type]
    assert found == six(3 * first - (1 - first), 2 * (1 - first))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # methods, section 2, PCGrad, fixtures A, B, C (ascending j)
        (A, (2.4, 3.2)),
        (B, (5, 6)),
        (C, (0.856667, 2.236667, 4.366667)),
    ],
)
def test_pcgrad(rows: list[list[float]], expected: tuple[float, ...]) -> None:
    assert direction(PCGrad(num_tasks=len(rows), seed=0, order="fixed"), rows) == six(*expected)


def test_pcgrad_descending() -> None:
    # methods, section 2, PCGrad, fixture C, descending j
    found = direction(PCGrad(num_tasks=3, seed=0, order="fixed"), C[::-1])
    assert found == six(1.263333, 2.333333, 4.143333)


def test_pcgrad_draws_orders() -> None:
    # methods, section 2, PCGrad, fixture C: every draw is a mixture of orders, both of the above among them;
    # with two tasks there is but one order
    balancer = PCGrad(num_tasks=3, seed=0)
    drawn = {tuple(round(x, 6) for x in direction(balancer, C)) for _ in range(100)}
    assert (0.856667, 2.236667, 4.366667) in drawn
    assert (1.263333, 2.333333, 4.143333) in drawn
    assert len(drawn) == 8  # two orders for each of three tasks
    assert direction(PCGrad(num_tasks=2, seed=0), A) == six(2.4, 3.2)


def test_pcgrad_by_layer() -> None:
    # methods, section 4, pcgrad: each layer's part as by itself
    balancer = PCGrad(num_tasks=2, seed=0, groups="layer")
    layers = [tensor(A), tensor(B)]
    weights = balancer(torch.stack([rows @ rows.T for rows in layers]), tensor(LOSSES[:2]))
    assert (weights[0] @ layers[0]).tolist() == six(2.4, 3.2)
    assert (weights[1] @ layers[1]).tolist() == six(5, 6)


@pytest.mark.parametrize(
    ("rows", "c", "expected"),
    [
        # methods, section 2, CAGrad, fixtures A, B, C
        (A, 0.4, (0.754919, 1.509839)),
        (B, 0.4, (3.219375, 1.780625)),
        (C, 0.4, (0.102725, 0.706015, 1.059023)),
        (A, 0.5, (0.844949, 1.689898)),
        (B, 0.5, (2.899219, 2.100781)),
        (C, 0.5, (0.099429, 0.795434, 1.193151)),
        # ... mean, and the identity CAGrad c = 0 = mean
        (A, 0, (1, 1)),
        (B, 0, (4.5, 0.5)),
        (C, 0, (0.333333, 0.333333, 1)),
    ],
)
def test_cagrad(rows: list[list[float]], c: float, expected: tuple[float, ...]) -> None:
    size = len(rows)
    assert direction(CAGrad(num_tasks=size, seed=0, c=c), rows) == six(*expected)
    # methods, section 2, CAGrad: official training code = T raw / (1 + c^2)
    official = direction(CAGrad(num_tasks=size, seed=0, c=c, rescale=True, scale="sum"), rows)
    assert official == pytest.approx([size * x / (1 + c * c) for x in expected], abs=4e-6)
    rescaled = direction(CAGrad(num_tasks=size, seed=0, c=c, rescale=True), rows)
    assert rescaled == pytest.approx([x / (1 + c * c) for x in expected], abs=1e-6)
