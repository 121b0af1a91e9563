"""A compiled encoder under the gradient engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mtlbench.gradients import GradientEngine
from tests.contract.balancers import build

TASKS = ("a", "b", "c")


def trained(balancer: str, **compiled: Any) -> torch.Tensor:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 8))
    heads = nn.ModuleDict({name: nn.Linear(8, 1) for name in TASKS})
    engine = GradientEngine(encoder, build(balancer, 3), tasks=TASKS, private=heads)
    run = torch.compile(encoder, **compiled) if compiled else encoder
    optimizer = torch.optim.SGD([*encoder.parameters(), *heads.parameters()], lr=0.1)
    draw = torch.Generator().manual_seed(1)
    for _ in range(5):
        z = run(torch.randn(12, 6, generator=draw))
        losses = {name: (head(z) - torch.randn(12, 1, generator=draw)).square().mean() for name, head in heads.items()}
        engine.backward(losses)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in (*encoder.parameters(), *heads.parameters())])


@pytest.mark.parametrize("balancer", ["equal", "pcgrad", "graddrop"])
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.thorough)],  # which calls a C++ compiler
)
def test_a_compiled_encoder_learns_the_same(balancer: str, backend: str) -> None:
    torch._dynamo.reset()
    # Several backwards go through one graph: its backward must not free what it has read.
    with torch._functorch.config.patch(donated_buffer=False):
        compiled = trained(balancer, backend=backend)
    torch.testing.assert_close(compiled, trained(balancer), rtol=1e-5, atol=1e-6)
