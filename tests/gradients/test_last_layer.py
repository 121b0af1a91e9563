"""Which layer counts as the last shared one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtlbench.gradients.last_layer import LastLayer
from mtlbench.gradients.ranks import Ranks

ALONE = Ranks(None, device=torch.device("cpu"))


class Net(nn.Module):
    """Executed out of registration order, with a pooler that one task alone reaches, as BERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.pooler, self.unused = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.second(self.first(x)))
        return x, self.pooler(x)


def test_the_last_executed_matrix_that_every_task_reaches() -> None:
    net = Net()
    layer = LastLayer(net)
    tokens, pooled = net(torch.randn(3, 4))
    found = layer.find([tokens.square().mean(), pooled.square().mean()], ALONE)
    assert layer.name == "second"
    assert [id(p) for p in found] == [id(net.second.weight), id(net.second.bias)]
    assert not any(module._forward_hooks for module in net.modules())


def test_evaluation_before_training_does_not_count() -> None:
    net = Net()
    layer = LastLayer(net)
    with torch.no_grad():
        net(torch.randn(3, 4))
    assert not layer._executed
    layer.close()
    assert not any(module._forward_hooks for module in net.modules())


def test_without_a_forward_it_says_what_to_do() -> None:
    net = Net()
    tokens, _ = net(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match="before the first forward"):
        LastLayer(net).find([tokens.mean()], ALONE)
