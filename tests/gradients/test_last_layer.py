"""Which layer counts as the last shared one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtlbench.gradients.last_layer import LastLayer
from mtlbench.gradients.losses import read
from mtlbench.gradients.ranks import Ranks

ALONE = Ranks(None, device=torch.device("cpu"))


def find(layer: LastLayer, **losses: Tensor) -> list[int]:
    """Ids of the parameters found."""
    return [id(p) for p in layer.find(read(losses, None, tasks=("a", "b"), ranks=ALONE), ALONE)]


def ids(module: nn.Module) -> list[int]:
    return [id(p) for p in module.parameters()]


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
    layer = LastLayer(net, 2)
    tokens, pooled = net(torch.randn(3, 4))
    assert find(layer, a=tokens.square().mean(), b=pooled.square().mean()) == ids(net.second)
    assert not any(module._forward_hooks for module in net.modules())


def test_members_with_the_same_inner_names() -> None:
    encoder, projection = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    layer = LastLayer([encoder, projection], 2)
    z = projection(encoder(torch.randn(3, 4)))
    assert find(layer, a=z.mean(), b=z.square().mean()) == ids(projection)


def test_a_task_that_comes_later_moves_it() -> None:
    net, x = Net(), torch.randn(3, 4)
    layer = LastLayer(net, 2)
    assert find(layer, a=net(x)[1].mean()) == ids(net.pooler)
    assert find(layer, a=net(x)[1].mean()) == ids(net.pooler)
    assert find(layer, b=net(x)[0].square().mean()) == ids(net.second)
    assert not any(module._forward_hooks for module in net.modules())
    assert find(layer, a=net(x)[1].mean()) == ids(net.second)


def test_a_later_task_is_not_measured_where_the_first_was_not() -> None:
    net, x = Net(), torch.randn(3, 4)
    layer = LastLayer(net, 2)
    assert find(layer, a=net(x)[0].square().mean()) == ids(net.second)
    assert find(layer, b=net(x)[1].mean()) == ids(net.second)  # and not the pooler


def test_a_restart_goes_on_from_the_tasks_so_far() -> None:
    net, x = Net(), torch.randn(3, 4)
    layer = LastLayer(net, 2)
    find(layer, b=net(x)[0].square().mean())
    net = Net()
    restarted = LastLayer(net, 2)
    restarted.load_state_dict(layer.state_dict())
    assert find(restarted, a=net(x)[1].mean()) == ids(net.second)  # and not the pooler
    assert not any(module._forward_hooks for module in net.modules())
    assert restarted.state_dict() == {"names": ["0.second", "0.first"], "seen": [0, 1]}


def test_a_part_that_is_frozen_at_a_restart_may_train_again() -> None:
    net = Net()
    layer = LastLayer(net, 2)
    net.second.bias.requires_grad_(False)
    layer.load_state_dict({"names": ["0.second", "0.first"], "seen": [0, 1]})
    assert [id(p) for p in layer.parameters] == ids(net.second)


def test_evaluation_before_training_does_not_count() -> None:
    net = Net()
    layer = LastLayer(net, 2)
    with torch.no_grad():
        net(torch.randn(3, 4))
    assert not layer._executed
    layer.close()
    assert not any(module._forward_hooks for module in net.modules())


def test_without_a_forward_it_says_what_to_do() -> None:
    net = Net()
    tokens, _ = net(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match="before the first forward"):
        find(LastLayer(net, 2), a=tokens.mean())
