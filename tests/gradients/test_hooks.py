"""Hooks on shared parameters are called with the gradient of one task at a time, whatever the route."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.gradients.nets import Make, conv2d, images, large_embedding, linear, sequences
from tests.gradients.test_routes import ROUTES, Setting, equal


def clip(grad: Tensor) -> Tensor:
    """Not linear, and so of another effect on a sum of gradients; reads its numbers."""
    return grad / max(1.0, grad.norm().item() * 50)


def last(grad: Tensor) -> Tensor:
    return grad * torch.arange(len(grad), dtype=grad.dtype).view(-1, *[1] * (grad.ndim - 1))


def deep() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40)), images(40)


@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("hook", [clip, last])
@pytest.mark.parametrize("make", [linear, sequences, conv2d, large_embedding])
@pytest.mark.parametrize("route", ["auto", "ghost"])
def test_hooks_on_parameters(make: Make, hook: Callable[[Tensor], Tensor], route: str, own_rows: bool) -> None:
    setting = Setting(make, own_rows=own_rows)
    plain = setting.engine().backward(setting.losses())
    handles = [parameter.register_hook(hook) for parameter in setting.trunk.parameters()]
    hooked = setting.engine().backward(setting.losses())
    assert plain is not None and plain.gramian is not None and hooked is not None and hooked.gramian is not None
    assert not torch.allclose(hooked.gramian, plain.gramian)
    equal(setting, route)
    for handle in handles[1:]:  # some with, some without
        handle.remove()
    equal(setting, route)


@pytest.mark.parametrize("route", ROUTES)
def test_a_hook_that_comes_later(route: str) -> None:
    setting = Setting(linear, own_rows=route == "grouped")
    engine = setting.engine(route=route)
    engine.backward(setting.losses())
    setting.trunk[2].weight.register_hook(clip)
    if route in ("batched", "grouped"):
        with pytest.raises(RuntimeError, match=r"2\.weight has a hook"):
            engine.backward(setting.losses())
        return
    record, expected = engine.backward(setting.losses()), setting.engine(route="sequential").backward(setting.losses())
    assert record is not None and expected is not None
    torch.testing.assert_close(record.gramian, expected.gramian, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("hook", "message"), [
    (last, "Say engine.route=sequential, which any hook on a result of that layer needs"),
    (clip, "hooks that read numbers need engine.route=sequential"),
])  # fmt: skip
def test_a_hook_on_a_result_is_refused_with_the_way_out(hook: Callable[[Tensor], Tensor], message: str) -> None:
    setting = Setting(deep, own_rows=False)
    setting.trunk[2].register_forward_hook(lambda module, inputs, output: output.register_hook(hook) and None)
    with pytest.raises(RuntimeError, match=message):
        setting.engine().backward(setting.losses())
