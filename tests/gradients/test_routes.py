"""Every route to the task gradients finds what one backward for each task finds, whatever the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.gradients import GradientEngine, backwards
from mtlbench.gradients.layers import LayerGradients
from mtlbench.gradients.losses import read
from mtlbench.gradients.ranks import Ranks
from mtlbench.gradients.routes import Route, Routes
from tests.gradients.nets import (
    Make,
    Net,
    batch_norm,
    bert,
    called_twice,
    conv1d,
    conv2d,
    embedding,
    functional,
    gpt2,
    images,
    large_embedding,
    linear,
    sequences,
    tied,
    unknown,
)
from tests.gradients.test_engine import TASKS, Inverse, InverseByLayer, LogInverse, Problem, Sum, engine_for

NETS = [linear, sequences, conv1d, conv2d, batch_norm, embedding, large_embedding, called_twice, tied, functional]
NETS += [unknown, bert, gpt2]
ROUTES = ["auto", "ghost", "batched", "grouped"]
# What has operations that are not known to go row by row, or to keep rows apart.
NOT_GROUPED = {
    tied: "tokens.weight is read by EmbeddingBackward0, TBackward0",
    functional: "bare is read by MulBackward0",
    unknown: "in_proj_weight and the losses TrilinearBackward0 is not known to keep the tasks' rows apart",
}


class Setting:
    """Tasks on one input, or with rows of their own."""

    def __init__(self, make: Make, *, own_rows: bool, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        self.trunk: Any
        self.trunk, self.x = make()
        self.trunk.to(dtype)
        if self.x.is_floating_point():
            self.x = self.x.to(dtype)
        width = self.trunk(self.x).flatten(1).shape[1]
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in TASKS}).to(dtype)
        self.own_rows = own_rows

    def losses(self) -> dict[str, Tensor]:
        torch.manual_seed(1)  # the same dropout
        z = self.trunk(self.x).flatten(1)
        parts = (z[:1], z[1:4], z[4:]) if self.own_rows else (z, z, z)
        pairs = zip(TASKS, parts, strict=True)
        return {name: (self.heads[name](part) - i).square().mean() for i, (name, part) in enumerate(pairs)}

    def engine(self, kind: Any = Inverse, **options: Any) -> GradientEngine:
        return GradientEngine(
            self.trunk, kind(num_tasks=len(TASKS), seed=0), tasks=TASKS, private=self.heads, **options
        )

    def grads(self) -> list[Tensor | None]:
        return [p.grad for p in (*self.trunk.parameters(), *self.heads.parameters())]

    def jacobian(self) -> Tensor:
        shared = [p for p in self.trunk.parameters() if p.requires_grad]
        rows = [
            torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True, allow_unused=True)
            for loss in self.losses().values()
        ]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

    def taken(self, route: Route) -> LayerGradients:
        """What the route finds, as the engine asks for it."""
        shared = [p for p in self.trunk.parameters() if p.requires_grad]
        names = [f"p{i}" for i in range(len(shared))]
        private = list(self.heads.parameters())
        routes = Routes(
            shared, private, [0] * len(shared), route=route, chunk=None, rough=False, names=names, tasks=TASKS
        )
        batch = read(self.losses(), None, tasks=TASKS, ranks=Ranks(None, device=torch.device("cpu")))
        return routes.take(routes.read(batch), batch, 1.0)[0]


def equal(setting: Setting, route: str, kind: Any = Inverse, **options: Any) -> None:
    """Asserts that the route finds what the sequential one does, with the first step's check and without."""
    expected = setting.engine(kind, route="sequential", **options).backward(setting.losses())
    grads = setting.grads()
    engine = setting.engine(kind, route=route, **options)
    for _ in range(2):
        record = engine.backward(setting.losses())
        assert record is not None and expected is not None
        torch.testing.assert_close(record.gramian, expected.gramian, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(record.weights, expected.weights, rtol=1e-11, atol=1e-14)
        for found, wanted in zip(setting.grads(), grads, strict=True):
            assert (found is None) == (wanted is None)
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_equals_the_sequential_one(make: Make, route: str) -> None:
    setting = Setting(make, own_rows=route == "grouped")
    if route == "grouped" and make in NOT_GROUPED:
        with pytest.raises(RuntimeError, match=NOT_GROUPED[make]):
            setting.engine(route=route).backward(setting.losses())
    else:
        equal(setting, route)


@pytest.mark.parametrize("route", ROUTES)
def test_tokens_of_32_bits(route: str) -> None:
    setting = Setting(large_embedding, own_rows=route == "grouped")
    setting.x = setting.x.int()
    equal(setting, route)


@pytest.mark.parametrize(("layer", "run", "shape"), [
    (lambda: nn.LayerNorm(40), lambda m, x: m.layer(x.bfloat16()).float(), (40,)),
    (lambda: nn.BatchNorm1d(40).eval(), lambda m, x: m.layer(x.bfloat16()).float(), (40,)),
    (lambda: nn.Embedding(5, 40), lambda m, x: (x.double() + m.layer(torch.arange(5))).float().mean(1), (5, 40)),
])  # fmt: skip
def test_results_of_another_precision_than_the_weights(layer: Any, run: Any, shape: tuple[int, ...]) -> None:
    """As of norms under autocast, beside frozen layers: sums of their gradients over rows would be rounded."""
    setting = Setting(lambda: (Net({"layer": layer()}, run), images(*shape)), own_rows=True, dtype=torch.float32)
    records = [setting.engine(route=route).backward(setting.losses()) for route in ("auto", "sequential")]
    torch.testing.assert_close(records[0].gramian, records[1].gramian, rtol=1e-5, atol=0)  # type: ignore[union-attr]


@pytest.mark.parametrize("route", ["auto", "ghost", "batched"])
def test_a_batch_without_rows(route: Route) -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Linear(200, 300)).double()
    z = net(torch.empty(0, 4, 5, 5, dtype=torch.float64))
    losses = {name: (z * i).sum() for i, name in enumerate(TASKS)}
    record = GradientEngine(net, Additive(num_tasks=3, seed=0), tasks=TASKS, route=route).backward(losses)
    assert record is not None and record.gramian is not None and not record.gramian.any()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("route", ["auto", "ghost"])
