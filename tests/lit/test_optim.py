"""Parameter groups: weight decay, rates of heads, rates of an encoder's stages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from torch import nn

from mtlbench.balancing.equal import Equal
from mtlbench.balancing.uncertainty import Uncertainty
from mtlbench.data.tables import InputSpec, TaskInfo
from mtlbench.lit.optim import build_optimizer, build_schedule
from mtlbench.models.encoders.transformer import from_config
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.hard import Hard
from mtlbench.models.sharing.independent import Independent
from mtlbench.tasks import Regression

SPEC = InputSpec(type="text", vocab_size=20, pad_id=0)
CONFIG = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}


def model(sharing: type = Hard, *, freeze: Mapping[str, object] | None = None) -> MultiTaskModel:
    infos = [TaskInfo(name=name, type="regression", dataset="d", num_outputs=1) for name in "ab"]
    tasks = [Regression(info, torch.arange(4.0), head_options={"pooling": "first"}) for info in infos]
    make = partial(from_config, spec=SPEC, architecture="bert", config=CONFIG, freeze=freeze)
    return MultiTaskModel(sharing, make, tasks, seed=0)


def rates(
    network: MultiTaskModel, *, decay: float, head_lr: dict[str, float] | float | None = None
) -> dict[str, float]:
    optimizer = build_optimizer(
        partial(torch.optim.AdamW, lr=0.1), network, Equal(num_tasks=2, seed=0), head_lr=head_lr, layer_lr_decay=decay
    )
    by_parameter = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: by_parameter[id(p)] for name, p in network.named_parameters() if p.requires_grad}


def of_stages(found: Mapping[str, float], prefix: str) -> dict[int, float]:
    """The rate of each stage, which must be one."""
    groups: dict[int, set[float]] = {}
    for name, rate in found.items():
        if name.startswith(f"{prefix}.stages."):
            groups.setdefault(int(name.removeprefix(f"{prefix}.stages.").split(".")[0]), set()).add(rate)
    assert all(len(group) == 1 for group in groups.values())
    return {stage: group.pop() for stage, group in groups.items()}


def test_each_stage_learns_slower_than_the_one_above() -> None:
    found = rates(model(), decay=0.5)
    assert of_stages(found, "sharing.encoder") == pytest.approx({0: 0.0125, 1: 0.025, 2: 0.05, 3: 0.1})
    assert {rate for name, rate in found.items() if name.startswith("heads.")} == {0.1}


def test_every_encoder_of_independent_networks_has_its_own_depth() -> None:
    found = rates(model(Independent), decay=0.5)
    for task in "ab":
        assert of_stages(found, f"sharing.encoders.{task}") == pytest.approx({0: 0.0125, 1: 0.025, 2: 0.05, 3: 0.1})


def test_without_decay_all_learn_alike() -> None:
    assert set(rates(model(), decay=1.0).values()) == {0.1}


def test_rates_of_heads_stand_beside_those_of_stages() -> None:
    found = rates(model(), decay=0.5, head_lr={"b": 0.7})
    assert {rate for name, rate in found.items() if name.startswith("heads.a")} == {0.1}
    assert {rate for name, rate in found.items() if name.startswith("heads.b")} == {0.7}
    assert of_stages(found, "sharing.encoder")[3] == pytest.approx(0.1)


def test_frozen_stages_are_in_no_group() -> None:
    found = rates(model(freeze={"embeddings": True, "blocks": 1}), decay=0.5)
    assert of_stages(found, "sharing.encoder") == pytest.approx({2: 0.05, 3: 0.1})


def test_the_recorded_rate_is_the_full_one_and_schedules_scale_all() -> None:
    network = model()
    optimizer = build_optimizer(
        partial(torch.optim.AdamW, lr=0.1), network, Equal(num_tasks=2, seed=0), head_lr=None, layer_lr_decay=0.5
    )
    assert optimizer.param_groups[0]["lr"] == 0.1
    scheduler = build_schedule(optimizer, name="linear", warmup=2, total_steps=4)
    optimizer.step()
    scheduler.step()
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.00625, 0.0125, 0.025, 0.05])


def test_biases_norms_and_the_balancer_do_not_decay() -> None:
    network, balancer = model(), Uncertainty(num_tasks=2, seed=0)
    optimizer = build_optimizer(
        partial(torch.optim.AdamW, lr=0.1, weight_decay=0.01), network, balancer, head_lr=None, layer_lr_decay=0.9
    )
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    every = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(every) == len({id(p) for p in every}) == len([*network.parameters(), *balancer.parameters()])
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            assert (id(parameter) in decayed) == (name == "weight" and isinstance(module, nn.Linear | nn.Embedding))
    assert not any(id(p) in decayed for p in balancer.parameters())


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="layer_lr_decay"):
        rates(model(), decay=decay)
