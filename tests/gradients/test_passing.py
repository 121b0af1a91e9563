"""One backward for a step whose weights are known before: GradNorm's, where the heads read the last layer's result."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.gradnorm import GradNorm
from mtlbench.gradients import GradientEngine, passing
from tests.gradients.test_gradnorm import TASKS, Net, check


class Late(Net):
    """A hook changes the representation's gradient from the third step on."""

    def losses(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        z = self.trunk(torch.randn(8, 9, dtype=torch.float64))
        if step > 1:
            z.register_hook(lambda grad: grad * 0.5)
        return {name: (self.heads[name](z) - i).square().mean() for i, name in enumerate(TASKS)}


def test_a_late_hook_on_the_representation_is_found_out() -> None:
    with pytest.raises(RuntimeError, match=r"A hook changed .* Say engine\.route=sequential"):
        check(Late)
    check(Late, measure="parameters")  # where it is applied to each task's


def test_many_rows() -> None:
    """More than one block of them, and a last one that is not full."""

    class Many(Net):
        def losses(self, step: int) -> dict[str, Tensor]:
            torch.manual_seed(step)
            z = self.trunk(torch.randn(150, 9, dtype=torch.float64))
            return {name: (self.heads[name](z) - i).square().mean() for i, name in enumerate(TASKS)}

    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(9, 200), nn.Tanh(), nn.Linear(200, 170), nn.ReLU())

    check(lambda: Many(wide), close=1e-12)


def test_norms_of_one_backward_are_exact_in_float32() -> None:
    """As those of float64 gradients, to 2e-5: by blocks, and in an order of their own."""
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(300, 256), nn.ReLU()), nn.Linear(256, 3)
    x = torch.randn(200, 300)
    engine = GradientEngine(trunk, GradNorm(num_tasks=3, seed=0), tasks=TASKS, private=heads)
    for _ in range(2):
        record = engine.backward({name: heads(trunk(x))[:, i].square().mean() for i, name in enumerate(TASKS)})
    trunk, heads = copy.deepcopy(trunk).double(), copy.deepcopy(heads).double()
    for i in range(3):
        weight, bias = torch.autograd.grad(heads(trunk(x.double()))[:, i].square().mean(), [*trunk.parameters()])
        assert record is not None and record.gramian is not None
        expected = float(weight.square().sum() + bias.square().sum())
        assert abs(float(record.gramian[0, i, i]) - expected) <= 2e-5 * expected


class Folded(Net):
    """What autograd hands on is one tensor for several parameters, or a number expanded."""

    def losses(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        z = self.trunk(torch.randn(8, 9, dtype=torch.float64))
        return {"a": z.mean() ** 2, "b": (z + self.heads["b"](z)).square().mean(), "c": z.mean(0).square().sum()}


def test_losses_of_the_representation_itself() -> None:
    check(Folded, close=1e-11)


def test_leaves_that_are_not_the_engines_get_no_gradient() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(9, 30), nn.ReLU()), nn.Linear(30, 3)
    outside, x = nn.Linear(3, 3), torch.randn(8, 9, requires_grad=True)
    engine = GradientEngine(trunk, GradNorm(num_tasks=3, seed=0), tasks=TASKS)
    for step in range(3):
        out = heads(trunk(x)) if step < 2 else outside(heads(trunk(x)))
        engine.backward({name: out[:, i].square().mean() for i, name in enumerate(TASKS)})
        assert all(p.grad is not None for p in trunk.parameters())
        assert x.grad is None and all(p.grad is None for p in (*heads.parameters(), *outside.parameters()))


@pytest.mark.parametrize("fault", ["norms", "weights"])
def test_the_first_step_checks_itself(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    squares, made = passing.Watch.squares, passing.Watch.__init__
    if fault == "norms":
        monkeypatch.setattr(passing.Watch, "squares", lambda watch: [1.01 * square for square in squares(watch)])
    else:
        monkeypatch.setattr(
            passing.Watch, "__init__", lambda watch, last, weights, place: made(watch, last, [1.0, 1.0, 1.01], place)
        )
    with pytest.raises(RuntimeError, match="finds other norms or gradients"):
        check(Net)
