"""The shared encoder divided over ranks. tests/lit/test_ranks.py compares whole runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from mtlbench.gradients import GradientEngine
from mtlbench.lit.devices import make_trainer
from mtlbench.lit.fsdp import EngineFSDP, shard
from mtlbench.lit.optim import build_optimizer, clip
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.independent import Independent
from mtlbench.saved import load_weights, save
from tests.contract.balancers import build
from tests.lit.accidents import whole
from tests.lit.test_optim import model

INPUTS = {"d": {"input_ids": torch.arange(1, 9).view(2, 4), "attention_mask": torch.ones(2, 4)}}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """Of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_the_shared_encoder_is_divided_and_heads_are_not(mesh: DeviceMesh) -> None:
    network = model()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    shard(network, mesh)
    for name, parameter in network.named_parameters():
        assert isinstance(parameter, DTensor) == name.startswith("sharing.encoder."), name
        assert torch.equal(whole(parameter), before[name])


def test_networks_that_share_no_encoder_are_refused(mesh: DeviceMesh) -> None:
    with pytest.raises(ValueError, match=r"divides the encoder that tasks share, and they share none"):
        shard(model(Independent), mesh)


def test_an_encoder_with_ties_to_a_head_is_refused(mesh: DeviceMesh) -> None:
    network = model()
    tied = nn.Linear(8, 8)
    tied.weight = next(p for p in network.sharing.parameters() if p.shape == (8, 8))
    network.heads["b"].add_module("tied", tied)
    with pytest.raises(ValueError, match=r"heads\.b\.tied uses some of its parameters"):
        shard(network, mesh)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_parts_are_clipped_together_with_what_iswhole(mesh: DeviceMesh, algorithm: str) -> None:
    found = []
    for sharded in (False, True):
        network = model().eval()
        if sharded:
            shard(network, mesh)
        engine = GradientEngine(network.shared(), build("equal", 2), tasks=("a", "b"), private=network.private())
        outputs = network(INPUTS)
        engine.backward({name: output.square().mean() for name, output in outputs.items()})
        clip(network.parameters(), 0.01, algorithm)
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        assert any(isinstance(grad, DTensor) for grad in grads) == sharded
        found.append([whole(grad) for grad in grads])
    torch.testing.assert_close(*found)
    if algorithm == "norm":
        assert float(nn.utils.get_total_norm(found[1])) == pytest.approx(0.01)
    else:
        assert max(float(grad.abs().max()) for grad in found[1]) == pytest.approx(0.01)


@pytest.mark.parametrize("how", ["fused", "foreach"])
def test_optimizers_that_takewhole_groups_at_once(mesh: DeviceMesh, how: str) -> None:
    found = []
    for sharded in (False, True):
        network, balancer = model().eval(), build("equal", 2)
        if sharded:
            shard(network, mesh)
        make = partial(torch.optim.AdamW, lr=0.1, **{how: True})
        optimizer = build_optimizer(make, network, balancer, head_lr=None, layer_lr_decay=1.0)
        engine = GradientEngine(network.shared(), balancer, tasks=("a", "b"), private=network.private())
        engine.backward({name: output.square().mean() for name, output in network(INPUTS).items()})
        optimizer.step()
        found.append([whole(p).detach() for p in network.parameters()])
    torch.testing.assert_close(*found)


def test_weights_that_an_encoder_ties_are_saved_as_one(mesh: DeviceMesh, tmp_path: Path) -> None:
    network = model()
    tie(network)
    shard(network, mesh)
    strategy = EngineFSDP(timeout=60)
    strategy._lightning_module = network  # type: ignore[assignment]
    weights = strategy.lightning_module_state_dict()
    assert len({id(weight) for weight in weights.values()}) == len(weights) - 1
    save(tmp_path, network, weights=weights, tasks=[], inputs={})
    again = model()
    tie(again)
    load_weights(again, tmp_path)
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(whole(one), other)


def tie(network: MultiTaskModel) -> None:
    one, two, *_ = (m for m in network.sharing.modules() if isinstance(m, nn.Linear) and m.weight.shape == (8, 8))
    two.weight = one.weight


def test_one_device_has_nobody_to_divide_with() -> None:
    with pytest.raises(ValueError, match=r"strategy='fsdp' on one device"):
        make_trainer(strategy="fsdp", accelerator="cpu", logger=False, enable_checkpointing=False)
