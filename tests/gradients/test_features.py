"""Gramians of dL/dz, the gradients at the features that all heads read."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.aligned_mtl import AlignedMTL
from mtlbench.balancing.base import Balancer, Weighting
from mtlbench.balancing.imtl_g import IMTLG
from mtlbench.balancing.mgda import MGDA
from mtlbench.gradients import GradientEngine
from tests.gradients.test_engine import TASKS, Inverse, InverseByLayer, LogInverse, Problem, SignedMean, engine_for


def at_features(problem: Problem) -> Tensor:
    """(T, 48) the naive rows dL/dz."""
    seen: list[Tensor] = []
    hook = problem.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    losses, _ = problem.losses()
    hook.remove()
    return torch.stack([torch.autograd.grad(losses[n], seen[0], retain_graph=True)[0].flatten() for n in TASKS])


@pytest.mark.parametrize("kind", [MGDA, IMTLG, AlignedMTL, Inverse])
def test_weights_are_of_the_features_and_act_on_all_shared_parameters(kind: type[Weighting]) -> None:
    problem = Problem()
    rows = at_features(problem)
    losses = torch.stack([loss.detach() for loss in problem.losses()[0].values()])
    gramian = rows @ rows.T
    weights = kind(num_tasks=3, seed=0)(gramian[None], losses)[0]
    engine = engine_for(problem, kind, measure="features")
    record = engine.backward(problem.losses()[0])
    assert record is not None and record.gramian is not None and record.weights is not None
    torch.testing.assert_close(record.gramian[0], gramian)
    torch.testing.assert_close(record.weights[0], weights)
    written = torch.cat([p.grad.flatten() for p in problem.encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(written, weights @ problem.rows())
    raw = torch.autograd.grad(problem.losses()[0]["b"], list(problem.heads["b"].parameters()))
    for parameter, grad in zip(problem.heads["b"].parameters(), raw, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_mgda_ub_bounds_the_direction() -> None:
    """|J w| <= |dz/dtheta| |Z w|: Sener and Koltun's bound, with the spectral norm of the encoder's Jacobian."""
    problem = Problem()
    rows, jacobian = at_features(problem), problem.rows()
    weights = MGDA(num_tasks=3, seed=0)((rows @ rows.T)[None], torch.ones(3).double())[0]
    z = problem.encoder(problem.x).flatten()
    shared = list(problem.encoder.parameters())
    full = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(one, shared, retain_graph=True)]) for one in z]
    )
    assert (weights @ jacobian).norm() <= torch.linalg.matrix_norm(full, 2) * (weights @ rows).norm() * (1 + 1e-12)


@pytest.mark.parametrize("kind", [Inverse, LogInverse])
@pytest.mark.parametrize("masked", [False, True])
def test_micro_batches_equal_one_batch(kind: type[Balancer], masked: bool) -> None:
    mask = torch.arange(36).reshape(12, 3) % 5 > 0 if masked else None
    whole, parts = Problem(), Problem()
    engine = engine_for(whole, kind, measure="features")
    losses, counts = whole.losses(mask=mask)
    expected = engine.backward(losses, counts=counts)
    engine = engine_for(parts, kind, measure="features")
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        losses, counts = parts.losses(slice(start, stop), mask)
        losses = {name: loss for name, loss in losses.items() if counts[name] > 0}
        record = engine.backward(losses, counts=counts, accumulate=stop < 12)
    assert record is not None and expected is not None and record.gramian is not None
    torch.testing.assert_close(record.gramian, expected.gramian)
    for one, other in zip(parts.grads(), whole.grads(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_without_labels_is_forgotten() -> None:
    problem = Problem()
    engine = engine_for(problem, Inverse, measure="features")
    record = engine.backward(problem.losses()[0], counts=dict.fromkeys(TASKS, 0.0))
    assert record is not None and record.status == "skipped"
    overflown = {name: loss * torch.inf for name, loss in problem.losses()[0].items()}
    record = engine.backward(overflown, scale=torch.tensor(2.0))
    assert record is not None and record.status == "skipped"
    with pytest.raises(FloatingPointError, match="loss of task a, b, c at step 2"):
        engine.backward({name: loss * torch.inf for name, loss in problem.losses()[0].items()})
    engine.backward(problem.losses()[0], accumulate=True)
    engine.backward(problem.losses()[0], counts=dict.fromkeys(TASKS, 0.0), accumulate=True)
    record = engine.backward(problem.losses()[0])
    assert record is not None and record.status == "solved"


def test_evaluation_does_not_count() -> None:
    problem = Problem()
    engine = engine_for(problem, Inverse, measure="features")
    with torch.no_grad():
        problem.losses()
    assert engine.backward(problem.losses()[0]) is not None


def test_half_precision_features_give_float64_products() -> None:
    """Features in bfloat16, as under autocast: their products are summed in float32 and float64, not in bfloat16."""
    problem = Problem()
    net = problem.encoder.float()
    half = nn.Sequential(net, _Half())
    heads = problem.heads.float()
    engine = GradientEngine(half, Inverse(num_tasks=3, seed=0), tasks=TASKS, private=heads, measure="features")
    z = half(problem.x.float())
    losses = {name: heads[name](z.float()).square().mean() for name in TASKS}
    rows = torch.stack([torch.autograd.grad(losses[n], z, retain_graph=True)[0].flatten() for n in TASKS]).double()
    record = engine.backward(losses)
    assert record is not None and record.gramian is not None
    torch.testing.assert_close(record.gramian[0], rows @ rows.T, rtol=1e-6, atol=0)


class _Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


class Split(nn.Module):
    """Returns two outputs, the second made from the first, or also reads the inner layer past the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4).double(), nn.Linear(4, 4).double()
        self.inner = torch.empty(0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.inner = self.first(x).tanh()
        return {"x": self.second(self.inner)}


def test_what_goes_past_the_features_is_found() -> None:
    module, x = Split(), torch.randn(5, 6).double()
    engine = GradientEngine(module, Inverse(num_tasks=2, seed=0), tasks=["a", "b"], measure="features")
    z = module(x)["x"]
    with pytest.raises(RuntimeError, match=r"differs by .* of its norm"):
        engine.backward({"a": z.square().mean(), "b": (z + module.inner).square().mean()})


def test_tasks_with_their_own_batches_are_refused() -> None:
    problem = Problem()
    engine = engine_for(problem, Inverse, measure="features")
    first, second = problem.losses(slice(0, 6))[0], problem.losses(slice(6, 12))[0]
    with pytest.raises(RuntimeError, match="ran 2 times"):
        engine.backward({"a": first["a"], "b": second["b"]})
    losses, _ = problem.losses()
    engine = engine_for(problem, Inverse, measure="features")
    with pytest.raises(RuntimeError, match="ran 0 times"):
        engine.backward(losses)


class Crossed(Inverse):
    num_batches = 3


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("needs one shared module .* got 4", lambda p: GradientEngine(
            list(p.encoder.parameters()), Inverse(num_tasks=3, seed=0), tasks=TASKS, measure="features")),
        ("does not look at one", lambda p: engine_for(p, SignedMean, measure="features")),
        ("weighs each layer", lambda p: engine_for(p, InverseByLayer, measure="features")),
        ("compares the gradients of several batches", lambda p: engine_for(p, Crossed, measure="features")),
    ],
)  # fmt: skip
def test_where_it_would_be_wrong_it_is_refused(message: str, make: Callable[[Problem], object]) -> None:
    with pytest.raises(ValueError, match=message):
        make(Problem())


