"""What the engine refuses, and numbers that are not finite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Balancer, Weighting
from mtlbench.gradients import GradientEngine
from tests.gradients.test_engine import (
    TASKS,
    Inverse,
    InverseAtLast,
    InverseByLayer,
    Problem,
    SignedMean,
    Sum,
    engine_for,
)


@pytest.mark.parametrize("kind", [Sum, Inverse, InverseAtLast, SignedMean])
def test_non_finite_losses(kind: type[Balancer]) -> None:
    problem = Problem()
    engine = engine_for(problem, kind)
    engine.step = 7
    losses, _ = problem.losses()
    losses["b"] = losses["b"] * torch.inf
    with pytest.raises(FloatingPointError, match="loss of task b at step 7"):
        engine.backward(losses)
    record = engine.backward(losses, scale=torch.tensor(1.0))
    assert record is not None and record.status == "skipped" and record.weights is None
    assert all(g is not None and g.isnan().all() for g in problem.grads())


@pytest.mark.parametrize("kind", [Inverse, InverseAtLast, SignedMean])
def test_non_finite_gradients(kind: type[Balancer]) -> None:
    problem = Problem()
    engine = engine_for(problem, kind)
    losses, _ = problem.losses()
    # Finite, with an infinite derivative: sqrt at 0.
    losses["c"] = losses["c"].detach() + (losses["c"] - losses["c"].detach()).abs().sqrt()
    with pytest.raises(FloatingPointError, match="gradient of task c"):
        engine.backward(losses)


def test_gradients_too_long_to_be_squared() -> None:
    torch.manual_seed(0)
    shared, balancer = nn.Linear(4, 4), Inverse(num_tasks=2, seed=0)
    engine = GradientEngine(shared, balancer, tasks=["a", "b"])
    engine.backward({name: shared(torch.randn(3, 4)).square().mean() for name in ("a", "b")})  # checks itself
    losses = {name: shared(torch.randn(3, 4)).square().mean() * size for name, size in (("a", 1), ("b", 1e20))}
    with pytest.raises(FloatingPointError, match="gradient of task b at step 1, or finite, but too long"):
        engine.backward(losses)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("3 tasks", lambda p: GradientEngine(p.encoder, Sum(num_tasks=3, seed=0), tasks=["a", "b"])),
        ("3 tasks", lambda p: GradientEngine(p.encoder, Sum(num_tasks=3, seed=0), tasks=["a", "b", "b"])),
        ("as shared and as private", lambda p: GradientEngine(
            p.encoder, Sum(num_tasks=3, seed=0), tasks=TASKS, private=p.encoder[0])),
        ("none that train", lambda p: GradientEngine([], Inverse(num_tasks=3, seed=0), tasks=TASKS)),
        ("raw|weighted", lambda p: engine_for(p, Inverse, heads="none")),
        ("engine.heads=weighted", lambda p: engine_for(p, SignedMean, heads="weighted")),
        ("does not look at one", lambda p: engine_for(p, Sum, measure="last_layer")),
        ("all of them shared", lambda p: engine_for(p, Inverse, measure=p.heads["a"])),
        ("measure is", lambda p: engine_for(p, Inverse, measure="heads")),
        ("weighs each layer", lambda p: engine_for(p, InverseByLayer, measure="last_layer")),
        ("sparse=False", lambda p: GradientEngine(
            [p.encoder, nn.Embedding(3, 4, sparse=True).double()], Inverse(num_tasks=3, seed=0), tasks=TASKS)),
        ("view_as_complex", lambda p: GradientEngine(
            nn.Linear(3, 4, dtype=torch.complex64), Inverse(num_tasks=3, seed=0), tasks=TASKS)),
        ("instead of bare parameters", lambda p: GradientEngine(
            list(p.encoder.parameters()), InverseAtLast(num_tasks=3, seed=0), tasks=TASKS)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(message: str, make: Callable[[Problem], object]) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        make(Problem())


def test_wrong_losses_are_refused() -> None:
    problem = Problem()
    engine = engine_for(problem, Sum)
    losses, _ = problem.losses()
    with pytest.raises(ValueError, match=r"unknown tasks \['d'\]"):
        engine.backward({**losses, "d": losses["a"]})
    with pytest.raises(ValueError, match="scalar that requires grad"):
        engine.backward({**losses, "a": losses["a"].detach()})
    with pytest.raises(ValueError, match=r"\['c'\] are missing"):
        engine.backward(losses, counts={"a": 1, "b": 1})


@pytest.mark.parametrize("kind", [Sum, Inverse])
def test_a_micro_batch_that_fails_is_forgotten(kind: type[Balancer]) -> None:
    """As where the memory does not suffice: tasks before the failing one have their rows already."""
    problem = Problem()
    engine = engine_for(problem, kind)
    losses, _ = problem.losses(slice(0, 5))
    losses["b"].register_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        engine.backward(losses, accumulate=True)
    record = engine.backward(problem.losses()[0])
    expected = engine_for(Problem(), kind).backward(problem.losses()[0])
    assert record is not None and expected is not None
    torch.testing.assert_close(record.losses, expected.losses)


@pytest.mark.parametrize("kind", [Sum, Inverse])
def test_micro_batches_before_a_restart_are_forgotten(kind: type[Balancer]) -> None:
    problem = Problem()
    engine = engine_for(problem, kind)
    state = engine.state_dict()
    engine.backward(problem.losses(slice(0, 5))[0], accumulate=True)
    engine.load_state_dict(state)
    record = engine.backward(problem.losses()[0])
    expected = engine_for(Problem(), kind).backward(problem.losses()[0])
    assert record is not None and expected is not None
    torch.testing.assert_close(record.losses, expected.losses)


def fail(grad: Tensor) -> None:
    raise RuntimeError("planted")


@pytest.mark.parametrize("scale", [0.0, -1.0, torch.nan, torch.inf, *torch.tensor([0.0, -1.0, torch.nan])])
def test_a_scale_that_is_none_is_refused(scale: float | Tensor) -> None:
    problem = Problem()
    with pytest.raises(ValueError, match="above 0 and finite"):
        engine_for(problem, Inverse).backward(problem.losses()[0], scale=scale)


@pytest.mark.parametrize("kind", [Sum, Inverse, InverseAtLast, SignedMean])
def test_an_infinite_scale_of_a_loss_scaler_skips_the_step(kind: type[Balancer]) -> None:
    problem = Problem()
    record = engine_for(problem, kind).backward(problem.losses()[0], scale=torch.tensor(torch.inf))
    assert record is not None and record.status == "skipped"
    assert all(g is not None and g.isnan().all() for g in problem.grads())


def test_a_weighting_of_the_wrong_shape_is_refused() -> None:
    class Wrong(Weighting):
        def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
            return losses

    problem = Problem()
    with pytest.raises(RuntimeError, match="Wrong returned weights of shape"):
        engine_for(problem, Wrong).backward(problem.losses()[0])
