"""What every balancer in conf/balancer promises. No method is named here: a new file is covered by being there."""

from __future__ import annotations

import copy
import inspect
import itertools
from typing import Any

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor

from mtlbench.balancing.base import Property, Scalarizer, Weighting
from tests.contract.balancers import (
    BUILT,
    COLUMNS,
    CONF,
    NAMES,
    SIZES,
    awkward,
    build,
    enough,
    load,
    problem,
    sequence,
    specs,
    step,
)

NAME_AND_SIZE = [(name, size) for name in NAMES for size in SIZES if size >= BUILT[name].min_tasks]
KNOWING = [name for name in NAMES if isinstance(BUILT[name], Weighting) and BUILT[name].known_weights() is not None]
CLAIMS = [(name, claim) for name in NAMES for claim in sorted(BUILT[name].properties, key=str)]


def test_there_are_balancers() -> None:
    assert len(NAMES) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_file_says_all_and_only_the_defaults(name: str) -> None:
    """First comment line: what it is. Every option is there, with the value the class has for it."""
    lines = (CONF / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert not lines[0].startswith("# paper:")
    given: dict[str, Any] = OmegaConf.to_container(load(name))  # type: ignore[assignment]
    options = inspect.signature(get_class(given.pop("_target_"))).parameters
    assert set(given) == set(options) - {"num_tasks", "seed", "tasks"}
    if "defaults" in OmegaConf.load(CONF / f"{name}.yaml"):
        return  # a variant of another file may set its options otherwise
    for key, value in given.items():
        assert options[key].default in (value, inspect.Parameter.empty), key


@pytest.mark.parametrize("name", NAMES)
def test_number_of_tasks_is_checked(name: str) -> None:
    few = BUILT[name].min_tasks - 1
    with pytest.raises(ValueError, match=f"at least {few + 1} tasks"):
        build(name, few)
    with pytest.raises(ValueError, match="task specs"):
        build(name, few + 1, tasks=specs(few + 2))


@pytest.mark.parametrize("active", [None, torch.tensor([0, 2])])
@pytest.mark.parametrize("name", KNOWING)
def test_weights_that_are_known_are_those_of_the_step_and_learn_from_norms(name: str, active: Tensor | None) -> None:
    whole, norms = (build(name, 3) for _ in range(2))
    assert isinstance(whole, Weighting) and isinstance(norms, Weighting)
    for index in range(3):
        jacobian, losses = (each if active is None else each[active] for each in problem(3, seed=index))
        gramian = (jacobian @ jacobian.T)[None]
        known = whole.known_weights(active=active)
        assert known is not None
        expected = [known.tolist()]
        assert whole(gramian, losses, active=active).tolist() == expected
        alone = torch.full_like(gramian, torch.nan).diagonal_scatter(gramian.diagonal(dim1=1, dim2=2), dim1=1, dim2=2)
        assert norms(alone, losses, active=active).tolist() == expected
    assert whole.known_weights().tolist() == norms.known_weights().tolist() != build(name, 3).known_weights().tolist()


@pytest.mark.parametrize(("name", "size"), NAME_AND_SIZE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_finite(name: str, size: int, dtype: torch.dtype) -> None:
    balancer = build(name, size)
    for index in range(3):
        jacobian, losses = (each.to(dtype) for each in problem(size, seed=index))
        if isinstance(balancer, Weighting):  # Gramian and losses are float64 by contract, whatever the model's are
            jacobian, losses = jacobian.double(), losses.double()
        assert step(balancer, jacobian, losses).direction.dtype == jacobian.dtype
        balancer.end_epoch(losses.double())


@pytest.mark.parametrize(("name", "size"), NAME_AND_SIZE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_awkward_gradients_have_finite_weights(name: str, size: int, dtype: torch.dtype) -> None:
    for jacobian in awkward(size).values():
        balancer = build(name, size)
        given = jacobian.to(dtype).double() if isinstance(balancer, Weighting) else jacobian.to(dtype)
        for index in range(4):
            step(balancer, given, problem(size, seed=index)[1].to(given))
        # And it recovers.
        step(balancer, *(each.to(given) for each in problem(size)))
        assert balancer.status == "solved" or size > COLUMNS  # those may be Pareto-stationary


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(BUILT[name], Weighting)])
@pytest.mark.parametrize("opposite", ["two", "two and a third", "the last and the sum of the others"])
def test_float32_gradients_can_be_summed(name: str, opposite: str) -> None:
    """What float32 has left of opposite gradients' sum is no direction, and no weights are so great that it counts."""
    for size, seed in itertools.product((3, 10), range(20)):
        jacobian = problem(size, seed=seed)[0].float()
        if opposite == "two":
            jacobian[1] = -0.7 * jacobian[0]
        elif opposite == "two and a third":
            jacobian[1], jacobian[2] = 0.3 * jacobian[0], -1.3 * jacobian[0]
        else:
            jacobian[-1] = -jacobian[:-1].sum(0)
        weights = step(build(name, size), jacobian.double(), problem(size, seed=seed)[1]).weights
        assert weights is not None
        exact, rounded = weights @ jacobian.double(), weights.float() @ jacobian
        assert (rounded - exact).norm() <= 1e-4 * max(exact.norm(), jacobian.norm(dim=1).max())


@pytest.mark.parametrize("name", NAMES)
def test_another_precision_of_the_model_leaves_the_state_as_it_is(name: str) -> None:
    size = enough(name, 3)
    balancer, moved = build(name, size), build(name, size)
    sequence(balancer, steps=4)
    sequence(moved, steps=4)
    holder = torch.nn.ModuleList([moved]).to(torch.bfloat16)
    for one, other in zip(balancer.buffers(), holder.buffers(), strict=True):
        assert torch.equal(one.nan_to_num(nan=-1), other.to(one).nan_to_num(nan=-1))
        assert one.dtype != torch.float64 or other.dtype == torch.float64
    step(moved, *problem(size, seed=4))


@pytest.mark.parametrize("name", NAMES)
def test_weights_sum_to_what_is_declared(name: str) -> None:
    balancer = BUILT[name]
    for size in SIZES:
        if size >= balancer.min_tasks and balancer.weights_sum != "free":
            expected = size if balancer.weights_sum == "T" else 1
            for result in sequence(build(name, size), steps=10):
                assert result.weights is not None
                assert result.weights.sum(1).tolist() == pytest.approx([expected] * len(result.weights), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(BUILT[name], Scalarizer)])
