"""Every part is initialised from (seed, its name): not from what was built before it."""

from __future__ import annotations

import torch

from mtlbench.data.tables import InputSpec, TaskInfo
from mtlbench.models.encoders.mlp import mlp
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.hard import Hard
from mtlbench.models.sharing.independent import Independent
from mtlbench.tasks import Regression


def model(sharing: type, *names: str, seed: int = 0) -> MultiTaskModel:
    infos = [TaskInfo(name=name, type="regression", dataset="d", num_outputs=1) for name in names]
    tasks = [Regression(info, torch.arange(4.0), head_options={"pooling": "first"}) for info in infos]
    return MultiTaskModel(sharing, lambda: mlp(spec=InputSpec(type="vector", shape=(3,)), hidden=[4]), tasks, seed=seed)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_network_does_not_depend_on_the_others() -> None:
    together, alone = model(Independent, "a", "b", "c"), model(Independent, "b")
    assert equal(together.network("b"), alone.network("b"))
    assert not equal(together.network("a"), together.network("b"))


def test_heads_are_the_same_under_every_sharing_and_differ_by_seed() -> None:
    assert equal(model(Hard, "a", "b").heads["b"], model(Independent, "b", "c").heads["b"])
    assert not equal(model(Hard, "a").heads["a"], model(Hard, "a", seed=1).heads["a"])


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model(Hard, "a")
    assert torch.equal(before, torch.get_rng_state())


def test_shared_and_private_cover_everything_once() -> None:
    hard = model(Hard, "a", "b")
    shared = {id(p) for part in hard.shared() for p in part.parameters()}
    private = {id(p) for p in hard.private()}
    assert not shared & private
    assert shared | private == {id(p) for p in hard.parameters()}
    assert model(Independent, "a", "b").shared() == []
