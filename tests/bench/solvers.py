"""Our Weightings beside TorchJD's on the same Gramians: time of a call, and how far the weights are from optimal.

Every Weighting of conf/balancer, each as its file has it, in float64. Calls of the two take turns. CPU microseconds of
one thread, so that neighbours on a shared machine do not count.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torchjd.aggregation as reference
from rich import box
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import Tensor
from torchjd.linalg import QuadprogProjector

from mtlbench.methods import methods
from tests.balancing import residuals
from tests.balancing.solvers import dual_cone
from tests.contract.balancers import build

SIZES, PROBLEMS, ROUNDS = (2, 10, 40), 10, 10
SECONDS = 0.3  # of timed calls, for one solver on the problems of one kind and size
Solve = Callable[[Tensor], Tensor]

# What TorchJD has with the same rule and options, for T tasks.
THEIRS: dict[str, Callable[[int], Solve]] = {
    "aligned_mtl": lambda size: reference.AlignedMTLWeighting(),
    "cagrad": lambda size: reference.CAGradWeighting(c=0.5),
    "con_fig": lambda size: reference.ConFIG(),
    "crmogm": lambda size: reference.CRMOGMWeighting(reference.MGDAWeighting()),
    "dualproj": lambda size: reference.DualProjWeighting(),
    "fairgrad": lambda size: reference.FairGradWeighting(alpha=2.0),
    "gradvac": lambda size: reference.GradVacWeighting(),
    "imtl_g": lambda size: reference.IMTLGWeighting(),
    "krum": lambda size: reference.KrumWeighting(n_byzantine=0),
    "mgda": lambda size: reference.MGDAWeighting(),
    "modo": lambda size: reference.MoDoWeighting(gamma=0.1, rho=0.1),
    "nash_mtl": lambda size: reference.NashMTL(n_tasks=size, max_norm=0.0).weighting,
    "pcd": lambda size: reference.PCDWeighting(),
    "pcgrad": lambda size: reference.PCGradWeighting(),
    "upgrad": lambda size: reference.UPGradWeighting(),
}
FROM_GRADIENTS = ("con_fig", "nash_mtl")  # TorchJD's take the (T, P) gradients, the others the (T, T) Gramian
# Of the Gramian and a solver's weights; other rules have closed forms.
RESIDUALS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "cagrad": residuals.cagrad,
    "dualproj": residuals.dualproj,
    "fairgrad": lambda gramian, weights: residuals.alpha_fair(gramian, weights, alpha=2.0),
    "mgda": residuals.mgda,
    "nash_mtl": lambda gramian, weights: residuals.alpha_fair(gramian, weights, alpha=1.0),
}


def problems(size: int, *, near_singular: bool) -> list[Tensor]:
    """Gradients (T, P): normal numbers with lengths over two decades, or with singular values from 1 down to 1e-5."""
    generator = torch.Generator().manual_seed(size)
    found = []
    for _ in range(PROBLEMS):
        rows = torch.randn(size, 2 * size + 8, generator=generator, dtype=torch.float64)
        if near_singular:
            left, _, right = torch.linalg.svd(rows, full_matrices=False)
            found.append((left * torch.logspace(0, -5, size, dtype=torch.float64)) @ right)
        else:
            found.append(rows * 10 ** (2 * torch.rand(size, 1, generator=generator, dtype=torch.float64) - 1))
    return found


class Solver:
    """A way from a Gramian to weights, with the CPU seconds of its calls and the greatest residual."""

    def __init__(self, name: str, solve: Solve, project: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.name, self.solve, self.project = name, solve, project
        self.seconds: list[float] = []
        self.residual = 0.0

    def check(self, given: Tensor, gramian: Tensor) -> None:
        """An untimed call, which may also set up what later ones use again."""
        weights = self.solve(given)
        if self.name == "upgrad":  # a sum of projections, which have residuals
            wanted = torch.eye(len(gramian), dtype=torch.float64) / len(gramian)
            found = residuals.projections(gramian, self.project(gramian, wanted), wanted)
        else:
            found = RESIDUALS[self.name](gramian, weights) if self.name in RESIDUALS else 0.0
        self.residual = self.residual if found <= self.residual else found  # NaN counts

    def time(self, given: Tensor) -> None:
        if sum(self.seconds) < SECONDS:
            start = time.process_time()
            self.solve(given)
            self.seconds.append(time.process_time() - start)

    def cells(self) -> list[str]:
        known = self.name in RESIDUALS or self.name == "upgrad"
        return [f"{statistics.median(self.seconds) * 1e6:,.0f}", f"{self.residual:.0e}" if known else "-"]


def ours(name: str, size: int) -> Solver:
    balancer, losses = build(name, size), torch.ones(size, dtype=torch.float64)
    return Solver(name, lambda gramian: balancer(gramian[None], losses)[0], dual_cone)


def theirs(name: str, size: int) -> Solver:
    """Raises ImportError without the packages that TorchJD's method needs."""
    projector = QuadprogProjector() if name == "upgrad" else None
    return Solver(name, THEIRS[name](size), lambda gramian, wanted: projector(wanted, gramian))  # type: ignore[misc]


