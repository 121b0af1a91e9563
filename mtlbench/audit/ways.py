"""The engine's ways to the task gradients, each beside those that every loss has alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Aggregator, Weighting
from mtlbench.gradients import GradientEngine
from mtlbench.gradients.partition import Modules, parameters
from mtlbench.gradients.routes import Route

ALONE = "each loss alone"
COLUMNS = 1 << 20  # turned to float64 at once


class Way(NamedTuple):
    """What one way gives.

    Attributes:
        gramian: (T, T) float64.
        direction: (P,) the rows weighted with `weights(T)`.
    """

    gramian: Tensor
    direction: Tensor


class Pair(NamedTuple):
    """How far two ways are from each other.

    Attributes:
        gramian: greatest |dG_ij| / (|g_i| |g_j|).
        direction: length of the difference over the sum of the weighted gradients' lengths.
    """

    first: str
    second: str
    gramian: float
    direction: float


def weights(size: int) -> Tensor:
    """(T,) all different, so that no two rows may be swapped."""
    return torch.arange(1, size + 1, dtype=torch.float64) / size


class Fixed(Weighting):
    """The same weights always."""

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return weights(self.num_tasks).to(gramian).expand(gramian.shape[:2])


class Kept(Aggregator):
    """Keeps the rows that it is shown."""

    def forward(self, jacobian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        self.jacobian = jacobian
        return jacobian.sum(0)


class Engines:
    """Engines over the same parameters, each given a forward of its own.

    Args:
        losses: makes the () losses by a fresh forward, the same each time.
        tasks: their T names.
        shared: modules or parameters, P numbers in all.
        private: parameters.
    """

    def __init__(
        self,
        losses: Callable[[], Mapping[str, Tensor]],
        *,
        tasks: Sequence[str],
        shared: Modules,
        private: Sequence[nn.Parameter],
    ) -> None:
        self._losses, self._tasks, self._shared, self._private = losses, tasks, shared, private

    def rows(self) -> Tensor:
        """(T, P) as the engine gives them to an Aggregator: one graph, one backward for each task."""
        balancer = Kept(num_tasks=len(self._tasks), seed=0)
        engine = GradientEngine(self._shared, balancer, tasks=self._tasks, private=self._private)
        try:
            engine.backward(self._losses())
        finally:
            engine.close()
        return balancer.jacobian

    def way(self, route: Route) -> Way:
        """By a route.

        Raises:
            RouteRefusedError: the route does not fit these losses.
            RuntimeError: it does not give what it promises.
        """
        balancer = Fixed(num_tasks=len(self._tasks), seed=0)
        engine = GradientEngine(self._shared, balancer, tasks=self._tasks, private=self._private, route=route)
        try:
            record = engine.backward(self._losses())
        finally:
            engine.close()
        assert record is not None
        assert record.gramian is not None
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters(self._shared)]
        return Way(record.gramian[0].cpu(), torch.cat([grad.detach().reshape(-1) for grad in grads]).cpu())


def gramian(rows: Tensor) -> Tensor:
    """(T, T) float64 inner products of gradients (T, P)."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in rows.split(COLUMNS, dim=1):
        total += block.double() @ block.double().T
    return total.cpu()


def alone(rows: Tensor) -> Way:
    """Of gradients (T, P)."""
    return Way(gramian(rows), (weights(len(rows)).to(rows) @ rows).cpu())


def compare(ways: Mapping[str, Way]) -> list[Pair]:
    """Every pair; the first way is the measure of sizes."""
    norms = next(iter(ways.values())).gramian.diagonal().sqrt()
    sizes = torch.outer(norms, norms)
    sizes = sizes.clamp_min(float(sizes.max()) * 1e-12)
    length = float(weights(len(norms)) @ norms)
    return [
        Pair(
            first,
            second,
            float(((one.gramian - other.gramian).abs() / sizes).max()),
            float((one.direction - other.direction).norm()) / length,
        )
        for (first, one), (second, other) in combinations(ways.items(), 2)
    ]
