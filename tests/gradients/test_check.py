"""The first step's check of a route, and what a step leaves behind."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlbench.gradients import routes as routes_module
from mtlbench.gradients.layers import LayerGradients
from mtlbench.gradients.parts import Product
from tests.gradients.nets import bert, linear
from tests.gradients.test_routes import Setting


@pytest.mark.parametrize(("attribute", "message"), [
    ("combine", r"gradient of task 'a' at Sequential.0.weight differs"),
    ("products", r"inner products of the tasks' gradients at Sequential.0.weight differ"),
])  # fmt: skip
def test_the_first_step_names_the_layer_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, attribute: str, message: str
) -> None:
    setting = Setting(linear, own_rows=False)
    right = getattr(Product, attribute)
    monkeypatch.setattr(Product, attribute, lambda part, *given: [found * 1.01 for found in right(part, *given)])
    with pytest.raises(RuntimeError, match=message):
        setting.engine().backward(setting.losses())


def test_a_step_of_infinite_numbers_is_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(linear, own_rows=False)
    right = Product.combine
    monkeypatch.setattr(Product, "combine", lambda part, *given: [found * 1.01 for found in right(part, *given)])
    engine = setting.engine()
    record = engine.backward(setting.losses(), scale=torch.tensor(torch.inf))  # a loss scaler's
    assert record is not None and record.status == "skipped"
    with pytest.raises(RuntimeError, match="differs"):
        engine.backward(setting.losses())


def test_each_way_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(linear, own_rows=False)
    checked: list[str] = []

    def verify(found: LayerGradients, *given: Any, **options: Any) -> bool:
        checked.append(found.route)
        return True

    monkeypatch.setattr(routes_module, "verify", verify)
    engine = setting.engine()
    engine.backward(setting.losses())
    engine.backward(setting.losses())
    assert checked == ["batched"]
    setting.own_rows = True
    engine.backward(setting.losses())
    assert checked == ["batched", "grouped"]


def test_nothing_is_left_behind() -> None:
    setting = Setting(linear, own_rows=False)
    engine = setting.engine()
    seen: list[weakref.ref[Tensor]] = []
    setting.trunk[1].register_forward_hook(lambda module, inputs, output: seen.append(weakref.ref(output)))
    engine.backward(setting.losses())
    setting.losses()  # whose gradients nobody wants
    with pytest.raises(FloatingPointError):
        engine.backward({name: loss * torch.nan for name, loss in setting.losses().items()})
    with torch.no_grad():
        setting.losses()
    gc.collect()
    assert len(seen) == 4 and all(output() is None for output in seen)
    assert not any(module._forward_hooks for module in setting.trunk.modules() if module is not setting.trunk[1])


def test_deep_copies_do_not_touch_the_original() -> None:
    setting = Setting(bert, own_rows=False)
    engine = setting.engine()
    engine.backward(setting.losses())
    before = [None if g is None else g.clone() for g in setting.grads()]
    twin, its = copy.deepcopy((setting, engine))
    its.backward({name: loss * 2 for name, loss in twin.losses().items()})
    for mine, old in zip(setting.grads(), before, strict=True):
        assert (mine is None) == (old is None)
        assert mine is None or old is None or torch.equal(mine, old)
