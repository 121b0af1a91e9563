"""Grouped where parameters are read more than once, in an unusual way, or not at all in a step; overflowing squares."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.upgrad import UPGrad
from mtlbench.gradients import GradientEngine
from mtlbench.gradients.routes import Route

ROWS = 6


def losses_of(z: Tensor) -> dict[str, Tensor]:
    """Each task has its own half of the rows."""
    return {"a": z[: ROWS // 2].square().mean(), "b": (z[ROWS // 2 :] - 1).square().mean()}


def agrees(shared: nn.Module, forward: Callable[[], Tensor], engine: GradientEngine) -> bool:
    """Whether a step's Gramian is that of one backward for each task."""
    parameters = [*shared.parameters()]
    rows = [
        torch.cat(
            [torch.zeros(p.numel()) if g is None else g.reshape(-1) for p, g in zip(parameters, found, strict=True)]
        )
        for found in (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in _apart(forward))
    ]
    record = engine.backward(losses_of(forward()))
    assert record is not None
    assert record.gramian is not None
    stacked = torch.stack(rows)
    return torch.allclose(record.gramian[0], stacked @ stacked.T, rtol=1e-9, atol=1e-12)


def _apart(forward: Callable[[], Tensor]) -> list[Tensor]:
    return [losses_of(forward())[task] for task in ("a", "b")]


@pytest.fixture(autouse=True)
def float64() -> object:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the first step's check, which would notice."""
    monkeypatch.setattr("mtlbench.gradients.routes.verify", lambda *given, **options: True)


def engine_of(shared: nn.Module, route: Route = "auto") -> GradientEngine:
    return GradientEngine(shared, UPGrad(num_tasks=2, seed=0), tasks=["a", "b"], route=route)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.twice, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.matrix = nn.Parameter(torch.randn(ROWS, 4))
        self.scales, self.shifts = nn.Parameter(torch.randn(ROWS, 4)), nn.Parameter(torch.randn(ROWS, 4))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("data_first", [False, True])
def test_one_layer_over_features_and_over_data(data_first: bool) -> None:
    """The use whose input is data ends the backward: it comes by after the one that is made earlier or later."""
    net, x, y = Shared(), torch.randn(ROWS, 4), torch.randn(ROWS, 4)

    def forward() -> Tensor:
        if data_first:
            data = net.twice(y)
            return torch.tanh(net.twice(net.before(x).relu()) + data)
        found = net.twice(net.before(x).relu())
        return torch.tanh(found + net.twice(y))

    assert agrees(net, forward, engine_of(net))


@pytest.mark.usefixtures("unchecked")
def test_a_weight_turned_twice_before_its_uses() -> None:
    net, x = nn.Linear(4, 4, bias=False), torch.randn(ROWS, 4)

    def forward() -> Tensor:
        first, second = net.weight.T, net.weight.T
        return ((x @ second).tanh() @ first).tanh()

    assert agrees(net, forward, engine_of(net))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("read", ["a matrix is added", "a norm over the rows", "the shift of a norm over the rows"])
def test_what_goes_over_the_rows_goes_by_task(read: str) -> None:
    net, x = Shared(), torch.randn(ROWS, 4)

    def forward() -> Tensor:
        h = net.before(x)
        if read == "a matrix is added":
            return torch.addmm(net.matrix, h, net.twice.weight.detach())
        scales = net.scales if read == "a norm over the rows" else None
        return nn.functional.layer_norm(h, (ROWS, 4), scales, net.shifts)

    assert agrees(net, forward, engine_of(net))


def test_a_step_that_reaches_nothing_measured() -> None:
    net, x = Shared(), torch.randn(ROWS, 4)
    engine = GradientEngine(net, UPGrad(num_tasks=2, seed=0), tasks=["a", "b"], measure=net.twice)
    for drop in (False, True, False):
        h = net.before(x)
        record = engine.backward(losses_of(h if drop else h + net.twice(h).tanh()))
        assert record is not None
        assert record.gramian is not None
        assert bool(record.gramian.any()) != drop
        assert net.before.weight.grad is not None


@pytest.mark.parametrize("route", ["auto", "ghost", "batched", "sequential"])
def test_an_empty_batch(route: Route) -> None:
    net = nn.Linear(4, 4)
    z = net(torch.randn(0, 4))
    record = engine_of(net, route).backward({"a": z.sum(), "b": z.square().sum()})
    assert record is not None
    assert record.status == "degenerate"
    assert not net.weight.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(("route", "accumulate"), [("auto", False), ("auto", True), ("sequential", False)])
def test_squares_that_overflow(route: Route, accumulate: bool) -> None:
    """Finite gradients, too long for float32 to square: a scaler's step is skipped, another an error with its task."""
    net = nn.Linear(4, 4, dtype=torch.float32)
    x = torch.randn(ROWS, 4, dtype=torch.float32)
    engine = engine_of(net, route)

    def losses() -> dict[str, Tensor]:
        found = losses_of(net(x))
        return {"a": found["a"] * 1e20, "b": found["b"]}

    if accumulate:
        engine.backward(losses(), scale=torch.tensor(2.0), accumulate=True)
    record = engine.backward(losses(), scale=torch.tensor(2.0))
    assert record is not None
    assert record.status == "skipped"
    with pytest.raises(FloatingPointError, match=r"gradient of task a .* too long to be squared"):
        engine.backward(losses())
