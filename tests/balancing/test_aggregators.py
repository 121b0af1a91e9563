"""Balancers that see the whole Jacobian: trimmed mean and GradDrop; columns, dtypes and state of all."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torchjd.aggregation as reference

from mtlbench.balancing.base import Aggregator, TaskSpec
from mtlbench.balancing.db_mtl import DBMTL
from mtlbench.balancing.excess_mtl import ExcessMTL
from mtlbench.balancing.graddrop import GradDrop, graddrop_direction, splitmix64, uniforms
from mtlbench.balancing.moco import MoCo
from mtlbench.balancing.state import RowState
from mtlbench.balancing.trimmed_mean import TrimmedMean
from tests.balancing.jacobians import SHAPES, call, problems
from tests.balancing.losses import LOSSES
from tests.balancing.rows import A, C, six, tensor

Make = Callable[[int], Aggregator]
MAKES: dict[str, Make] = {
    "trimmed_mean": lambda tasks: TrimmedMean(num_tasks=tasks, seed=3),
    "graddrop": lambda tasks: GradDrop(num_tasks=tasks, seed=3),
    "db_mtl": lambda tasks: DBMTL(num_tasks=tasks, seed=3),
    "moco": lambda tasks: MoCo(num_tasks=tasks, seed=3),
    "moco as in LibMTL": lambda tasks: MoCo(num_tasks=tasks, seed=3, normalize="loss", simplex="softmax"),
    "excess_mtl": lambda tasks: ExcessMTL(num_tasks=tasks, seed=3, eta=0.5),
}


# ---------------------------------------------------------------- trimmed_mean


def test_trimmed_mean_drops_the_extremes_of_each_coordinate() -> None:
    # methods, section 5, trimmed_mean: coordinate-wise; of three values, the median
    assert call(TrimmedMean(num_tasks=3, seed=0), C) == [-1, 0, 1]
    assert call(TrimmedMean(num_tasks=3, seed=0, trim=0), C) == six(0.333333, 0.333333, 1)


@pytest.mark.parametrize("shape", SHAPES[2:])
def test_trimmed_mean_equals_torchjd(shape: tuple[int, int]) -> None:
    for rows, losses in problems(*shape, steps=100, seed=shape[0]):
        for trim in range(1, (shape[0] - 1) // 2 + 1):
            found = TrimmedMean(num_tasks=len(rows), seed=0, trim=trim)(rows, losses)
            assert torch.allclose(found, reference.TrimmedMean(trim)(rows), rtol=1e-12)


def test_trimmed_mean_of_few_labelled_tasks() -> None:
    """Trims as many as leave one or two values."""
    balancer = TrimmedMean(num_tasks=7, seed=0, trim=3)
    rows = tensor([[1.0, 5.0], [2.0, 0.0], [9.0, 1.0], [4.0, 3.0]])
    found = balancer(rows, torch.ones(4), active=torch.tensor([0, 2, 3, 6]))
    assert found.tolist() == [3, 2]
    assert balancer(rows[:1], torch.ones(1), active=torch.tensor([2])).tolist() == [1, 5]


def test_trimmed_mean_refuses() -> None:
    with pytest.raises(ValueError, match="trim=2 drops 4 values and needs more tasks than that, got 4"):
        TrimmedMean(num_tasks=4, seed=0, trim=2)
    with pytest.raises(ValueError, match=r"trim must be a whole number of at least 0; got 1\.0"):
        TrimmedMean(num_tasks=4, seed=0, trim=1.0)  # type: ignore[arg-type]


# ---------------------------------------------------------------- graddrop


def test_splitmix64_gives_the_published_numbers() -> None:
    """The first outputs for seed 1234567, as in the generator's public test vectors."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = splitmix64(1234567, torch.arange(4)).tolist()
    assert [number % 2**64 for number in found] == expected


def test_uniforms_are_uniform() -> None:
    drawn = uniforms(-5, torch.arange(200_000))
    assert drawn.dtype == torch.float64
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # Within five standard deviations: of the mean, of the deciles' counts, of neighbours' and keys' correlation.
    assert abs(float(drawn.mean()) - 0.5) < 5 * (1 / 12 / 200_000) ** 0.5
    assert (torch.histc(drawn, 10, 0, 1) - 20_000).abs().max() < 5 * (20_000 * 0.9) ** 0.5
    other = uniforms(-4, torch.arange(200_000))
    for left, right in ((drawn[:-1], drawn[1:]), (drawn, other)):
        assert abs(float(((left - 0.5) * (right - 0.5)).mean()) * 12) < 5 / 200_000**0.5


