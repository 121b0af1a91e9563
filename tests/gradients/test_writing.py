"""Written gradients are tensors of their own, which clipping may change in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Balancer
from mtlbench.gradients import GradientEngine
from mtlbench.gradients.writing import separate, write
from tests.gradients.test_engine import Geometric, Inverse, InverseAtLast, SignedMean, Sum

KINDS: list[tuple[type[Balancer], dict[str, Any]]] = [
    (Sum, {}),
    (Geometric, {"normalize": "match_equal"}),
    (SignedMean, {}),
    (Inverse, {}),
    (Inverse, {"route": "sequential"}),
    (Inverse, {"refresh": 2}),
    (InverseAtLast, {"heads": "weighted"}),
]


class Heads(nn.Module):
    """Private parameters whose gradients autograd gives as one tensor, as parts of one, and expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.delta = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        self.rows, self.bias = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4))
        self.single = nn.Parameter(torch.randn(()))

    def losses(self, z: Tensor) -> dict[str, Tensor]:
        weight = self.base + self.delta + torch.cat([self.rows, self.rows.detach()])
        return {
            "a": (z @ weight).square().mean() + self.bias.sum(),
            "b": z.square().mean() + self.single,
            "c": (z - 1).square().mean(),
        }


def total(parameters: list[nn.Parameter]) -> float:
    return float(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm())


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("private", [True, False])
def test_clipping_in_place(kind: type[Balancer], options: dict[str, Any], private: bool) -> None:
    torch.manual_seed(0)
    encoder, heads = nn.Sequential(nn.Linear(4, 4)), Heads()
    shared = encoder if private else nn.ModuleList([encoder, heads])
    engine = GradientEngine(
        shared, kind(num_tasks=3, seed=0), tasks=("a", "b", "c"), private=heads if private else (), **options
    )
    parameters = [*encoder.parameters(), *heads.parameters()]
    for _ in range(2):
        engine.backward(heads.losses(encoder(torch.randn(3, 4))))
        assert len({p.grad.data_ptr() for p in parameters if p.grad is not None}) == len(parameters)
        before = [p.grad.clone() for p in parameters if p.grad is not None]
        norm = total(parameters)
        nn.utils.clip_grad_norm_(parameters, norm / 2)
        for parameter, old in zip(parameters, before, strict=True):
            torch.testing.assert_close(parameter.grad, old / 2)


def test_views_of_one_gradient_are_told_apart_at_every_step() -> None:
    """As `.backward` leaves them, one memory has both; looked at in the first step alone where none is shared."""
    a, b = (nn.Parameter(torch.randn(16)) for _ in range(2))

    def losses() -> dict[str, Tensor]:
        sums = a.view(4, 4) + b.view(4, 4)
        return {"a": sums.square().sum(), "b": sums.sum() ** 2}

    sum(losses().values(), torch.zeros(())).backward()
    assert a.grad is not None and b.grad is not None and a.grad.data_ptr() == b.grad.data_ptr()
    engine = GradientEngine([a, b], Sum(num_tasks=2, seed=0), tasks=("a", "b"))
    for _ in range(3):
        engine.backward(losses())
        assert torch.equal(a.grad, b.grad) and a.grad.data_ptr() != b.grad.data_ptr()


@pytest.mark.parametrize(
    ("make", "copied"),
    [
        (lambda x: [x[:2], x[2:]], [False, False]),
        (lambda x: [x[:3], x[2:]], [False, True]),
        (lambda x: [x[2:], x[:3]], [True, False]),
        (lambda x: [x, x], [False, True]),
        (lambda x: [x.T, x[:, 0]], [True, True]),
        (lambda x: [x[:, 0]], [True]),
        (lambda x: [x[0, 0].expand(3)], [True]),
        (lambda x: [x.as_strided((2, 2), (1, 1))], [True]),
        (lambda x: [x[:0], x.to_sparse()], [False, False]),
    ],
)
def test_what_is_copied(make: Callable[[Tensor], list[Tensor]], copied: list[bool]) -> None:
    grads = make(torch.arange(16.0).view(4, 4))
    parameters = [nn.Parameter(torch.zeros(grad.shape)) for grad in grads]
    write(parameters, grads)
    copies = sum(parameter.grad is not grad for parameter, grad in zip(parameters, grads, strict=True))
    assert separate(parameters) == sum(copied) - copies
    assert [parameter.grad is not grad for parameter, grad in zip(parameters, grads, strict=True)] == copied
    for parameter, grad in zip(parameters, grads, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad.to_dense(), grad.to_dense())


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_fused_optimizers_step_right_whatever_the_memory_format(kind: type[Balancer], options: dict[str, Any]) -> None:
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        encoder: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        encoder, heads = encoder.to(memory_format=torch.channels_last), nn.Conv2d(2, 3, 2)
        heads = heads.to(memory_format=torch.channels_last)
        engine = GradientEngine(encoder, kind(num_tasks=3, seed=0), tasks=("a", "b", "c"), private=heads, **options)
        parameters = [*encoder.parameters(), *heads.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=0.1, fused=fused)
        z = heads(encoder(torch.randn(8, 3, 4, 4)).view(2, 2, 2, 2))
        engine.backward({name: (z[:, task] - 1).square().mean() for task, name in enumerate("abc")})
        optimizer.step()
        found.append([p.detach() for p in parameters])
    torch.testing.assert_close(*found)
