"""Rows of convolutions that are taken of several tasks by one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.gradients import choice
from mtlbench.gradients.kernels import Kernels
from tests.gradients.nets import Net, images
from tests.gradients.test_engine import TASKS
from tests.gradients.test_routes import Setting, equal

CALLS = {
    "plain": lambda: nn.Conv2d(5, 6, 3),
    "no bias": lambda: nn.Conv2d(5, 6, 3, bias=False),
    "stride and padding": lambda: nn.Conv2d(5, 6, (3, 2), stride=(2, 1), padding=(1, 2)),
    "dilation": lambda: nn.Conv2d(5, 6, 3, padding="same", dilation=2),
    "frozen bias": lambda: frozen(nn.Conv2d(5, 6, 3)),
}


def frozen(layer: nn.Conv2d) -> nn.Conv2d:
    assert layer.bias is not None
    layer.bias.requires_grad_(False)
    return layer


def setting_of(*layers: nn.Module, channels: int = 5, dtype: torch.dtype = torch.float64) -> Setting:
    return Setting(lambda: (nn.Sequential(*layers), images(channels, 9, 9)), own_rows=False, dtype=dtype)


def kinds(setting: Setting) -> list[str]:
    return sorted({type(part).__name__ for part in setting.taken("auto").parts})


@pytest.mark.parametrize("numbers", [1, 6 * 6 * 7 * 7 * 2, 1 << 21])  # one task in a call, two, all three
@pytest.mark.parametrize("call", CALLS)
def test_the_rows_are_those_of_one_backward_for_each_task(
    monkeypatch: pytest.MonkeyPatch, call: str, numbers: int
) -> None:
    monkeypatch.setattr(choice, "TOGETHER", numbers)
    setting = setting_of(nn.Conv2d(5, 5, 1), nn.Tanh(), CALLS[call]())
    found = setting.taken("auto")
    assert any(isinstance(part, Kernels) for part in found.parts)
    expected = setting.jacobian()
    rows = []
    for one in torch.eye(len(TASKS), dtype=torch.float64)[:, None]:
        grads = [grad for grad in found.combine(one) if grad is not None]
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    torch.testing.assert_close(torch.stack(rows), expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
    torch.testing.assert_close(found.gramian(1)[0], expected @ expected.T, rtol=1e-12, atol=0)


@pytest.mark.parametrize("route", ["auto", "ghost", "batched"])
@pytest.mark.parametrize("options", [{}, {"heads": "weighted"}, {"normalize": "match_equal"}, {"chunk": 2}])
def test_every_route_equals_the_sequential_one(
    monkeypatch: pytest.MonkeyPatch, route: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(choice, "TOGETHER", 6 * 6 * 7 * 7 * 2)
    equal(setting_of(nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Conv2d(6, 7, 2)), route, **options)


def test_channels_that_come_last_in_memory() -> None:
    setting = setting_of(nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Conv2d(6, 7, 2))
    setting.trunk.to(memory_format=torch.channels_last)
    setting.x = setting.x.to(memory_format=torch.channels_last)
    assert kinds(setting) == ["Kernels"]
    equal(setting, "auto")


def test_the_gramian_is_exact_in_float32() -> None:
    setting = setting_of(nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Conv2d(6, 7, 2), dtype=torch.float32)
    jacobian = setting.jacobian().double()
    record = setting.engine().backward(setting.losses())
    assert record is not None and record.gramian is not None
    norms = jacobian.norm(dim=1)
    assert ((record.gramian[0] - jacobian @ jacobian.T).abs() / torch.outer(norms, norms)).max() <= 2e-5


class Partly(Setting):
    """The second task reaches another layer, and not the convolution."""

    def losses(self) -> dict[str, Tensor]:
        losses = super().losses()
        own: Any = self.heads["b"]
        return losses | {"b": own.bias.square().sum() + self.trunk[0].weight.square().sum()}


def test_a_task_that_does_not_reach_it() -> None:
    setting = Partly(lambda: (nn.Sequential(nn.Linear(9, 9), nn.Conv2d(5, 6, 3)), images(5, 9, 9)), own_rows=False)
    assert kinds(setting) == ["Kernels", "Rows"]
    equal(setting, "auto")


def twice(m: Any, x: Tensor) -> Tensor:
    return m.layer(m.layer(x))


def bias_twice(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * m.layer.bias[:, None, None]


@pytest.mark.parametrize("make", [
    lambda: (nn.Conv2d(4, 6, 3, groups=2), images(4, 9, 9)),
    lambda: (nn.ConvTranspose2d(5, 6, 3), images(5, 9, 9)),
    lambda: (nn.Conv1d(5, 6, 3), images(5, 9)),
    lambda: (nn.Conv2d(3, 6, 3), images(3, 9, 9)),
    lambda: (nn.Conv2d(16, 16, 3), images(16, 9, 9)),
    lambda: (Net({"layer": nn.Conv2d(5, 5, 3)}, twice), images(5, 9, 9)),
    lambda: (Net({"layer": nn.Conv2d(5, 6, 3)}, bias_twice), images(5, 9, 9)),
], ids=["groups", "transposed", "1d", "image", "full vectors", "called twice", "bias used twice"])  # fmt: skip
def test_where_plain_rows_are_kept(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    setting = Setting(make, own_rows=False)
    assert kinds(setting) == ["Rows"]
    equal(setting, "auto")
