"""One training step of each system that is timed: gradients zeroed, forward, balancing, optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torchjd.aggregation import UPGrad
from torchjd.autogram import Engine
from torchjd.autojac import jac_to_grad, mtl_backward
from torchjd.scalarization import UW

from mtlbench.gradients import GradientEngine
from tests.bench.problems import Problem
from tests.contract.balancers import build


class System(ABC):
    """Makes steps on a problem of its own; all begin with the same weights and batch."""

    methods: ClassVar[tuple[str, ...]] = ("upgrad",)

    def __init__(self, problem: Problem, method: str) -> None:
        self.problem, self.method = problem, method
        self.gramian: Tensor | None = None  # (K, K) of the last step, where the method looks at that of all parameters
        self.optimizer = problem.optimizer()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()

    @abstractmethod
    def backward(self) -> None:
        """Forward, and `.grad` of every parameter."""


class Equal(System):
    """The sum of the losses and nothing else: what every other step is compared with."""

    def backward(self) -> None:
        torch.stack([*self.problem.losses(self.problem.features()).values()]).sum().backward()


class Ours(System):
    """`mtlbench.gradients.GradientEngine`."""

    methods = ("upgrad", "gradnorm", "uncertainty")

    def __init__(self, problem: Problem, method: str) -> None:
        super().__init__(problem, method)
        balancer = build(method, len(problem.tasks))
        self.engine = GradientEngine(problem.trunk, balancer, tasks=problem.tasks, private=problem.heads)
        self.optimizer = problem.optimizer(balancer.parameters())

    def features(self) -> list[Tensor]:
        if not self.problem.joined:
            return self.problem.features()
        return [*self.problem.trunk(torch.cat(self.problem.inputs)).chunk(len(self.problem.tasks))]

    def backward(self) -> None:
        record = self.engine.backward(self.problem.losses(self.features()))
        assert record is not None
        self.gramian = None if record.gramian is None else record.gramian[0]


class Autojac(System):
    """TorchJD: the rows of the Jacobian, then their inner products; a Scalarizer of its own for uncertainty."""

    methods = ("upgrad", "uncertainty")

    def __init__(self, problem: Problem, method: str) -> None:
        super().__init__(problem, method)
        self.shared = [*problem.trunk.parameters()]
        self.aggregator, self.scalarizer = UPGrad(), UW(len(problem.tasks))
        self.aggregator.gramian_weighting.register_forward_pre_hook(self._note)
        if method == "uncertainty":
            self.optimizer = problem.optimizer(self.scalarizer.parameters())

    def _note(self, weighting: object, given: tuple[Tensor]) -> None:
        self.gramian = given[0]

    def backward(self) -> None:
        features = self.problem.features()
        losses = self.problem.losses(features)
        if self.method == "uncertainty":
            self.scalarizer(torch.stack([*losses.values()])).backward()
            return
        heads = [[*self.problem.heads[task].parameters()] for task in losses]
        mtl_backward([*losses.values()], features=features, tasks_params=heads, shared_params=self.shared)
        jac_to_grad(self.shared, self.aggregator, optimize_gramian_computation=True)


class Autogram(System):
    """TorchJD: the Gramian module by module, then one backward of the weighted losses (heads weighted too)."""

    def __init__(self, problem: Problem, method: str) -> None:
        super().__init__(problem, method)
        self.engine = Engine(problem.trunk, batch_dim=None)
        self.weighting = UPGrad().gramian_weighting

    def backward(self) -> None:
        losses = torch.stack([*self.problem.losses(self.problem.features()).values()])
        self.gramian = self.engine.compute_gramian(losses)
        losses.backward(self.weighting(self.gramian))


SYSTEMS: dict[str, type[System]] = {"ours": Ours, "autojac": Autojac, "autogram": Autogram}


def naive(problem: Problem) -> Tensor:
    """(K, P) float64 gradients of the trunk, as one backward for each task gives them in float32."""
    shared = [*problem.trunk.parameters()]
    losses = problem.losses(problem.features()).values()
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([grad.double().reshape(-1) for grad in row]) for row in rows])
