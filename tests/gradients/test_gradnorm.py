"""GradNorm's steps, measured at the last shared layer, against the same with one backward for each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.balancing.gradnorm import GradNorm
from mtlbench.gradients import GradientEngine, backwards

TASKS = ("a", "b", "c")
Trunk = Callable[[], nn.Module]
Head = Callable[[int], nn.Module]


def relu() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 20), nn.Tanh(), nn.Linear(20, 30), nn.ReLU())


def relu_in_place() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 30), nn.ReLU(inplace=True))


def without_bias() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 30, bias=False))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 30), nn.GELU(), nn.LayerNorm(30))


def narrow() -> nn.Module:
    """More rows than numbers in one: weights' gradients are kept as they are."""
    return nn.Sequential(nn.Linear(9, 2), nn.ReLU())


def convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 3, 3)), nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten())


class Twice(nn.Module):
    """A layer that runs twice, the last time without a ReLU behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(9, 30), nn.Linear(30, 30)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.again(self.again(self.first(x).relu()).relu())
        return z


TRUNKS: list[Trunk] = [relu, relu_in_place, without_bias, normed, narrow, convolution, Twice]


class Skip(nn.Module):
    """Reads the representation twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.out(z + self.inner(z).tanh())
        return out


class Net(nn.Module):
    """Tasks on one input, each step with new numbers."""

    def __init__(self, trunk: Trunk = relu, head: Head = lambda width: nn.Linear(width, 1)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = trunk()
        width = self.trunk(torch.randn(2, 9)).shape[1]
        self.heads = nn.ModuleDict({name: head(width) for name in TASKS})
        self.double()

    def losses(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        z = self.trunk(torch.randn(8, 9, dtype=torch.float64))
        return {name: (self.heads[name](z) - i).square().mean() for i, name in enumerate(TASKS)}


class OneHead(Net):
    """Two tasks have one head together."""

    def losses(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        z = self.trunk(torch.randn(8, 9, dtype=torch.float64))
        a, b = self.heads["a"](z), self.heads["b"](z)
        return {"a": a.square().mean(), "b": b.square().mean(), "c": (b - 1).square().mean()}


class OwnRows(Net):
    """Each task has rows of its own in one batch."""

    def losses(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        parts = zip(TASKS, self.trunk(torch.randn(8, 9, dtype=torch.float64)).split([2, 3, 3]), strict=True)
        return {name: (self.heads[name](z) - i).square().mean() for i, (name, z) in enumerate(parts)}


class OwnBatches(Net):
    """The trunk runs once for each task."""

    def losses(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        inputs = {name: torch.randn(8, 9, dtype=torch.float64) for name in TASKS}
        return {name: (self.heads[name](self.trunk(x)) - 1).square().mean() for name, x in inputs.items()}


class Tied(Net):
    """A head has the last shared layer's weight."""

    def losses(self, step: int) -> dict[str, Tensor]:
        losses = super().losses(step)
        weight: Any = self.get_parameter("trunk.2.weight")
        return losses | {"b": F.linear(torch.ones(1, 20, dtype=torch.float64), weight).square().mean() + losses["b"]}


class Hooked(Net):
    """A hook on the representation changes the gradients that reach it."""

    def losses(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        z = self.trunk(torch.randn(8, 9, dtype=torch.float64))
        z.register_hook(lambda grad: grad * 0.5)
        return {name: (self.heads[name](z) - i).square().mean() for i, name in enumerate(TASKS)}


class Partial(Net):
    """Not all tasks have labels at each step, and at one step none has."""

    def losses(self, step: int) -> dict[str, Tensor]:
        missing = {1: {"b"}, 2: {"a", "c"}, 3: set(TASKS)}.get(step, set())
        return {name: loss for name, loss in super().losses(step).items() if name not in missing}


class Unreached(Net):
    """A task whose loss is of its head alone, from the second step on."""

    def losses(self, step: int) -> dict[str, Tensor]:
        losses = super().losses(step)
        return losses | {"c": self.heads["c"].bias.square().sum()} if step else losses  # type: ignore[operator, union-attr]


def check(make: Callable[[], Net], *, close: float = 1e-14, **options: Any) -> None:
    """Asserts that weights, records, gradients and what is trained are alike over some steps."""
    nets = [make(), make()]
    balancers = [GradNorm(num_tasks=3, seed=0, lr=0.1) for _ in nets]
    engines = [
        GradientEngine(net.trunk, balancer, tasks=TASKS, private=net.heads, route=route, **options)
        for net, balancer, route in zip(nets, balancers, ("auto", "sequential"), strict=True)
    ]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    for step in range(5):
        one, two = (engine.backward(net.losses(step)) for engine, net in zip(engines, nets, strict=True))
        assert one is not None and two is not None and one.status == two.status
        torch.testing.assert_close(one.losses, two.losses, rtol=1e-12, atol=0, equal_nan=True)
        torch.testing.assert_close(one.weights, two.weights, rtol=1e-12, atol=0)
        assert (one.gramian is None) == (two.gramian is None)
        if one.gramian is not None and two.gramian is not None:
            known = ~one.gramian.isnan()  # all, or norms alone
            assert known.diagonal(dim1=1, dim2=2).all()
            torch.testing.assert_close(one.gramian[known], two.gramian[known], rtol=1e-11, atol=1e-14)
        for name, p in nets[0].named_parameters():
            grad, expected = p.grad, nets[1].get_parameter(name).grad
            assert (grad is None) == (expected is None)
            torch.testing.assert_close(grad, expected, rtol=1e-12, atol=close)
        for optimizer in optimizers:
            optimizer.step()
        for state in ("weights", "initial_losses"):
            found = [balancer.get_buffer(state) for balancer in balancers]
            torch.testing.assert_close(*found, rtol=1e-12, atol=0, equal_nan=True)
    assert balancers[0].weights.std() > 0.01


OPTIONS: list[dict[str, Any]] = [{}, {"heads": "weighted"}, {"normalize": "match_equal"}, {"refresh": 2}]


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("options", OPTIONS)
def test_any_last_layer(trunk: Trunk, options: dict[str, Any]) -> None:
    check(lambda: Net(trunk), **options)


@pytest.mark.parametrize("make", [OneHead, OwnRows, OwnBatches, Tied, Partial, Unreached])
@pytest.mark.parametrize("options", OPTIONS)
def test_any_losses(make: type[Net], options: dict[str, Any]) -> None:
    check(make, **options)


@pytest.mark.parametrize("trunk", [relu, relu_in_place, normed, narrow, convolution])
@pytest.mark.parametrize("measure", ["last_layer", "parameters"])
@pytest.mark.parametrize("at_once", [backwards.ALL_AT_ONCE, 0])  # 0: as with large representations
def test_hooks_on_the_representation(monkeypatch: pytest.MonkeyPatch, trunk: Trunk, measure: str, at_once: int) -> None:
    monkeypatch.setattr(backwards, "ALL_AT_ONCE", at_once)
    check(lambda: Hooked(trunk), measure=measure)


@pytest.mark.parametrize("trunk", [without_bias, Twice])
def test_hooks_on_a_products_own_result_are_found_out(trunk: Trunk) -> None:
    with pytest.raises(RuntimeError, match=r"Say engine\.route=sequential"):
        check(lambda: Hooked(trunk), measure="parameters")


@pytest.mark.parametrize("trunk", [relu, without_bias, normed])
def test_heads_that_read_the_representation_twice(trunk: Trunk) -> None:
    check(lambda: Net(trunk, Skip))


@pytest.mark.parametrize("trunk", [relu, without_bias])
def test_measured_everywhere(trunk: Trunk) -> None:
    check(lambda: Net(trunk), measure="parameters")


def test_large_representations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backwards, "ALL_AT_ONCE", 0)
    check(Net)
    check(Net, measure="parameters")


@pytest.mark.parametrize(
    ("trunk", "options", "backwards_of_a_step"),
    [
        (relu, {}, 1),
        (without_bias, {}, 1),
        (relu, {"heads": "weighted"}, 2),
        (without_bias, {"heads": "weighted"}, 2),
        (narrow, {}, 2),
        (normed, {}, 5),
    ],
)
def test_backwards_of_a_step(
    monkeypatch: pytest.MonkeyPatch, trunk: Trunk, options: dict[str, Any], backwards_of_a_step: int
) -> None:
    """One in all, where the last layer or its ReLU is what the losses meet at; else one to there and one from there."""
    net = Net(trunk)
    balancer = GradNorm(num_tasks=3, seed=0)
    engine = GradientEngine(net.trunk, balancer, tasks=TASKS, private=net.heads, **options)
    engine.backward(net.losses(0))  # checks itself
    losses, calls = net.losses(1), []
    for name in ("grad", "backward"):
        real = getattr(torch.autograd, name)
        monkeypatch.setattr(
            torch.autograd, name, lambda *args, _real=real, **options: calls.append(args) or _real(*args, **options)
        )
    engine.backward(losses)
    assert len(calls) == backwards_of_a_step


def test_non_finite_gradients_leave_the_state_alone() -> None:
    """Under a loss scaler `.grad` is not finite and the balancer is not asked; without one the task is named."""
    net = Net(relu, Root)
    balancer = GradNorm(num_tasks=3, seed=0)
    engine = GradientEngine(net.trunk, balancer, tasks=TASKS, private=net.heads)
    engine.backward(net.losses(0))
    before = {name: value.clone() for name, value in balancer.state_dict().items() if isinstance(value, Tensor)}

    def losses(step: int) -> dict[str, Tensor]:
        found = net.losses(step)
        return found | {"b": found["b"] + (found["b"] * 0).sqrt()}  # finite, with a gradient that is not

    record = engine.backward(losses(1), scale=torch.tensor(8.0))
    assert record is not None and record.status == "skipped"
    assert all(p.grad is not None and not p.grad.isfinite().any() for p in net.parameters())
    with pytest.raises(FloatingPointError, match="gradient of task b at step 2"):
        engine.backward(losses(2))
    assert all(torch.equal(balancer.get_buffer(name), value) for name, value in before.items())


class Root(nn.Module):
    """Its gradient is infinite where a ReLU before it passes nothing back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, z: Tensor) -> Tensor:
        return (z.sqrt() * self.scale).sum(1)


def test_what_a_relu_stops_may_be_infinite() -> None:
    check(lambda: Net(relu, Root), close=1e-12)