def test_linear_means_that_weights_do_not_depend_on_the_losses(name: str) -> None:
    size = enough(name, 3)
    balancer = build(name, size)
    sequence(balancer, steps=7)
    assert isinstance(balancer, Scalarizer)
    twin = copy.deepcopy(balancer)
    jacobian, losses = problem(size)
    _, others = problem(size, seed=1)
    first, second = step(balancer, jacobian, losses).weights, step(twin, jacobian, others).weights
    assert first is not None
    assert second is not None
    assert torch.equal(first, second) == balancer.linear


# ---------------------------------------------------------------- what a class claims


@pytest.mark.parametrize(("name", "claim"), CLAIMS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_claim(name: str, claim: Property) -> None:
    sizes = [size for size in SIZES if size >= BUILT[name].min_tasks]
    for size, columns, seed in itertools.product(sizes, (4, COLUMNS), range(5)):
        jacobian, losses = problem(size, seed=seed, columns=columns)
        balancer = build(name, size)
        if claim is Property.NON_CONFLICTING:
            for rows in [jacobian, *awkward(size).values()] if seed == 0 else [jacobian]:
                result = step(balancer, rows, losses)
                lengths = rows.norm(dim=1)
                scale = result.direction.norm() if result.weights is None else result.weights.abs().sum(0) @ lengths
                # To the root of float64's precision: that is what a Gramian can tell from zero.
                assert (rows @ result.direction >= -1e-7 * lengths * scale).all()
        elif claim is Property.LOSS_SCALE_INVARIANT:
            factors = torch.ones(size, dtype=torch.float64)
            factors[seed % size] = 7.0
            plain = step(balancer, jacobian, losses).direction
            scaled = step(build(name, size), jacobian * factors[:, None], losses * factors).direction
            assert torch.cosine_similarity(plain, scaled, dim=0) >= 1 - 1e-9
        elif claim is Property.STATIONARY_ZERO:
            positive = losses / losses.sum()
            rows = jacobian - positive @ jacobian
            direction = step(balancer, rows, losses).direction
            assert direction.norm() <= 1e-6 * rows.norm(dim=1).max()
        elif claim is Property.PERMUTATION_EQUIVARIANT:
            order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
            twin = build(name, size, tasks=[specs(size)[index] for index in order.tolist()])
            for later in range(3):
                jacobian, losses = problem(size, seed=seed + later, columns=columns)
                one, other = step(balancer, jacobian, losses), step(twin, jacobian[order], losses[order])
                scale = jacobian.norm(dim=1).max()
                assert torch.allclose(one.direction, other.direction, rtol=1e-9, atol=1e-7 * float(scale))
                # Dependent gradients may have several weights of the same direction.
                if one.weights is not None and other.weights is not None and columns >= size:
                    assert torch.allclose(one.weights[:, order], other.weights, rtol=1e-7, atol=1e-9)
                balancer.end_epoch(losses)
                twin.end_epoch(losses[order])
        else:
            raise AssertionError(f"{claim} has no check.")


# ---------------------------------------------------------------- some of the tasks


@pytest.mark.parametrize("name", NAMES)
def test_inactive_tasks_are_left_alone(name: str) -> None:
    size = enough(name, 3) + 2
    balancer = build(name, size)
    sequence(balancer, steps=4)
    for active in (torch.arange(size)[torch.arange(size) != 1], torch.arange(2, size)):
        inactive = torch.tensor([index for index in range(size) if index not in active.tolist()])
        before = copy.deepcopy(balancer)
        jacobian, losses = problem(size, seed=9)
        result = step(balancer, jacobian[active], losses[active], active)
        assert result.weights is None or result.weights.shape[1] == len(active)
        old = dict([*before.named_buffers(), *before.named_parameters()])
        for key, value in [*balancer.named_buffers(), *balancer.named_parameters()]:
            if value.ndim and value.shape[-1] == size:
                kept, now = old[key][..., inactive], value[..., inactive]
                assert torch.equal(kept.nan_to_num(nan=-1), now.nan_to_num(nan=-1)), key


@pytest.mark.parametrize("name", NAMES)
def test_a_task_may_appear_late(name: str) -> None:
    """First seen in the third step, without a mean in the first epochs."""
    size = enough(name, 3) + 1
    balancer = build(name, size)
    early = torch.arange(size - 1)
    for index in range(6):
        jacobian, losses = problem(size, seed=index)
        if index < 2:
            step(balancer, jacobian[early], losses[early], early)
        else:
            step(balancer, jacobian, losses)
        means = losses.clone()
        means[-1] = means[-1] if index > 2 else torch.nan
        balancer.end_epoch(means)