def test_a_model_that_is_cast_once_its_engine_is_made(route: str) -> None:
    """As Lightning does where precision is bf16-true: inner products are not to be those of bfloat16."""
    setting = Setting(linear, own_rows=False, dtype=torch.float32)
    engine = setting.engine(route=route)
    setting.trunk.bfloat16()
    setting.heads.bfloat16()
    setting.x = setting.x.bfloat16()
    if route == "ghost":
        with pytest.raises(ValueError, match="in float32 or float64"):
            engine.backward(setting.losses())
        return
    record, expected = engine.backward(setting.losses()), setting.engine(route="sequential").backward(setting.losses())
    assert record is not None and expected is not None
    torch.testing.assert_close(record.gramian, expected.gramian, rtol=1e-6, atol=0)


@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_input(layout: torch.layout, own_rows: bool) -> None:
    """As of bags of words, or of the edges of a graph: it has no rows to be cut out."""

    def make() -> tuple[nn.Module, Tensor]:
        run = lambda m, x: torch.tanh(x.to_sparse(layout=layout) @ m.first) @ m.last  # noqa: E731
        return Net({name: nn.Parameter(torch.randn(40, 40)) for name in ("first", "last")}, run), images(40).relu()

    equal(Setting(make, own_rows=own_rows), "auto")


@pytest.mark.parametrize("options", [
    {"kind": InverseByLayer}, {"kind": LogInverse}, {"normalize": "match_equal"}, {"heads": "weighted"}, {"chunk": 2},
    {"kind": LogInverse, "normalize": "match_equal"},
])  # fmt: skip
@pytest.mark.parametrize("route", ROUTES)
def test_every_option_means_the_same(route: str, options: dict[str, Any]) -> None:
    equal(Setting(sequences, own_rows=route == "grouped"), route, **options)


@pytest.mark.parametrize("options", [{}, {"kind": LogInverse}, {"normalize": "match_equal"}, {"heads": "weighted"}])
@pytest.mark.parametrize("route", ROUTES)
def test_measured_at_a_module(route: str, options: dict[str, Any]) -> None:
    setting = Setting(called_twice, own_rows=route == "grouped")
    equal(setting, route, measure=setting.trunk.inner, **options)


class OwnBatches(Setting):
    """The shared module runs once for each task."""

    def losses(self) -> dict[str, Tensor]:
        parts = zip(TASKS, self.x.split(2), strict=True)
        return {name: self.heads[name](self.trunk(x).flatten(1)).square().mean() for name, x in parts}


@pytest.mark.parametrize("make", [sequences, bert])
@pytest.mark.parametrize("route", ["auto", "ghost"])
def test_tasks_with_batches_of_their_own(make: Make, route: str) -> None:
    setting = OwnBatches(make, own_rows=False)
    setting.trunk.eval()
    equal(setting, route)
    with pytest.raises(RuntimeError, match="do not meet in one representation"):
        setting.engine(route="batched").backward(setting.losses())
    with pytest.raises(RuntimeError, match="do not meet in one representation"):
        setting.engine(route="grouped").backward(setting.losses())


def test_rows_of_several_tasks_are_not_grouped() -> None:
    setting = Setting(linear, own_rows=False)
    with pytest.raises(RuntimeError, match="each loss must reach rows of its own"):
        setting.engine(route="grouped").backward(setting.losses())
    setting = Setting(batch_norm, own_rows=True)
    setting.trunk.train()
    with pytest.raises(RuntimeError, match=r"0\.weight and the losses NativeBatchNormBackward0 is not known to keep"):
        setting.engine(route="grouped").backward(setting.losses())
    equal(setting, "auto")


