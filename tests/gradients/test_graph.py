"""Losses that share operations right up to themselves: what their graph is read as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.gradients import GradientEngine, routes
from mtlbench.gradients.routes import Route
from tests.gradients.nets import Net, images
from tests.gradients.test_engine import TASKS, Inverse
from tests.gradients.test_routes import Setting, equal

LOSSES: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "results of one operation": lambda errors: errors.mean(0).unbind(),
    "results of one operation, the last first": lambda errors: errors.mean(0).unbind()[::-1],
    "entries of one vector": lambda errors: [*map(errors.mean(0).__getitem__, range(3))],
    "one made of another": lambda errors: [loss := errors[:, 0].mean(), loss.exp(), loss + errors[:, 2].mean()],
    "one and the same": lambda errors: [loss := errors[:, 1].mean(), loss, errors[:, 2].mean()],
}


@pytest.mark.parametrize("route", ["auto", "sequential", "ghost", "batched"])
@pytest.mark.parametrize("made", LOSSES)
def test_each_task_has_its_own_gradient(made: str, route: Route) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)

    def losses() -> dict[str, Tensor]:
        return dict(zip(TASKS, LOSSES[made]((net(x) - y).square()), strict=True))

    parameters = [*net.parameters()]
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses().values()]
    jacobian = torch.stack([torch.cat([grad.flatten() for grad in row]) for row in rows])
    engine = GradientEngine(net, Inverse(num_tasks=3, seed=0), tasks=TASKS, route=route)
    for _ in range(2):  # the first step's check, and a step without it
        record = engine.backward(losses())
        assert record is not None
        assert record.gramian is not None
        torch.testing.assert_close(record.gramian[0], jacobian @ jacobian.T, rtol=1e-12, atol=0)
        direction = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        torch.testing.assert_close(direction, jacobian.norm(dim=1).reciprocal() @ jacobian, rtol=1e-12, atol=1e-15)


def aside(run: Callable[[], Tensor]) -> Tensor:
    """What is run in a thread of its own, where autograd numbers operations from 0."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


@pytest.mark.parametrize("run", [
    lambda m, x: (h := m.first(x).tanh()) * 2 + (flipped := h.flip(0), aside(lambda: m.last(flipped)))[1],
    lambda m, x: aside(lambda: m.first(x).sin()) + aside(lambda: m.last(x).cos()),
])  # fmt: skip
def test_operations_of_several_threads(run: Callable[[Any, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "verify", lambda *_, **__: True)
    equal(
        Setting(lambda: (Net({"first": nn.Linear(8, 8), "last": nn.Linear(8, 8)}, run), images(8)), own_rows=True),
        "auto",
    )


def test_a_representation_in_a_nested_tensor() -> None:
    net = nn.Linear(8, 8).double()
    parts = [torch.randn(length, 8, dtype=torch.float64) for length in (2, 3, 4)]
    records = []
    routes_of: tuple[Route, ...] = ("auto", "sequential")
    for route in routes_of:
        z = net(torch.nested.nested_tensor(parts, layout=torch.jagged))
        losses = {name: part.square().sum() for name, part in zip(TASKS, z.unbind(), strict=True)}
        records.append(GradientEngine(net, Inverse(num_tasks=3, seed=0), tasks=TASKS, route=route).backward(losses))
    one, two = records
    assert one is not None and two is not None
    torch.testing.assert_close(one.gramian, two.gramian, rtol=1e-12, atol=0)
