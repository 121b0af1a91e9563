"""Every balancer of conf/balancer, one step of it as the engine takes it, and gradients to take it on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mtlbench.balancing.base import Aggregator, Balancer, Scalarizer, TaskSpec, Weighting

CONF = Path(__file__).parents[2] / "conf" / "balancer"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SIZES = (1, 2, 3, 10, 40)
KINDS = ("classification", "regression", "multilabel", "tagging")
COLUMNS = 24


def load(name: str) -> DictConfig:
    """A file of conf/balancer over the one that its defaults list starts from."""
    own = OmegaConf.load(CONF / f"{name}.yaml")
    assert isinstance(own, DictConfig)
    defaults = own.pop("defaults", [])
    bases = [entry for entry in defaults if isinstance(entry, str) and entry != "_self_"]
    merged = OmegaConf.merge(*[load(base) for base in bases], own)
    assert isinstance(merged, DictConfig)
    return merged


def specs(size: int) -> list[TaskSpec]:
    return [TaskSpec(f"task{index}", KINDS[index % len(KINDS)]) for index in range(size)]


def build(name: str, size: int, *, seed: int = 0, tasks: Sequence[TaskSpec] | None = None) -> Balancer:
    factory = instantiate(load(name), _partial_=True, _convert_="all")
    balancer = factory(num_tasks=size, seed=seed, tasks=specs(size) if tasks is None else tasks)
    assert isinstance(balancer, Scalarizer | Weighting | Aggregator)
    return balancer


class Step(NamedTuple):
    direction: Tensor  # (P,)
    weights: Tensor | None  # (G, A); None for an Aggregator


def step(balancer: Balancer, jacobian: Tensor, losses: Tensor, active: Tensor | None = None) -> Step:
    """What the engine makes of one step with the active tasks' gradients (A, P) and losses (A,)."""
    for parameter in balancer.parameters():
        parameter.grad = None
    leaf = losses.clone().requires_grad_()
    moved = balancer.transform(leaf, active=active)
    assert moved.shape == losses.shape
    if isinstance(balancer, Scalarizer):
        objective = balancer(moved, active=active)
        assert objective.shape == ()
        assert objective.dtype == losses.dtype
        objective.backward()
        assert leaf.grad is not None
        weights = leaf.grad.double()[None]
        result = Step(weights[0].to(jacobian) @ jacobian, weights)
    else:
        moved.sum().backward()
        assert leaf.grad is not None
        result = _of_gradients(balancer, leaf.grad.to(jacobian)[:, None] * jacobian, moved.detach(), active)
    assert result.direction.isfinite().all()
    assert result.weights is None or result.weights.isfinite().all()
    assert balancer.status in ("solved", "degenerate")
    with torch.no_grad():
        for parameter in balancer.parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all()
                parameter.sub_(0.01 * parameter.grad)
    if balancer.needs_after_step:
        every = torch.full((balancer.num_tasks,), torch.nan, dtype=torch.float64)  # NaN without labels in this step
        every[slice(None) if active is None else active] = losses.double()
        balancer.after_step(every, 0.9 * every)
    return result


def _of_gradients(balancer: Balancer, jacobian: Tensor, losses: Tensor, active: Tensor | None) -> Step:
    before = jacobian.clone(), losses.clone()
    if isinstance(balancer, Weighting):
        blocks = torch.tensor_split(jacobian, 1 if balancer.groups == "all" else 2, dim=1)
        gramian = torch.stack([block @ block.T for block in blocks])
        given = gramian.clone()
        with torch.no_grad():
            weights = balancer(gramian, losses, active=active)
        assert torch.equal(gramian, given)
        assert weights.shape == gramian.shape[:2]
        assert weights.dtype == gramian.dtype
        result = Step(torch.cat([row @ block for row, block in zip(weights, blocks, strict=True)]), weights)
    else:
        result = Step(balancer(jacobian, losses, active=active), None)
    assert torch.equal(jacobian, before[0])
    assert torch.equal(losses, before[1])
    return result


def problem(size: int, *, seed: int = 0, columns: int = COLUMNS) -> tuple[Tensor, Tensor]:
    """(T, P) gradients, linearly independent where P >= T, and (T,) positive losses."""
    generator = torch.Generator().manual_seed(1000 * seed + size)
    jacobian = torch.randn(size, columns, generator=generator, dtype=torch.float64)
    return jacobian, torch.rand(size, generator=generator, dtype=torch.float64) + 0.5


def sequence(balancer: Balancer, *, steps: int, start: int = 0, columns: int = COLUMNS) -> list[Step]:
    """Steps with an epoch's end after each third."""
    results = []
    for index in range(start, start + steps):
        jacobian, losses = problem(balancer.num_tasks, seed=index, columns=columns)
        results.append(step(balancer, jacobian, losses))
        if index % 3 == 2:
            balancer.end_epoch(losses * (index + 1))
    return results


def same(left: Sequence[Step], right: Sequence[Step]) -> bool:
    return all(torch.equal(a.direction, b.direction) for a, b in zip(left, right, strict=True))


# ---------------------------------------------------------------- inputs


def enough(name: str, size: int) -> int:
    """`size`, or the least number of tasks that the class takes."""
    balancer = get_class(load(name)._target_)
    assert issubclass(balancer, Balancer)
    return max(size, balancer.min_tasks)


BUILT = {name: build(name, enough(name, 3)) for name in NAMES}


def awkward(size: int) -> dict[str, Tensor]:
    """Gradients (T, P) that have no balanced direction, or hardly one."""
    jacobian, _ = problem(size)
    first = jacobian[:1]
    signs = torch.tensor([(-1.0) ** index for index in range(size)], dtype=torch.float64)[:, None]
    zero_row, all_zero = jacobian.clone(), torch.zeros_like(jacobian)
    zero_row[-1] = 0
    scales = torch.logspace(-10, 10, size, dtype=torch.float64)[:, None]
    stationary = jacobian - jacobian.mean(0)
    low_rank = jacobian[:, :2] @ torch.randn(2, COLUMNS, generator=torch.Generator().manual_seed(1)).double()
    return {
        "zero row": zero_row,
        "all zero": all_zero,
        "identical": first.repeat(size, 1),
        "opposite": first * signs,
        "opposite, other lengths": first * signs * torch.arange(1, size + 1)[:, None],
        "stationary": stationary,
        "rank 2": low_rank,
        "badly scaled": jacobian * scales,
        "badly scaled, rank 2": low_rank * scales,
        "long": jacobian * 1e10,
        "short": jacobian * 1e-10,
    }