def compare(name: str, size: int, *, near_singular: bool) -> list[str]:
    """The cells of both, whose calls take turns; `-` where TorchJD lacks the method or what it needs."""
    try:
        other = theirs(name, size) if name in THEIRS else None
    except ImportError:
        other = None
    solver = ours(name, size)
    given = [(rows, rows @ rows.T) for rows in problems(size, near_singular=near_singular)]
    for timed in (False, True):
        for rows, gramian in given * (ROUNDS if timed else 1):
            for each, takes in ((solver, gramian), (other, rows if name in FROM_GRADIENTS else gramian)):
                if each is not None:
                    each.time(takes) if timed else each.check(takes, gramian)
    cells = zip(solver.cells(), ["-", "-"] if other is None else other.cells(), strict=True)
    return [cell for pair in cells for cell in pair]


def threads(names: list[str], size: int) -> Table:
    """Ours with one and with two BLAS threads, in turns: a thread that waits for a busy core can cost 50 ms a call."""
    table = Table(title=f"T = {size}: median wall us a call")
    for column in ("method", "1 BLAS thread", "2 BLAS threads"):
        table.add_column(column, justify="left" if column == "method" else "right")
    losses = torch.ones(size, dtype=torch.float64)
    given = [rows @ rows.T for near in (False, True) for rows in problems(size, near_singular=near)]
    for name in names:
        balancer = build(name, size)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(10):
            for number, spent in seconds.items():
                torch.set_num_threads(number)
                with threadpool_limits(number):
                    for gramian in given:
                        start = time.perf_counter()
                        balancer(gramian[None], losses)
                        spent.append(time.perf_counter() - start)
        torch.set_num_threads(1)
        table.add_row(name, *(f"{statistics.median(spent) * 1e6:,.0f}" for spent in seconds.values()))
    return table


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torchjd|cvxpy")
    names = [method.entry.name for method in methods() if method.kind == "Weighting"]
    for size in SIZES:
        table = Table(
            title=f"T = {size}: median CPU us a call, worst relative KKT residual\n"
            "lengths over two decades | singular values from 1 to 1e-5",
            box=box.SIMPLE_HEAD,
            padding=0,
        )
        table.add_column("method")
        for column in ("us", "TorchJD", "KKT", "TorchJD", "| us", "TorchJD", "KKT", "TorchJD"):
            table.add_column(column, justify="right")
        for name in names:
            if size >= build(name, max(size, 3)).min_tasks:
                cells = [compare(name, size, near_singular=near) for near in (False, True)]
                table.add_row(name, *cells[0], *cells[1])
        Console().print(table)
    Console().print(threads(names, SIZES[-1]))
