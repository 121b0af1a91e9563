"""The state and the random numbers of every balancer in conf/balancer: after a restart, in another model."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from mtlbench.balancing.base import Balancer
from mtlbench.lit.selection import check_checkpoint
from tests.contract.balancers import BUILT, NAMES, build, enough, same, sequence


@pytest.fixture
def checkpoint(name: str, tmp_path: Path) -> Path:
    """Of a balancer after a few steps."""
    balancer = build(name, enough(name, 3))
    sequence(balancer, steps=4)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": nn.ModuleDict({"balancer": balancer}).state_dict()}, path)
    return path


def go_on(path: Path, balancer: Balancer) -> None:
    module = nn.ModuleDict({"balancer": balancer})
    check_checkpoint(path, module)
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])


@pytest.mark.parametrize("name", NAMES)
def test_one_of_the_same_model_is_taken(name: str, checkpoint: Path) -> None:
    """Every entry has one shape from the start: what the first step sizes is extra state."""
    go_on(checkpoint, build(name, enough(name, 3)))


@pytest.mark.parametrize("name", [name for name in NAMES if len(BUILT[name].state_dict()) > 1])
def test_one_of_another_number_of_tasks_is_refused(name: str, checkpoint: Path) -> None:
    size = enough(name, 3)
    entry = rf"of another model: .* first balancer\..*\b{size + 1}\b.*there .*\b{size}\b"
    with pytest.raises(ValueError, match=rf"{entry}|a row for each of {size + 1} tasks, got {size} rows"):
        go_on(checkpoint, build(name, size + 1))


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_restart(name: str) -> None:
    size = enough(name, 3)
    balancer = build(name, size, seed=1)
    sequence(balancer, steps=8)
    file = io.BytesIO()
    torch.save(balancer.state_dict(), file)
    file.seek(0)
    fresh = build(name, size, seed=2)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert same(sequence(balancer, steps=10, start=8), sequence(fresh, steps=10, start=8))


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_sequence(name: str) -> None:
    """Whatever the global generator is at, which is left alone: it belongs to dropout and data."""
    size = enough(name, 4)
    torch.manual_seed(0)
    first = sequence(build(name, size, seed=5), steps=10)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = sequence(build(name, size, seed=5), steps=10)
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), state)