def test_a_copy_of_the_module_holds_no_graph_but_the_last() -> None:
    """An average of the weights is a copy, made at any time, that may run with gradients and is never balanced."""
    problem = Problem()
    engine = engine_for(problem, Inverse, measure="features")
    losses, _ = problem.losses()
    copied = copy.deepcopy(problem.encoder)
    seen = [weakref.ref(copied(problem.x)) for _ in range(3)]
    gc.collect()
    assert [output() is None for output in seen] == [True, True, False]  # the last one alone
    record = engine.backward(losses)
    assert record is not None and record.status == "solved"


def test_a_refused_step_is_forgotten() -> None:
    problem = Problem()
    engine = engine_for(problem, Inverse, measure="features")
    with pytest.raises(ValueError, match="unknown tasks"):
        engine.backward({"d": problem.losses()[0]["a"]})
    record = engine.backward(problem.losses()[0])
    assert record is not None and record.status == "solved"


def test_an_overflow_does_not_count_as_checked() -> None:
    module, x = Split(), torch.randn(5, 6).double()
    engine = GradientEngine(module, Inverse(num_tasks=1, seed=0), tasks=["a"], measure="features")
    z = module(x)["x"]
    record = engine.backward({"a": ((z + module.inner) * 0).sqrt().mean()}, scale=torch.tensor(2.0))
    assert record is not None and record.status == "skipped"
    z = module(x)["x"]
    with pytest.raises(RuntimeError, match=r"differs by .* of its norm"):
        engine.backward({"a": (z + module.inner).square().mean()})


def test_closing_removes_the_hook() -> None:
    problem = Problem()
    engine_for(problem, Inverse, measure="features").close()
    assert not problem.encoder._forward_hooks
