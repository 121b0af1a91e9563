"""What each task's loss reaches: one forward and one backward for each task alone, from the same random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtlbench.gradients.partition import Modules, check, members, parameters

Role = Literal["shared", "private", "neither"]
NOISE = 0.01  # of a parameter's size


class Known(NamedTuple):
    """A trainable parameter.

    Attributes:
        name: as its model has it.
        parameter: itself.
        role: as it was given.
        member: of shared ones, which of the given modules it belongs to; of private ones of known tasks the task.
    """

    name: str
    parameter: nn.Parameter
    role: Role
    member: int | str | None

    @property
    def module(self) -> str:
        """The name of the module that owns it."""
        return self.name.rpartition(".")[0] or self.name


def parameters_of(shared: Modules, private: Modules | Mapping[str, Modules], model: nn.Module | None) -> list[Known]:
    """The trainable parameters, each once: shared, private, then those of the model that are neither.

    Raises:
        ValueError: a parameter is given as shared and as private.
    """
    given: list[tuple[Role, str | None, Modules]] = [("shared", None, shared)]
    own = private.items() if isinstance(private, Mapping) else [(None, private)]
    given += [("private", task, modules) for task, modules in own]
    check(parameters(shared), [p for role, _, modules in given if role == "private" for p in parameters(modules)])
    found: dict[int, Known] = {}
    for role, task, modules in given:
        for index, member in enumerate(members(modules)):
            start = (task or role) if isinstance(modules, nn.Module) else f"{task or role}.{index}"
            for name, parameter in _named(member, start):
                if parameter.requires_grad:
                    place = index if role == "shared" else task
                    found.setdefault(id(parameter), Known(name, parameter, role, place))
    for name, parameter in () if model is None else model.named_parameters():
        if parameter.requires_grad:
            known = found.get(id(parameter), Known(name, parameter, "neither", None))
            found[id(parameter)] = known._replace(name=name)
    return list(found.values())


def _named(member: nn.Module | nn.Parameter, start: str) -> list[tuple[str, nn.Parameter]]:
    if isinstance(member, nn.Parameter):
        return [(start, member)]
    return [(f"{start}.{name}", parameter) for name, parameter in member.named_parameters()]


class Replay:
    """The same forward again and again: the same random numbers, and the same buffers to begin with.

    Args:
        losses: makes the () losses of the tasks by a fresh forward.
        buffers: those that a forward may change.
        parameters: whose `.grad` is to stay as it is.
    """

    def __init__(
        self,
        losses: Callable[[], Mapping[str, Tensor]],
        *,
        buffers: Sequence[Tensor],
        parameters: Sequence[nn.Parameter],
    ) -> None:
        self._losses, self._buffers, self._parameters = losses, buffers, parameters
        self._before = [buffer.clone() for buffer in buffers]
        self._devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})

    def __call__(self) -> dict[str, Tensor]:
        """The losses; their graphs do not outlive the next call."""
        self._restore()
        with torch.random.fork_rng(devices=self._devices):
            torch.manual_seed(0)
            return dict(self._losses())

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Leaves gradients, buffers and random numbers as they were."""
        grads = [p.grad for p in self._parameters]
        try:
            yield
        finally:
            self._restore()
            for parameter, grad in zip(self._parameters, grads, strict=True):
                parameter.grad = grad

    def _restore(self) -> None:
        with torch.no_grad():
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)


class Reach(NamedTuple):
    """What T losses reach of N parameters.

    Attributes:
        reached: (T, N) bool.
        norms: (T, N) float64 gradient norms, 0 where not reached.
        rows: (T, P) gradients of the shared parameters, 0 where not reached.
    """

    reached: Tensor
    norms: Tensor
    rows: Tensor

    @property
    def zero(self) -> Tensor:
        """(T, N) bool: reached, and every number of the gradient is 0."""
        return self.reached & (self.norms == 0)


def measure(replay: Replay, tasks: Sequence[str], known: Sequence[Known]) -> Reach:
    """Each task's gradients, of its loss alone in a forward of its own."""
    shared = [one.parameter for one in known if one.role == "shared"]
    reached = torch.zeros(len(tasks), len(known), dtype=torch.bool)
    norms = torch.zeros(len(tasks), len(known), dtype=torch.float64)
    like = shared[0] if shared else torch.empty(0)
    rows = torch.zeros(len(tasks), sum(p.numel() for p in shared), dtype=like.dtype, device=like.device)
    for task, name in enumerate(tasks):
        loss = replay()[name]
        if not loss.requires_grad:
            continue
        grads = torch.autograd.grad(loss, [one.parameter for one in known], allow_unused=True)
        reached[task] = torch.tensor([grad is not None for grad in grads])
        norms[task] = torch.stack([torch.zeros((), dtype=torch.float64) if g is None else _norm(g) for g in grads])
        columns = rows[task].split([p.numel() for p in shared])
        of_shared = [grad for grad, one in zip(grads, known, strict=True) if one.role == "shared"]
        for column, grad in zip(columns, of_shared, strict=True):
            if grad is not None:
                column.copy_(grad.reshape(-1))
    return Reach(reached, norms, rows)


def _norm(grad: Tensor) -> Tensor:
    return torch.linalg.vector_norm(grad, dtype=torch.float64).cpu()


@contextmanager
def nudged(known: Sequence[Known]) -> Iterator[None]:
    """Moves every parameter a little: a gradient that is 0 since another factor is (LoRA's, at first) is 0 no more."""
    generator = torch.Generator().manual_seed(0)
    before = [one.parameter.detach().clone() for one in known]
    try:
        with torch.no_grad():
            for one, old in zip(known, before, strict=True):
                size = float(old.square().mean().sqrt()) or 1.0
                one.parameter.add_(torch.randn(old.shape, generator=generator).to(old), alpha=NOISE * size)
        yield
    finally:
        with torch.no_grad():
            for one, old in zip(known, before, strict=True):
                one.parameter.copy_(old)
