"""Parameters that are frozen after the engine was made, and steps in which none of a kind trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtlbench.balancing.base import Balancer
from tests.gradients.test_engine import (
    Geometric,
    Inverse,
    InverseAtLast,
    LogInverse,
    Problem,
    SignedMean,
    Sum,
    engine_for,
)

WAYS: list[tuple[type[Balancer], dict[str, Any]]] = [
    (Sum, {}),
    (Geometric, {"normalize": "match_equal"}),
    (SignedMean, {}),
    (LogInverse, {}),
    (Inverse, {"route": "sequential"}),
    (Inverse, {"refresh": 2}),
    (Inverse, {"measure": "features", "heads": "weighted"}),
    (InverseAtLast, {}),
    (InverseAtLast, {"normalize": "match_equal"}),
    (InverseAtLast, {"route": "sequential"}),
]


@pytest.mark.parametrize(
    ("kind", "options", "micro"), [(*way, micro) for way in WAYS for micro in {False, "refresh" not in way[1]}]
)
def test_what_is_frozen_later_gets_no_gradient(kind: type[Balancer], options: dict[str, Any], micro: bool) -> None:
    frozen, never = Problem(), Problem()
    engine = engine_for(frozen, kind, **options)
    engine.backward(frozen.losses()[0])
    off = [*frozen.encoder[0].parameters(), *frozen.heads["a"].parameters()]
    for problem in (frozen, never):
        problem.encoder[0].requires_grad_(False)
        problem.heads["a"].requires_grad_(False)
    fresh = engine_for(never, kind, **options)
    if "refresh" in options:
        fresh.backward(never.losses()[0])
        fresh.load_state_dict(engine.state_dict())
    for problem, one in ((frozen, engine), (never, fresh)):
        if micro:
            one.backward(problem.losses(slice(0, 5))[0], accumulate=True)
        one.backward(problem.losses()[0])
    assert all(p.grad is None for p in off)
    assert any(p.grad is not None for p in frozen.encoder.parameters())
    for mine, its in zip(frozen.grads(), never.grads(), strict=True):
        assert (mine is None) == (its is None)
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize(("kind", "options"), WAYS)
def test_what_is_frozen_after_the_forward_gets_no_gradient(kind: type[Balancer], options: dict[str, Any]) -> None:
    problem = Problem()
    engine = engine_for(problem, kind, **options)
    losses, _ = problem.losses()
    off = [*problem.encoder[0].parameters(), *problem.heads["a"].parameters()]
    for parameter in off:
        parameter.requires_grad_(False)
    engine.backward(losses)
    assert all(p.grad is None for p in off)
    assert problem.encoder[2].weight.grad is not None


def test_a_skipped_step_leaves_the_frozen_ones_alone() -> None:
    problem = Problem()
    engine = engine_for(problem, Sum)
    problem.encoder[0].requires_grad_(False)
    losses = {name: loss * torch.inf for name, loss in problem.losses()[0].items()}
    engine.backward(losses, scale=torch.tensor(1.0))
    assert problem.encoder[0].weight.grad is None
    assert problem.encoder[2].weight.grad is not None


@pytest.mark.parametrize("route", ["auto", "sequential"])
def test_a_measured_layer_that_does_not_train_any_more(route: str) -> None:
    problem = Problem()
    engine = engine_for(problem, InverseAtLast, route=route)
    engine.backward(problem.losses()[0])
    problem.encoder[2].requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"shapes \(4, 8\), \(4,\), and none of them trains any more"):
        engine.backward(problem.losses()[0])


def test_kept_weights_without_private_parameters() -> None:
    problem = Problem()
    problem.heads.requires_grad_(False)
    engine = engine_for(problem, Inverse, refresh=2)
    assert engine.private == []
    engine.backward(problem.losses()[0])
    record = engine.backward(problem.losses()[0])
    assert record is not None and record.status == "kept" and record.weights is not None
    written = torch.cat([p.grad.flatten() for p in problem.encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(written, record.weights[0] @ problem.rows())