def test_graddrop() -> None:
    # methods, section 2, GradDrop, fixture A: p = (.75, 1); u = .5 -> (3, 2)
    rows, half, dry = tensor(A), tensor([0.5, 0.5]), tensor([0.0, 0.0])
    assert graddrop_direction(rows, half, leak=dry).tolist() == [3, 2]
    for drawn, expected in ((0.74, [3, 2]), (0.75, [-1, 2]), (0.9999, [-1, 2])):
        assert graddrop_direction(rows, tensor([drawn, drawn]), leak=dry).tolist() == expected
    # A leak of .25 from the second task lets a quarter of its -1 through.
    assert graddrop_direction(rows, half, leak=tensor([0, 0.25])).tolist() == [2.75, 2]


def test_graddrop_is_the_sum_on_average() -> None:
    # methods, section 2, GradDrop: E[d] = sum g = (2, 2)
    balancer = GradDrop(num_tasks=2, seed=0)
    wide = tensor(A).repeat_interleave(50_000, dim=1)
    mean = balancer(wide, tensor(LOSSES[:2])).view(2, -1).mean(1).tolist()
    assert mean == pytest.approx([2, 2], abs=5 * 4 * 0.75**0.5 * 0.25**0.5 / 50_000**0.5)
    assert GradDrop(num_tasks=2, seed=0, leak=1.0)(tensor(A), tensor(LOSSES[:2])).tolist() == [2, 2]


def test_graddrop_equals_torchjd() -> None:
    """Given the same uniforms."""
    generator = torch.Generator().manual_seed(0)
    for rows, _ in [*problems(2, 5, steps=50), *problems(3, 4, steps=50), *problems(10, 40, steps=100)]:
        leak = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            drawn = torch.rand(rows.shape[1], dtype=torch.float64)
            torch.manual_seed(1)
            expected = reference.GradDrop(leak=leak)(rows)
        assert torch.allclose(graddrop_direction(rows, drawn, leak=leak), expected, rtol=1e-12, atol=1e-12)


def test_graddrop_leaks_by_task() -> None:
    specs = [TaskSpec("left", "classification"), TaskSpec("right", "classification")]
    balancer = GradDrop(num_tasks=2, seed=0, tasks=specs, leak={"right": 0.5})
    assert balancer.leak.tolist() == [0, 0.5]
    with pytest.raises(ValueError, match=r"leak names the unknown task 'rigth'.*Did you mean 'right'"):
        GradDrop(num_tasks=2, seed=0, tasks=specs, leak={"rigth": 0.5})
    with pytest.raises(ValueError, match=r"leak must be a finite number of at least 0 and of at most 1; got 1\.5"):
        GradDrop(num_tasks=2, seed=0, leak=1.5)
    with pytest.raises(ValueError, match=r"leak\.left must be a finite number of at least 0 and of at most 1; got -1"):
        GradDrop(num_tasks=2, seed=0, tasks=specs, leak={"left": -1})


# ---------------------------------------------------------------- the state


@pytest.mark.parametrize("name", MAKES)
def test_float32_stays_float32(name: str) -> None:
    exact, rounded = MAKES[name](5), MAKES[name](5)
    for rows, losses in problems(5, 30, steps=4):
        direction = rounded(rows.float(), losses.float())
        assert direction.dtype == torch.float32
        assert torch.allclose(direction.double(), exact(rows, losses), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MAKES)
def test_state_loads_into_a_fresh_object(name: str) -> None:
    """Sized or not, in either dtype, also where only some tasks had rows so far."""
    trained = MAKES[name](3)
    for rows, losses in problems(3, 6, steps=3):
        trained(rows[:2].float(), losses[:2].float(), active=torch.tensor([0, 1]))
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    fresh, used = MAKES[name](3), MAKES[name](3)
    used(*problems(3, 11, steps=1)[0])  # of another model
    state = torch.load(file, weights_only=True)
    for other in (fresh, used):
        other.load_state_dict(state)
        rows, losses = problems(3, 6, steps=1, seed=9)[0]
        expected = copy.deepcopy(trained)(rows.float(), losses.float())
        assert torch.equal(other(rows.float(), losses.float()), expected)


def test_row_state_refuses_other_columns() -> None:
    balancer = DBMTL(num_tasks=2, seed=0)
    call(balancer, A)
    with pytest.raises(ValueError, match="gradients of 2 shared parameters, as in the steps before, got 3"):
        call(balancer, [[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    with pytest.raises(ValueError, match="a row for each of 3 tasks, got 2 rows"):
        RowState(3).load_state_dict(RowState(2).state_dict())
