"""Three independent batches in one step: which gradients the weights come from, and which they act on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Weighting
from mtlbench.gradients import BalanceRecord, GradientEngine
from tests.gradients.test_engine import TASKS, Inverse, Problem, Sum, flat_shared

PARTS = (slice(0, 3), slice(3, 7), slice(7, 12))  # of the problem's twelve rows


class Crossed(Weighting):
    """Weights that tell rows from columns of what they see."""

    num_batches = 3
    seen: Tensor

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        self.seen = gramian.clone()
        return gramian @ torch.arange(1.0, 1 + gramian.shape[1], dtype=gramian.dtype) + losses


class CrossedAtLast(Crossed):
    measure = "last_layer"


class CrossedByLayer(Crossed):
    groups = "layer"


class CrossedLogs(Crossed):
    def transform(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return losses.log()


class ThreeOfAScalarizer(Sum):
    num_batches = 3


class Two(Inverse):
    num_batches = 2  # type: ignore[assignment]


def engine_for(problem: Problem, kind: type[Weighting] = Crossed, **options: object) -> GradientEngine:
    balancer = kind(num_tasks=3, seed=0)
    return GradientEngine(problem.encoder, balancer, tasks=TASKS, private=problem.heads, **options)  # type: ignore[arg-type]


def step(engine: GradientEngine, problem: Problem, mask: Tensor | None = None, **options: object) -> BalanceRecord:
    losses, counts = zip(*(problem.losses(part, mask) for part in PARTS), strict=True)
    record = engine.backward(losses, counts=counts, **options)  # type: ignore[arg-type]
    assert record is not None
    return record


def naive(problem: Problem, part: slice) -> tuple[Tensor, Tensor]:
    """The Jacobian (T, P) and losses (T,) of one batch."""
    losses, _ = problem.losses(part)
    shared = list(problem.encoder.parameters())
    rows = [torch.autograd.grad(losses[name], shared, retain_graph=True) for name in TASKS]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    return jacobian, torch.stack([losses[name] for name in TASKS]).detach()


def expected_direction(kind: type[Weighting], problem: Problem) -> tuple[Tensor, Tensor]:
    """The rule written out once more: the direction and the weights (G, T)."""
    (first, a), (second, b), (third, c) = (naive(problem, part) for part in PARTS)
    losses = (3 * a + 4 * b + 5 * c) / 12
    numbers = torch.arange(1.0, 4.0, dtype=torch.float64)
    if kind is CrossedLogs:
        first, second, third = (j / losses[:, None] for j in (first, second, third))
        losses = losses.log()
    by_kind: dict[type[Weighting], list[slice]] = {
        CrossedAtLast: [slice(56, 92)],
        CrossedByLayer: [slice(0, 56), slice(56, 92)],
    }
    columns = by_kind.get(kind, [slice(0, 92)])
    weights = torch.stack([first[:, c] @ second[:, c].T @ numbers + losses for c in columns])
    if kind is CrossedByLayer:
        return torch.cat([row @ third[:, c] for row, c in zip(weights, columns, strict=True)]), weights
    return weights[0] @ third, weights


@pytest.mark.parametrize("kind", [Crossed, CrossedAtLast, CrossedByLayer, CrossedLogs])
def test_weights_from_two_batches_act_on_the_third(kind: type[Weighting]) -> None:
    problem = Problem()
    record = step(engine_for(problem, kind), problem, scale=4.0)
    direction, weights = expected_direction(kind, problem)
    torch.testing.assert_close(flat_shared(problem) / 4, direction, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(record.weights, weights, rtol=1e-11, atol=1e-13)
    means = [naive(problem, part)[1] for part in PARTS]
    torch.testing.assert_close(record.losses, (3 * means[0] + 4 * means[1] + 5 * means[2]) / 12)


def test_the_gramian_is_of_the_first_batch_with_the_second() -> None:
    problem = Problem()
    record = step(engine_for(problem), problem)
    assert record.gramian is not None
    expected = naive(problem, PARTS[0])[0] @ naive(problem, PARTS[1])[0].T
    torch.testing.assert_close(record.gramian[0], expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(expected, expected.T)


def test_heads_learn_from_all_three_batches() -> None:
    problem = Problem()
    step(engine_for(problem), problem)
    found = [p.grad.clone() for p in problem.heads.parameters() if p.grad is not None]
    losses, _ = problem.losses()
    expected = torch.autograd.grad(sum(losses.values()), list(problem.heads.parameters()))  # type: ignore[arg-type]
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-14)


def test_weighted_heads_and_match_equal() -> None:
    problem = Problem()
    step(engine_for(problem), problem)
    raw = [p.grad.clone() for p in problem.heads.parameters() if p.grad is not None]
    record = step(engine_for(problem, heads="weighted", normalize="match_equal"), problem)
    assert record.weights is not None
    for index, (found, plain) in enumerate(zip(problem.heads.parameters(), raw, strict=True)):
        # A weight and a bias for each task.
        torch.testing.assert_close(found.grad, plain * record.weights[0, index // 2])
    torch.testing.assert_close(flat_shared(problem).norm(), naive(problem, PARTS[2])[0].sum(0).norm())


@pytest.mark.parametrize("kind", [Crossed, CrossedAtLast])
def test_micro_batches_equal_one_batch(kind: type[Weighting]) -> None:
    problem = Problem()
    mask = torch.ones(12, 3, dtype=torch.bool)
    mask[[0, 4, 8, 9], [0, 1, 2, 2]] = False
    reference = step(engine_for(problem, kind), problem, mask)
    expected = [g.clone() for g in problem.grads() if g is not None]
    engine = engine_for(problem, kind)
    parts = [[slice(p.start, p.start + 1) for p in PARTS], [slice(p.start + 1, p.stop) for p in PARTS]]
    for rows, more in zip(parts, (True, False), strict=True):
        losses, counts = zip(*(problem.losses(part, mask) for part in rows), strict=True)
        record = engine.backward(losses, counts=counts, accumulate=more)
    assert record is not None
    torch.testing.assert_close(record.losses, reference.losses)
    torch.testing.assert_close(record.weights, reference.weights, rtol=1e-11, atol=1e-13)
    for got, want in zip(problem.grads(), expected, strict=True):
        assert got is not None
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


def test_a_task_without_labels_in_one_of_the_batches_is_left_out() -> None:
    problem = Problem()
    mask = torch.ones(12, 3, dtype=torch.bool)
    mask[PARTS[1], 1] = False
    record = step(engine_for(problem), problem, mask)
    assert record.losses.isnan().tolist() == [False, True, False]
    assert record.weights is not None
    assert record.weights[0, 1] == 0
    assert all(p.grad is None for p in problem.heads["b"].parameters())
    third = naive(problem, PARTS[2])[0]
    torch.testing.assert_close(flat_shared(problem), record.weights[0] @ third)
    mask[PARTS[0], 0] = mask[PARTS[2], 2] = False
    assert step(engine_for(problem), problem, mask).status == "skipped"
    assert all(g is None for g in problem.grads())


def test_what_only_a_task_that_is_left_out_reaches_gets_no_gradient() -> None:
    """Not zeros, which momentum and weight decay would act on."""
    torch.manual_seed(0)
    shared, more = nn.Linear(2, 2), nn.Linear(2, 1)
    engine = GradientEngine([shared, more], Crossed(num_tasks=2, seed=0), tasks=("a", "b"))
    batches = [{"a": (z := shared(torch.randn(3, 2))).square().mean(), "b": more(z).mean()} for _ in range(3)]
    del batches[0]["b"]
    engine.backward(batches)
    assert shared.weight.grad is not None
    assert more.weight.grad is more.bias.grad is None


def test_a_bad_number_in_any_batch_raises_or_skips() -> None:
    for bad in range(3):
        problem = Problem()
        problem.x[PARTS[bad]] = torch.nan
        engine = engine_for(problem)
        with pytest.raises(FloatingPointError, match="Non-finite loss of task a, b, c at step 0"):
            step(engine, problem)
        record = step(engine, problem, scale=torch.tensor(8.0))
        assert record.status == "skipped"
        assert all(g is not None and g.isnan().all() for g in problem.grads())
        problem.x = torch.ones_like(problem.x)
        assert step(engine, problem).status == "solved"  # nothing of the bad step is left


def test_another_number_of_batches_is_refused() -> None:
    problem = Problem()
    losses, counts = problem.losses()
    with pytest.raises(ValueError, match=r"Crossed takes 3 batches a step: expected so many .*, got 1 and 1"):
        engine_for(problem).backward(losses, counts=counts)
    with pytest.raises(ValueError, match="got 3 and 2"):
        engine_for(problem).backward([losses] * 3, counts=[counts] * 2)
    with pytest.raises(ValueError, match=r"Inverse takes 1 batches a step.*got 3 and 3"):
        engine_for(problem, Inverse).backward([losses] * 3)
    for kind in (ThreeOfAScalarizer, Two):
        with pytest.raises(ValueError, match="the engine gives one, or three to a Weighting"):
            engine_for(problem, kind)  # type: ignore[arg-type]
