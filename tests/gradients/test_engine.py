"""The engine against naive gradients: exact for every kind of balancer, batch, mask and micro-batch."""

from __future__ import annotations

import copy
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Aggregator, Balancer, Scalarizer, Weighting
from mtlbench.gradients import GradientEngine

TASKS = ("a", "b", "c")


class Sum(Scalarizer):
    linear: ClassVar[bool] = True

    def forward(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return losses.sum()


class Geometric(Scalarizer):
    """A Scalarizer whose weights depend on the losses of the whole step."""

    linear: ClassVar[bool] = False

    def forward(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return losses.log().mean().exp()


class Inverse(Weighting):
    """w_i = 1 / |g_i|: needs the Gramian, and no two tasks get the same."""

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return gramian.diagonal(dim1=1, dim2=2).rsqrt()


class InverseAtLast(Inverse):
    measure = "last_layer"


class InverseByLayer(Inverse):
    groups = "layer"


class SignedMean(Aggregator):
    def forward(self, jacobian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return jacobian.sum(0) * (jacobian.prod(0) > 0)


class LogInverse(Inverse):
    """Balances the gradients of log losses."""

    def transform(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return losses.log()


KINDS = [Sum, Geometric, Inverse, InverseAtLast, InverseByLayer, SignedMean, LogInverse]


class Problem:
    """Three regression heads on a two-layer encoder, float64."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in TASKS}).double()
        self.x, self.y = torch.randn(12, 6).double(), torch.randn(12, 3).double() + 2

    def losses(
        self, rows: slice = slice(None), mask: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        z = self.encoder(self.x[rows])
        losses, counts = {}, {}
        for i, name in enumerate(TASKS):
            keep = torch.ones(12, dtype=torch.bool)[rows] if mask is None else mask[rows, i]
            errors = (self.heads[name](z).squeeze(-1) - self.y[rows, i]).square()
            losses[name], counts[name] = errors[keep].mean(), float(keep.sum())
        return losses, counts

    def grads(self) -> list[Tensor | None]:
        return [p.grad for p in (*self.encoder.parameters(), *self.heads.parameters())]

    def rows(self) -> Tensor:
        """The naive Jacobian."""
        losses, _ = self.losses()
        shared = list(self.encoder.parameters())
        rows = [torch.autograd.grad(losses[name], shared, retain_graph=True) for name in TASKS]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def engine_for(problem: Problem, kind: type[Balancer], **options: object) -> GradientEngine:
    balancer = kind(num_tasks=3, seed=0)
    return GradientEngine(problem.encoder, balancer, tasks=TASKS, private=problem.heads, **options)  # type: ignore[arg-type]


def flat_shared(problem: Problem) -> Tensor:
    return torch.cat([p.grad.flatten() for p in problem.encoder.parameters() if p.grad is not None])


def expected_direction(kind: type[Balancer], jacobian: Tensor, losses: Tensor) -> Tensor:
    """Each rule written out once more, on the naive Jacobian."""
    sizes = [48, 8, 32, 4]  # weight, bias of the two Linear layers
    if kind is Sum:
        return jacobian.sum(0)
    if kind is Geometric:
        return (losses.log().mean().exp() / (3 * losses)) @ jacobian
    if kind is Inverse:
        return (1 / jacobian.norm(dim=1)) @ jacobian
    if kind is InverseAtLast:
        return (1 / jacobian[:, 56:].norm(dim=1)) @ jacobian
    if kind is InverseByLayer:
        first, last = jacobian[:, : sum(sizes[:2])], jacobian[:, sum(sizes[:2]) :]
        return torch.cat([(1 / block.norm(dim=1)) @ block for block in (first, last)])
    if kind is SignedMean:
        return jacobian.sum(0) * (jacobian.prod(0) > 0)
    assert kind is LogInverse
    logs = jacobian / losses[:, None]
    return (1 / logs.norm(dim=1)) @ logs


@pytest.mark.parametrize("kind", KINDS)
def test_direction_equals_the_rule_on_naive_gradients(kind: type[Balancer]) -> None:
    problem = Problem()
    engine = engine_for(problem, kind)
    losses, _ = problem.losses()
    record = engine.backward(losses)
    means = torch.stack([losses[name] for name in TASKS]).detach()
    expected = expected_direction(kind, problem.rows(), means)
    torch.testing.assert_close(flat_shared(problem), expected, rtol=1e-12, atol=1e-14)
    assert record is not None and record.status == "solved"
    torch.testing.assert_close(record.losses, means)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_micro_batches_equal_one_batch(kind: type[Balancer], masked: bool) -> None:
    problem = Problem()
    mask = torch.rand(12, 3, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    whole = engine_for(problem, kind)
    losses, counts = problem.losses(mask=mask)
    reference = whole.backward(losses, counts=counts)
    expected = [g.clone() for g in problem.grads() if g is not None]
    engine = engine_for(problem, kind)
    record = None
    for rows, more in ((slice(0, 5), True), (slice(5, 6), True), (slice(6, 12), False)):
        losses, counts = problem.losses(rows, mask)
        record = engine.backward(losses, counts=counts, scale=4.0, accumulate=more)
    assert record is not None and reference is not None
    torch.testing.assert_close(record.losses, reference.losses)
    if reference.weights is not None:
        torch.testing.assert_close(record.weights, reference.weights, rtol=1e-11, atol=1e-13)
    for got, want in zip(problem.grads(), expected, strict=True):
        assert got is not None
        torch.testing.assert_close(got / 4, want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", [Sum, Inverse, InverseAtLast, SignedMean])
def test_a_task_without_labels_is_left_out(kind: type[Balancer]) -> None:
    problem = Problem()
    engine = engine_for(problem, kind)
    engine.backward(problem.losses()[0])  # finds the last layer, and leaves gradients to be replaced
    losses, counts = problem.losses()
    losses["b"], counts["b"] = losses["b"] * torch.nan, 0.0
    record = engine.backward(losses, counts=counts)
    assert record is not None
    assert record.losses.isnan().tolist() == [False, True, False]
    if record.weights is not None:
        assert record.weights[0, 1] == 0 and (record.weights[0, [0, 2]] > 0).all()
    assert all(p.grad is None for p in problem.heads["b"].parameters())
    assert all(p.grad is not None for p in problem.heads["a"].parameters())


def test_no_labels_at_all_skips_the_step() -> None:
    problem = Problem()
    engine = engine_for(problem, Inverse)
    record = engine.backward({})
    assert record is not None and record.status == "skipped" and record.weights is None
    assert all(g is None for g in problem.grads())


@pytest.mark.parametrize("kind", [Inverse, InverseAtLast])
def test_heads_policy(kind: type[Balancer]) -> None:
    problem = Problem()
    raw = engine_for(problem, kind).backward(problem.losses()[0])
    plain = {name: problem.heads[name].weight.grad.clone() for name in TASKS}
    assert raw is not None and raw.weights is not None
    # A new problem, for the last layer is found at the first forward after the engine is made.
    problem = Problem()
    weighted = engine_for(problem, kind, heads="weighted").backward(problem.losses()[0])
    assert weighted is not None and weighted.weights is not None
    for i, name in enumerate(TASKS):
        torch.testing.assert_close(problem.heads[name].weight.grad, plain[name] * weighted.weights[0, i])


@pytest.mark.parametrize("kind", [Sum, Geometric, Inverse, InverseAtLast, SignedMean])
def test_match_equal_gives_the_norm_of_the_plain_sum(kind: type[Balancer]) -> None:
    problem = Problem()
    engine_for(problem, kind).backward(problem.losses()[0])
    plain = flat_shared(problem)
    problem = Problem()
    engine_for(problem, kind, normalize="match_equal").backward(problem.losses()[0])
    direction = flat_shared(problem)
    torch.testing.assert_close(direction.norm(), problem.rows().sum(0).norm())
    torch.testing.assert_close(direction / direction.norm(), plain / plain.norm())


def test_measure_may_be_a_module() -> None:
    problem = Problem()
    engine = engine_for(problem, Inverse, measure=problem.encoder[0])
    engine.backward(problem.losses()[0])
    jacobian = problem.rows()
    torch.testing.assert_close(flat_shared(problem), (1 / jacobian[:, :56].norm(dim=1)) @ jacobian)


class Nudge(Scalarizer):
    """A Scalarizer with a trained parameter."""

    linear: ClassVar[bool] = True

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.logs = nn.Parameter(torch.zeros(self.num_tasks, dtype=torch.float64))

    def forward(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        logs = self.logs if active is None else self.logs[active]
        return ((-logs).exp() * losses + logs).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_may_be_off(kind: type[Balancer]) -> None:
    one, other = Problem(), Problem()
    engine_for(one, kind).backward(one.losses()[0])
    engine = engine_for(other, kind)
    losses, _ = other.losses()
    with torch.no_grad():
        engine.backward(losses)
    for mine, its in zip(one.grads(), other.grads(), strict=True):
        assert mine is not None and its is not None and torch.equal(mine, its)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_reach_the_engine(kind: type[Balancer]) -> None:
    found = []
    for enabled in (False, True):
        problem = Problem()
        problem.encoder, problem.heads = problem.encoder.float(), problem.heads.float()
        problem.x, problem.y = problem.x.float(), problem.y.float()
        engine, (losses, _) = engine_for(problem, kind), problem.losses()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            engine.backward(losses)
        found.append(problem.grads())
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_the_balancers_own_parameters_get_their_gradient() -> None:
    problem = Problem()
    engine = engine_for(problem, Nudge)
    losses, _ = problem.losses()
    engine.backward(losses)
    means = torch.stack([losses[name] for name in TASKS]).detach()
    torch.testing.assert_close(engine.balancer.logs.grad, 1 - means)


def test_a_sparse_embedding_under_a_scalarizer() -> None:
    words = nn.Embedding(5, 4, sparse=True)
    engine = GradientEngine(words, Sum(num_tasks=2, seed=0), tasks=["a", "b"])
    z = words(torch.tensor([1, 3]))
    engine.backward({"a": z.sum(), "b": z.square().sum()}, scale=torch.tensor(2.0))
    grad = words.weight.grad
    assert grad is not None and grad.is_sparse
    expected = torch.zeros(5, 4).index_copy(0, torch.tensor([1, 3]), 2 * (1 + 2 * z.detach()))
    torch.testing.assert_close(grad.to_dense(), expected)


def test_deep_copies_do_not_touch_the_original() -> None:
    problem = Problem()
    engine = engine_for(problem, InverseAtLast)
    twin_problem, twin = copy.deepcopy((problem, engine))
    twin.backward(twin_problem.losses()[0])
    assert all(g is None for g in problem.grads())
    engine.backward(problem.losses()[0])
    for mine, its in zip(problem.grads(), twin_problem.grads(), strict=True):
        assert mine is not None and its is not None and torch.equal(mine, its) and mine is not its


def test_gramian_is_exact_in_float32() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 300))
    heads = nn.ModuleDict({name: nn.Linear(300, 1) for name in TASKS})
    engine = GradientEngine(encoder, Inverse(num_tasks=3, seed=0), tasks=TASKS, private=heads)
    z = encoder(torch.randn(64, 300))
    losses = {name: heads[name](z).square().mean() for name in TASKS}
    rows = [torch.autograd.grad(loss, list(encoder.parameters()), retain_graph=True) for loss in losses.values()]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    record = engine.backward(losses)
    assert record is not None and record.gramian is not None
    norms = jacobian.norm(dim=1)
    error = (record.gramian[0] - jacobian @ jacobian.T).abs() / (norms[:, None] * norms)
    assert error.max() <= 2e-5  # the project's bound on the Gramian's error


@pytest.mark.parametrize("kind", [Sum, Geometric, Inverse, InverseAtLast, SignedMean])
def test_match_equal_where_no_loss_reaches_what_is_shared(kind: type[Balancer]) -> None:
    problem = Problem()
    engine = engine_for(problem, kind, normalize="match_equal")
    engine.backward(problem.losses()[0])  # finds the last layer
    record = engine.backward({name: problem.heads[name].weight.square().sum() for name in TASKS})
    assert record is not None and record.status == "solved"
    assert all(p.grad is None for p in problem.encoder.parameters())
    assert all(problem.heads[name].weight.grad is not None for name in TASKS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [Sum, Inverse, SignedMean])
def test_large_counts_with_half_precision(kind: type[Balancer], dtype: torch.dtype) -> None:
    """70000 is infinite in float16, and one more than 256 is none in bfloat16."""
    grads = []
    for other in (dtype, torch.float64):
        problem = Problem()
        for values in (problem.encoder, problem.heads):
            values.to(dtype).to(other)
        problem.x, problem.y = problem.x.to(dtype).to(other), problem.y.to(dtype).to(other)
        engine = engine_for(problem, kind)
        for part, count in ((slice(0, 5), 257.0), (slice(5, 12), 70000.0)):
            counts = dict.fromkeys(TASKS, count)
            record = engine.backward(problem.losses(part)[0], counts=counts, accumulate=part.stop < 12)
        assert record is not None and record.status == "solved"
        grads.append([g.double() for g in problem.grads() if g is not None])
        assert all(g is not None and g.dtype == other for g in problem.grads())
    for half, exact in zip(*grads, strict=True):
        assert (half - exact).norm() <= 8 * torch.finfo(dtype).eps * exact.norm()
