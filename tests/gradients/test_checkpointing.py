"""Checkpointed modules: their results are the same, and no route runs them more often than the sequential one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.gradients.nets import Make, bert, conv2d, images, large_embedding, linear
from tests.gradients.test_routes import Setting, equal


def dropout() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(40, 40), nn.Dropout(0.2), nn.Linear(40, 40), nn.ReLU()), images(40)


class Checkpointed(Setting):
    """Counts how often the shared module runs."""

    def __init__(self, make: Make, *, own_rows: bool) -> None:
        super().__init__(make, own_rows=own_rows)
        run = self.trunk.forward

        def counted(x: Tensor) -> Tensor:
            self.runs += 1
            result: Tensor = run(x)
            return result

        self.runs = 0
        self.trunk.forward = lambda x: checkpoint(counted, x, use_reentrant=False)

    def runs_of(self, route: str) -> int:
        """In a step after the first, which checks itself."""
        engine = self.engine(route=route)
        engine.backward(self.losses())
        self.runs = 0
        engine.backward(self.losses())
        return self.runs


@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("make", [linear, dropout, conv2d, large_embedding, bert])
def test_auto_runs_it_as_often_as_one_backward_for_each_task(make: Make, own_rows: bool) -> None:
    setting = Checkpointed(make, own_rows=own_rows)
    assert setting.runs_of("auto") == setting.runs_of("sequential") == 4
    equal(setting, "auto")
    equal(setting, "ghost")


def test_tensors_that_are_offloaded_are_fetched_by_the_backwards_alone() -> None:
    setting = Setting(linear, own_rows=False)
    fetched = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: fetched.append(x.shape) or x)
    counts = []
    for route in ("ghost", "sequential"):
        engine = setting.engine(route=route)
        for _ in range(2):  # the first checks itself
            with hooks:
                losses = setting.losses()
            fetched.clear()
            engine.backward(losses)
        counts.append(len(fetched))
    assert counts[0] == counts[1]
