"""Graphs of one form are read once: what changes from step to step is found out all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Balancer
from mtlbench.balancing.equal import Equal
from mtlbench.balancing.gradnorm import GradNorm
from mtlbench.balancing.uncertainty import Uncertainty
from mtlbench.gradients import GradientEngine, graph
from mtlbench.gradients.structure import walk
from tests.gradients.test_engine import TASKS, Inverse


class Net(nn.Module):
    """Goes another way at every step: through fewer layers, with heads that read elsewhere, with a layer in a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.heads = nn.ModuleDict({name: nn.Linear(6, 2) for name in TASKS})
        self.double()

    def losses(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        z = torch.randn(5, 6, dtype=torch.float64)
        results = [z := layer(z).tanh() for layer in self.layers[: 2 + step % 3]]
        if step % 5 == 1:
            results[-1] = results[-1].flip(0) * 2
        read = dict.fromkeys(TASKS, results[-1])
        if step % 7 > 4:
            read["b"] = results[-2]  # the heads meet one layer further back
        losses = {name: self.heads[name](read[name]).square().mean() for name in TASKS}
        if step % 4 == 3:
            losses["a"] = losses["a"] * self.layers[0].weight.square().sum()  # shared, and not behind one result
        return losses


def steps(engine: GradientEngine, net: Net, numbers: range) -> list[Tensor]:
    """The Gramian and all gradients of each."""
    found = []
    for step in numbers:
        record = engine.backward(net.losses(step))
        assert record is not None and record.gramian is not None
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
        found.append(torch.cat([record.gramian.flatten(), *(grad.flatten() for grad in grads)]))
    return found


def made(route: Any) -> tuple[Net, GradientEngine]:
    torch.manual_seed(0)
    net = Net()
    return net, GradientEngine(net.layers, Inverse(num_tasks=3, seed=0), tasks=TASKS, private=net.heads, route=route)


def test_ways_that_change_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "FORMS", 5)  # of which there are more here
    net, engine = made("auto")
    net_alike, by_task = made("sequential")
    for one, other in zip(steps(engine, net, range(60)), steps(by_task, net_alike, range(60)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-15)


def test_a_copy_knows_its_own_parameters() -> None:
    net, engine = made("auto")
    steps(engine, net, range(12))  # all ways are known to be right
    net_alike, twin = copy.deepcopy((net, engine))
    for one, other in zip(steps(engine, net, range(12)), steps(twin, net_alike, range(12)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_frozen_from_one_step_to_the_next() -> None:
    net, engine = made("auto")
    steps(engine, net, range(2))
    net.layers[0].requires_grad_(False)
    engine.backward(net.losses(0))
    assert all(p.grad is None for p in net.layers[0].parameters())
    assert all(p.grad is not None for p in net.layers[1].parameters())


class Total(torch.autograd.Function):
    """The sum of all numbers, by one operation for plain and for nested tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x.values() if x.is_nested else x).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.ones_like(ctx.saved_tensors[0]) * grads[0]


def test_a_nested_representation_after_a_plain_one() -> None:
    """The operations may be of one form, but rows of the second have no length in common."""
    scale = nn.Parameter(torch.randn(8, dtype=torch.float64))
    forms: list[object] = []

    def step(engine: GradientEngine, lengths: tuple[int, ...]) -> Tensor:
        torch.manual_seed(0)
        parts = [torch.randn(length, 8, dtype=torch.float64) for length in lengths]
        x = torch.stack(parts) if len({*lengths}) == 1 else torch.nested.nested_tensor(parts, layout=torch.jagged)
        values = (x * scale).tanh()
        sums = [Total.apply((values * number).tanh()) for number in (1, 2, 3)]  # type: ignore[no-untyped-call]
        forms.append(walk(sums)[1])
        record = engine.backward(dict(zip(TASKS, sums, strict=True)))
        assert record is not None and record.gramian is not None and scale.grad is not None
        return torch.cat([record.gramian.flatten(), scale.grad])

    lengths = ((2, 2, 2), (1, 2, 4), (2, 2, 2), (1, 3, 4))
    by_task = GradientEngine([scale], Inverse(num_tasks=3, seed=0), tasks=TASKS, route="sequential")
    engine = GradientEngine([scale], Inverse(num_tasks=3, seed=0), tasks=TASKS)
    expected = [step(by_task, one) for one in lengths]
    for one, right in zip(lengths, expected, strict=True):
        torch.testing.assert_close(step(engine, one), right, rtol=1e-12, atol=0)
    assert len({*forms}) == 1


Make = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.parametrize(("one", "other"), [
    (lambda p, q: p.sum(), lambda p, q: q.sum()),  # another leaf
    (lambda p, q: p.exp().unbind()[0], lambda p, q: p.exp().unbind()[1]),  # another result as the loss
    (lambda p, q: p.exp().unbind()[0].exp(), lambda p, q: p.exp().unbind()[1].exp()),  # another result in between
    (lambda p, q: (p + q).exp().sum(), lambda p, q: (q.exp() + p).sum()),  # the same one after another, elsewhere
    (lambda p, q: p[0].exp() + q[0], lambda p, q: p[0].exp() + q.detach()[0]),  # nothing instead of a leaf
    (lambda p, q: (x := p.sum()) * x.exp(), lambda p, q: p.sum() * p.sum().exp()),  # one result twice, or two
])  # fmt: skip
def test_forms_that_differ(one: Make, other: Make) -> None:
    p, q = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    assert walk([one(p, q)])[1] == walk([one(p, q)])[1]
    assert walk([one(p, q)])[1] != walk([other(p, q)])[1]


def test_forms_of_losses_that_are_parameters() -> None:
    a, b = (nn.Parameter(torch.ones(())) for _ in range(2))
    assert walk([a, b])[1] != walk([b, a])[1]
    before = walk([a * b])[1]
    product = a * b
    b.requires_grad_(False)
    assert walk([product])[1] != before


@pytest.mark.parametrize("kind", [Equal, Uncertainty, GradNorm])
def test_leaves_that_are_not_the_engines_get_no_gradient(kind: type[Balancer]) -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(9, 30), nn.ReLU()), nn.Linear(30, 3)
    outside, bare = nn.Linear(3, 3), nn.Parameter(torch.ones(()))
    engine = GradientEngine(trunk, kind(num_tasks=3, seed=0), tasks=TASKS, private=heads)
    for step in range(6):
        x = torch.randn(8, 9, requires_grad=step == 2)
        out = heads(trunk(x)) if step < 3 else outside(heads(trunk(x)))
        losses = {name: out[:, i].square().mean() for i, name in enumerate(TASKS)}
        if step == 5 and kind is not GradNorm:  # which needs losses that reach the last layer
            out = heads(trunk(x))
            losses = {name: out[:, i].square().mean() for i, name in enumerate(TASKS)} | {"a": bare}
        engine.backward(losses)
        assert all(p.grad is not None for p in (*trunk.parameters(), *heads.parameters()))
        assert x.grad is None and bare.grad is None and all(p.grad is None for p in outside.parameters())