class Rare(Setting):
    """Of the shared parameters one is frozen, one reached by no task, one by one task; one task reaches none."""

    def __init__(self) -> None:
        super().__init__(linear, own_rows=False)
        self.trunk.bare = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.trunk.unused = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.trunk[0].bias.requires_grad_(False)

    def losses(self) -> dict[str, Tensor]:
        z = self.trunk[:4](self.x)
        a, b = (self.heads[name](z).square().mean() for name in TASKS[:2])
        own: Any = self.heads["c"]
        return {"a": a, "b": b + self.trunk.bare.square().sum(), "c": own.bias.square().sum()}


class Additive(Inverse):
    """For tasks without a shared gradient."""

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return 1 / (1 + gramian.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("route", ["auto", "ghost"])
def test_parameters_that_some_tasks_do_not_reach(route: str) -> None:
    equal(Rare(), route, Additive)


class OneHead(Setting):
    """Two tasks have one private head together, so that one backward of all cannot tell their gradients of it."""

    def losses(self) -> dict[str, Tensor]:
        z = self.trunk(self.x).flatten(1)
        a, b = self.heads["a"](z), self.heads["b"](z)
        return {"a": a.square().mean(), "b": b.square().mean(), "c": (b - 1).square().mean()}


@pytest.mark.parametrize("route", ["auto", "ghost", "batched"])
@pytest.mark.parametrize("heads", ["raw", "weighted"])
def test_heads_that_are_gone_through_one_by_one(monkeypatch: pytest.MonkeyPatch, route: str, heads: str) -> None:
    equal(OneHead(linear, own_rows=False), route, heads=heads)
    monkeypatch.setattr(backwards, "ALL_AT_ONCE", 0)  # as with large representations
    equal(Setting(linear, own_rows=False), route, heads=heads)


def test_losses_that_reach_nothing_shared() -> None:
    setting = Setting(linear, own_rows=False)
    losses = {name: head(torch.ones(1, 35).double()).square().mean() for name, head in setting.heads.items()}
    record = setting.engine(Additive).backward(losses)
    assert record is not None and record.gramian is not None and not record.gramian.any()
    assert all(p.grad is None for p in setting.trunk.parameters())
    assert all(p.grad is not None for p in setting.heads.parameters())


def test_a_loss_may_be_a_parameter() -> None:
    point = nn.Parameter(torch.tensor(2.0))
    engine = GradientEngine([point], Inverse(num_tasks=2, seed=0), tasks=["a", "b"])
    record = engine.backward({"a": point, "b": point.square()})
    assert record is not None and record.gramian is not None
    assert record.gramian[0].tolist() == [[1, 4], [4, 16]]
    assert point.grad is not None and float(point.grad) == 2


# ---------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(("make", "own_rows", "route", "parts"), [
    (linear, False, "batched", {"Product"}),
    (linear, True, "grouped", {"Rows"}),
    (conv2d, False, "ghost", {"Product", "Kernels", "Rows"}),
    (large_embedding, False, "ghost", {"Product", "Tokens"}),
    (tied, False, "ghost", {"Product", "Rows"}),
    (bert, False, "ghost", {"Product", "Tokens", "Rows"}),
])  # fmt: skip
def test_the_choice_by_cost(make: Make, own_rows: bool, route: str, parts: set[str]) -> None:
    taken = Setting(make, own_rows=own_rows).taken("auto")
    assert taken.route == route
    assert {type(part).__name__ for part in taken.parts} == parts


def test_many_rows_are_kept_as_rows() -> None:
    setting = Setting(linear, own_rows=False)
    setting.x = torch.randn(500, 40, dtype=torch.float64)
    assert {type(part).__name__ for part in setting.taken("auto").parts} == {"Rows"}


@pytest.mark.parametrize("route", [*ROUTES, "sequential"])
@pytest.mark.parametrize("make", [linear, bert])
def test_gramians_are_exact_in_float32(make: Make, route: str) -> None:
    setting = Setting(make, own_rows=route == "grouped", dtype=torch.float32)
    jacobian = setting.jacobian().double()
    record = setting.engine(route=route).backward(setting.losses())
    assert record is not None and record.gramian is not None
    norms = jacobian.norm(dim=1)
    error = (record.gramian[0] - jacobian @ jacobian.T).abs() / (norms[:, None] * norms)
    assert error.max() <= 2e-5  # the project's bound on the Gramian's error
    assert torch.equal(record.gramian, record.gramian.mT)  # solvers in float64 see a last bit of float32


@pytest.mark.parametrize(("message", "make"), [
    ("route is auto|sequential", lambda p: engine_for(p, Inverse, route="quick")),
    ("chunk at least 1", lambda p: engine_for(p, Inverse, chunk=0)),
    ("engine.route=ghost serves a Weighting", lambda p: engine_for(p, Sum, route="ghost")),
    ("engine.route=grouped serves a Weighting", lambda p: engine_for(p, Inverse, measure="features", route="grouped")),
])  # fmt: skip
def test_what_does_not_fit_is_refused(message: str, make: Callable[[Problem], object]) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        make(Problem())
