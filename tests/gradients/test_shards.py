"""Parameters that `fully_shard` has divided over ranks. tests/gradients/test_ranks.py compares whole trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from mtlbench.gradients import GradientEngine
from tests.contract.balancers import build
from tests.gradients.test_ranks import meet


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.ModuleDict({"in": nn.Linear(5, 7), "out": nn.Linear(7, 3), "unused": nn.Linear(2, 2)})
        self.heads = nn.ModuleDict({name: nn.Linear(3, 1) for name in "ab"})

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        z = self.encoder["out"](self.encoder["in"](x).tanh())
        return {name: (head(z) - 1).square().mean() for name, head in self.heads.items()}

    def engine(self, method: str, **options: Any) -> GradientEngine:
        return GradientEngine(self.encoder, build(method, 2), tasks=("a", "b"), private=self.heads, **options)


def work(rank: int, size: int, folder: str) -> None:
    """Steps: the second rank has no losses; one raises; a part is frozen; the second rank has no forward either."""
    meet(rank, size, folder)
    x, found = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), []
    for method in ("equal", "upgrad"):
        net, whole = Net(), Net()
        for module in net.encoder.values():
            fully_shard(module, mesh=init_device_mesh("cpu", (size,)), reshard_after_forward=True)
        engine, other = net.engine(method), whole.engine(method)
        divided = dict(net.named_parameters())
        for step in range(4):
            lacks = rank == 1 and step in (0, 3)
            if step == 3:
                engine.gather()
                if not lacks:
                    net.losses(x)
            losses, others = {} if lacks and step == 3 else net.losses(x), whole.losses(x)
            if step == 1:
                with pytest.raises(FloatingPointError):
                    engine.backward({"a": losses["a"] * torch.inf})
                losses = net.losses(x)
            if step == 2:
                for one in (net, whole):
                    one.encoder["in"].bias.requires_grad_(False)
                losses, others = net.losses(x), whole.losses(x)
            engine.backward({} if lacks else losses)
            other.backward({} if lacks else others)
            for name, parameter in whole.named_parameters():
                grad = divided[name].grad
                assert net.get_parameter(name) is divided[name]
                if grad is None or parameter.grad is None:
                    assert grad is parameter.grad
                elif "encoder" in name:
                    assert isinstance(grad, DTensor)
                    assert grad._local_tensor.untyped_storage().nbytes() == 4 * grad.to_local().numel()
                    assert torch.equal(grad.full_tensor(), parameter.grad)
                else:
                    assert torch.equal(grad, parameter.grad)
            found.append(sum(p.grad is None for p in divided.values()))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_each_rank_keeps_its_part_of_the_gradients(tmp_path: Path) -> None:
    mp.spawn(work, args=(2, str(tmp_path)), nprocs=2)
    for rank in range(2):  # two parameters that nothing reaches, and then the frozen one
        assert torch.load(tmp_path / f"{rank}.pt") == 2 * [2, 2, 3, 3]


def test_the_options_hold_for_shards_too(alone: Any) -> None:
    x = torch.randn(4, 5)
    for options in ({"measure": "last_layer"}, {"refresh": 2}, {"normalize": "match_equal"}, {"heads": "weighted"}):
        net, whole = Net(), Net()
        fully_shard(net.encoder["in"], mesh=alone)
        engine, other = net.engine("mgda", **options), whole.engine("mgda", **options, route="sequential")
        divided = list(net.parameters())
        for _ in range(2):
            engine.backward(net.losses(x))
            other.backward(whole.losses(x))
            for one, two in zip(divided, whole.parameters(), strict=True):
                if two.grad is not None:
                    grad = one.grad.full_tensor() if isinstance(one.grad, DTensor) else one.grad
                    torch.testing.assert_close(grad, two.grad)


def test_what_is_frozen_while_it_is_whole_stays_frozen(alone: Any) -> None:
    net, x = Net(), torch.randn(4, 5)
    fully_shard(net.encoder["in"], mesh=alone, reshard_after_forward=False)
    engine, weight = net.engine("equal"), net.encoder["in"].weight
    for trains in (False, True):
        net.losses(x)
        net.encoder["in"].requires_grad_(trains)
        for _ in range(2):
            engine.backward(net.losses(x))
            assert (weight.grad is not None) == trains


def test_half_precision_by_the_policy_of_the_shards(alone: Any) -> None:
    net = Net()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    for module in net.encoder.values():
        fully_shard(module, mesh=alone, mp_policy=policy)
    engine = net.engine("pcgrad")
    record = engine.backward(net.losses(torch.randn(4, 5)))
    assert record is not None
    assert record.status == "solved"
    grad = net.encoder["in"].weight.grad
    assert isinstance(grad, DTensor)
    assert grad.dtype == torch.float32
    assert grad.full_tensor().abs().sum() > 0


def test_a_quick_route_is_refused(alone: Any) -> None:
    net = Net()
    fully_shard(net.encoder["in"], mesh=alone)
    engine = net.engine("upgrad", route="ghost")
    with pytest.raises(ValueError, match=r"several ranks, or sharded parameters, which go the sequential one"):
        engine.backward({"a": net.heads["a"](torch.randn(2, 3)).sum()})


def test_what_nothing_gathers_is_refused(alone: Any) -> None:
    net = Net()
    fully_shard(net.encoder["in"], mesh=alone)
    with pytest.raises(ValueError, match=r"give the engine those modules, not their parameters"):
        GradientEngine(list(net.encoder.parameters()), build("pcgrad", 2), tasks=("a", "b"), private=net.heads)
    net = Net()
    fully_shard(net, mesh=alone)
    with pytest.raises(ValueError, match=r"shard the encoder and the heads by themselves, not the model around them"):
        net.engine("equal")
    net = Net()
    parallelize_module(net.encoder, alone, {"in": ColwiseParallel()})
    with pytest.raises(ValueError, match=r"leave tensor parallelism out"):
        net.engine("equal")
