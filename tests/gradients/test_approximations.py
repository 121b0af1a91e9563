"""The approximations that a user may ask for: weights kept for some steps, inner products in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.pcgrad import PCGrad
from mtlbench.balancing.upgrad import UPGrad
from mtlbench.gradients import BalanceRecord, GradientEngine
from tests.gradients.test_engine import (
    TASKS,
    Inverse,
    InverseAtLast,
    InverseByLayer,
    LogInverse,
    Problem,
    SignedMean,
    Sum,
    engine_for,
    flat_shared,
)


class Counted(Inverse):
    """Counts how often it is asked."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.asked = 0

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        self.asked += 1
        return super().forward(gramian, losses, active=active)


def steps(problem: Problem, engine: GradientEngine, number: int) -> list[BalanceRecord]:
    records = []
    for _ in range(number):
        record = engine.backward(problem.losses()[0])
        assert record is not None
        records.append(record)
        with torch.no_grad():
            for parameter in (*problem.encoder.parameters(), *problem.heads.parameters()):
                assert parameter.grad is not None
                parameter -= 0.01 * parameter.grad
    return records


@pytest.mark.parametrize("heads", ["raw", "weighted"])
def test_weights_are_kept_and_act_on_each_steps_gradients(heads: str) -> None:
    problem = Problem()
    engine = engine_for(problem, Counted, refresh=3, heads=heads)
    records = steps(problem, engine, 7)
    assert [record.status for record in records] == ["solved", "kept", "kept"] * 2 + ["solved"]
    assert engine.balancer.asked == 3
    assert all((record.gramian is None) == (record.status == "kept") for record in records)
    jacobian, weights = problem.rows(), records[-1].weights
    record = engine.backward(problem.losses()[0])
    assert record is not None and record.weights is not None and weights is not None
    assert record.status == "kept" and torch.equal(record.weights, weights)
    torch.testing.assert_close(flat_shared(problem), weights[0] @ jacobian)
    raw = torch.autograd.grad(problem.losses()[0]["b"], list(problem.heads["b"].parameters()))
    for parameter, grad in zip(problem.heads["b"].parameters(), raw, strict=True):
        torch.testing.assert_close(parameter.grad, grad * (weights[0, 1] if heads == "weighted" else 1))


@pytest.mark.parametrize("options", [{"measure": "last_layer"}, {"measure": "features"}, {"normalize": "match_equal"}])
def test_kept_weights_go_with_other_options(options: dict[str, str]) -> None:
    problem = Problem()
    engine = engine_for(problem, Counted, refresh=2, **options)
    assert [record.status for record in steps(problem, engine, 4)] == ["solved", "kept"] * 2
    if "normalize" in options:
        engine.backward(problem.losses()[0])
        norm = problem.rows().sum(0).norm()
        engine.backward(problem.losses()[0])
        torch.testing.assert_close(flat_shared(problem).norm(), norm)


def test_other_tasks_ask_anew() -> None:
    problem = Problem()
    engine = engine_for(problem, Counted, refresh=10)
    steps(problem, engine, 2)
    losses, counts = problem.losses()
    record = engine.backward(losses, counts={**counts, "b": 0.0})
    assert record is not None and record.status == "solved"


def test_a_restart_goes_on_where_it_was() -> None:
    problem, twin = Problem(), Problem()
    engine = engine_for(problem, Counted, refresh=3)
    steps(problem, engine, 2)
    twin.encoder.load_state_dict(problem.encoder.state_dict())
    twin.heads.load_state_dict(problem.heads.state_dict())
    restarted = engine_for(twin, Counted, refresh=3)
    restarted.load_state_dict(engine.state_dict())
    for one, other in zip(steps(problem, engine, 4), steps(twin, restarted, 4), strict=True):
        assert one.status == other.status and one.weights is not None and other.weights is not None
        assert torch.equal(one.weights, other.weights)
    assert torch.equal(problem.encoder[0].weight, twin.encoder[0].weight)


def test_the_error_of_kept_weights_is_small_where_steps_are() -> None:
    """Weights of the step before, over those of the step itself: what `refresh=2` is off by at every second step."""
    problem = Problem()
    records = steps(problem, engine_for(problem, Inverse), 20)
    found = [record.weights[0] for record in records if record.weights is not None]
    errors = [float((new - old).norm() / new.norm()) for old, new in pairwise(found)]
    assert 0 < max(errors) < 0.1


@pytest.mark.parametrize("kind", [Inverse, UPGrad, PCGrad])
def test_products_in_bfloat16(kind: Any) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU())
    heads = nn.ModuleDict({name: nn.Linear(200, 1) for name in TASKS})
    x, y = torch.randn(90, 300), torch.randn(90, 3)

    def losses() -> dict[str, Tensor]:
        z = trunk(x)
        return {name: (heads[name](z).squeeze(1) - y[:, i]).square().mean() for i, name in enumerate(TASKS)}

    shared = list(trunk.parameters())
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses().values()]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    norms = jacobian.norm(dim=1)
    engine = GradientEngine(trunk, kind(num_tasks=3, seed=0), tasks=TASKS, private=heads, products="bfloat16")
    record = engine.backward(losses())
    assert record is not None and record.gramian is not None and record.weights is not None
    error = (record.gramian[0] - jacobian @ jacobian.T).abs() / (norms[:, None] * norms)
    assert 1e-5 < error.max() < 1e-2  # an approximation, and no more than that
    direction = torch.cat([p.grad.flatten() for p in shared if p.grad is not None])
    torch.testing.assert_close(direction.double(), record.weights[0] @ jacobian, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("message", "make"), [
    ("at least 1", lambda p: engine_for(p, Inverse, refresh=0)),
    ("Sum is none", lambda p: engine_for(p, Sum, refresh=2)),
    ("SignedMean is none", lambda p: engine_for(p, SignedMean, refresh=2)),
    ("InverseByLayer is none", lambda p: engine_for(p, InverseByLayer, refresh=2)),
    ("LogInverse is none", lambda p: engine_for(p, LogInverse, refresh=2)),
    ("products is exact|bfloat16", lambda p: engine_for(p, Inverse, products="half")),
    ("Sum does not look at one", lambda p: engine_for(p, Sum, products="bfloat16")),
])  # fmt: skip
def test_what_does_not_fit_is_refused(message: str, make: Callable[[Problem], object]) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        make(Problem())


@pytest.mark.parametrize(("options", "message"), [
    ({"refresh": 2}, "refresh=2 keeps weights from step to step"),
    ({"route": "ghost"}, "engine.route=ghost takes one micro-batch a step"),
    ({"products": "bfloat16"}, "engine.products=bfloat16 takes one micro-batch a step"),
])  # fmt: skip
def test_micro_batches_are_refused(options: dict[str, Any], message: str) -> None:
    problem = Problem()
    engine = engine_for(problem, InverseAtLast, **options)
    with pytest.raises(ValueError, match=message):
        engine.backward(problem.losses()[0], accumulate=True)
