"""An overflow under a loss scaler, in any gradient: the step is skipped, and the next is as if it had not been."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Balancer, TaskSpec
from mtlbench.balancing.equal import Equal
from mtlbench.balancing.famo import FAMO
from mtlbench.balancing.gradnorm import GradNorm
from mtlbench.balancing.gradvac import GradVac
from mtlbench.balancing.moco import MoCo
from mtlbench.balancing.pcgrad import PCGrad
from mtlbench.balancing.rlw import RLW
from mtlbench.balancing.uncertainty import Uncertainty
from mtlbench.balancing.upgrad import UPGrad
from mtlbench.gradients import GradientEngine

TASKS = ("a", "b", "c")
SCALE = torch.tensor(1024.0)


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * torch.inf


class Trunk(nn.Module):
    """Gradients overflow on their way to the first layer."""

    overflows = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.first(x).tanh()
        out: Tensor = self.last(_Overflow.apply(z) if self.overflows else z)
        return out


class Head(nn.Module):
    """The gradient of the weight overflows, and no other."""

    overflows = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1))

    def forward(self, z: Tensor) -> Tensor:
        return z @ (_Overflow.apply(self.weight) if self.overflows else self.weight)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.heads = Trunk(), nn.ModuleDict({name: Head() for name in TASKS})

    def losses(self, step: int, overflow: Literal["trunk", "head"] | None = None) -> dict[str, Tensor]:
        self.trunk.overflows, self.heads["b"].overflows = overflow == "trunk", overflow == "head"  # type: ignore[assignment]
        z = self.trunk(torch.randn(5, 6, generator=torch.Generator().manual_seed(step)))
        return {name: (head(z) - i).square().mean() for i, (name, head) in enumerate(self.heads.items())}


CASES: list[tuple[type[Balancer], dict[str, Any]]] = [
    (Equal, {}),
    (RLW, {}),
    (FAMO, {"normalize": "match_equal"}),
    (Uncertainty, {}),
    (GradNorm, {}),
    (GradNorm, {"route": "sequential", "heads": "weighted"}),
    (GradNorm, {"measure": "parameters"}),
    (UPGrad, {}),
    (PCGrad, {"route": "sequential"}),
    (PCGrad, {"measure": "features"}),
    (GradVac, {}),
    (GradNorm, {"refresh": 3}),
    (MoCo, {}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("overflow", ["trunk", "head"])
@pytest.mark.parametrize("micro", [False, True])
def test_the_next_step_is_as_if_it_had_not_been(
    kind: type[Balancer], options: dict[str, Any], overflow: Literal["trunk", "head"], micro: bool
) -> None:
    options = {name: value for name, value in options.items() if not (micro and name in ("refresh", "route"))}
    nets, records = [Net(), Net()], []
    for net, steps in zip(nets, ([0, None, 1], [0, 1]), strict=True):
        balancer = kind(num_tasks=3, seed=0, tasks=[TaskSpec(name, "regression") for name in TASKS])
        engine = GradientEngine(net.trunk, balancer, tasks=TASKS, private=net.heads, **options)
        for step in steps:
            if micro:
                engine.backward(net.losses(7), scale=SCALE, accumulate=True)
            record = engine.backward(net.losses(8, overflow) if step is None else net.losses(step), scale=SCALE)
            assert record is not None
            if step is None:
                assert record.status == "skipped" and record.weights is None and record.gramian is None
                assert all(p.grad is not None and p.grad.isnan().all() for p in net.parameters())
            else:
                assert record.status != "skipped"
        records.append(record)
        records.append(balancer.state_dict())
    assert_same(records[0]._asdict(), records[2]._asdict())
    assert_same(records[1], records[3])
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("micro", [False, True])
def test_a_scale_that_counts_make_infinite(kind: type[Balancer], options: dict[str, Any], micro: bool) -> None:
    options = {name: value for name, value in options.items() if not (micro and name in ("refresh", "route"))}
    net, balancer = Net(), kind(num_tasks=3, seed=0, tasks=[TaskSpec(name, "regression") for name in TASKS])
    engine = GradientEngine(net.trunk, balancer, tasks=TASKS, private=net.heads, **options)
    for accumulate in (True, False) if micro else (False,):
        record = engine.backward(
            {name: 100 * loss for name, loss in net.losses(0).items()},
            counts=dict.fromkeys(TASKS, 16.0),
            scale=torch.tensor(2.0**127),
            accumulate=accumulate,
        )
    assert record is not None and record.status == "skipped"


def assert_same(one: Any, other: Any) -> None:
    """Of nested dicts."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_same(value, other[name])
    elif isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    else:
        assert one == other
