"""The quick exact ways to the task gradients of one micro-batch on one process, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mtlbench.gradients.backwards import Backwards
from mtlbench.gradients.choice import batches_well, divide
from mtlbench.gradients.graph import Graph, Graphs
from mtlbench.gradients.grouped import Plan, starts_of
from mtlbench.gradients.layers import LayerGradients
from mtlbench.gradients.losses import MicroBatch
from mtlbench.gradients.parts import Part
from mtlbench.gradients.passing import find_last, weighted_backward
from mtlbench.gradients.training import of_training
from mtlbench.gradients.verify import MEND, verify, verify_passing

Route = Literal["auto", "sequential", "ghost", "batched", "grouped"]
ROUTES: tuple[Route, ...] = get_args(Route)


class RouteRefusedError(RuntimeError):
    """The forced route can't be taken for these losses."""


class Routes:
    """Takes the task gradients of shared and private parameters.

    Args:
        shared: parameters.
        private: parameters.
        groups: of each shared parameter, whose weights act on it.
        route: all but `sequential`, see `GradientEngine`.
        chunk: tasks in one batched backward; None: by their size.
        rough: inner products of factors in bfloat16.
        names: of the shared parameters.
        tasks: names.
    """

    def __init__(
        self,
        shared: Sequence[nn.Parameter],
        private: Sequence[nn.Parameter],
        groups: Sequence[int],
        *,
        route: Route,
        chunk: int | None,
        rough: bool,
        names: Sequence[str],
        tasks: Sequence[str],
    ) -> None:
        self._shared, self._private, self._groups = shared, private, groups
        self._written = [*shared, *private]
        self._graphs = Graphs(shared, private)
        self._route, self._chunk, self._names, self._tasks = route, chunk, names, tasks
        self._rough = rough
        self._verified: set[tuple[object, ...]] = set()
        self._declined: set[tuple[object, ...]] = set()

    def read(self, batch: MicroBatch) -> Graph:
        """The graph of the losses."""
        return self._graphs.read(batch.losses)

    @torch.no_grad()
    def weigh(
        self, graph: Graph, batch: MicroBatch, weights: Sequence[float], factor: float, measured: Sequence[Tensor]
    ) -> list[float] | None:
        """One backward of the losses times `factor`, of which shared parameters get `.grad` weighted, private ones not.

        Returns:
            The squared norms (A,) at the measured parameters; None where one backward does not tell them, and
            `.grad` is still to be written.

        Raises:
            RuntimeError: other norms or gradients than `take` finds, or a hook that was not there the first time.
        """
        last = find_last(graph, measured) if self._route == "auto" and not self._rough else None
        way = ("passing", *map(id, measured))
        if last is None or way in self._declined:
            return None
        known = way in self._verified
        for parameter in self._written:
            parameter.grad = None
        wanted = [p for p in self._written if p.requires_grad] if graph.others else None
        squares = weighted_backward(graph, last, batch, weights, factor, wanted, keep=not known)
        if squares is None and known:
            raise RuntimeError(f"A hook changed the gradient of what all heads read, and none did so before. {MEND}")
        if squares is None:
            self._declined.add(way)
        elif not known and all(map(math.isfinite, squares)):
            found = [p.grad for p in self._written]
            grads, losses = self.take(graph, batch, factor, measured=measured)
            cotangent = torch.tensor(weights, dtype=torch.float64)
            straight = of_training(self._shared, lambda asked: losses.weighted(cotangent, asked, retain=False))
            own = [next((row[i] for row in grads.private if i in row), None) for i in range(len(self._private))]
            straight_squares = grads.gramian(1)[0].diagonal().cpu()
            verify_passing(straight_squares.new_tensor(squares), straight_squares, found, [*straight, *own])
            self._verified.add(way)
        return squares

    @torch.no_grad()
    def take(
        self, graph: Graph, batch: MicroBatch, factor: float, *, measured: Sequence[Tensor] | None = None
    ) -> tuple[LayerGradients, Backwards]:
        """The gradients of the losses times `factor`, and what takes more of them.

        Args:
            graph: of the losses.
            batch: the losses. Their graph is freed, unless some parameters alone are measured.
            factor: on each loss.
            measured: those of the shared parameters whose gradients are taken; None: all.

        Raises:
            RouteRefusedError: the route can't be taken.
            RuntimeError: it finds other gradients than one backward for each task.
        """
        wanted = None if measured is None else {id(p) for p in measured}
        chosen = [index for index, p in enumerate(self._shared) if wanted is None or id(p) in wanted]
        losses = Backwards(graph, batch.losses, batch.stacked, factor, self._private, again=measured is not None)
        result = self._grouped(graph, losses, chosen) or self._by_task(graph, losses, chosen)
        if result.parts and result.way not in self._verified:  # the first time that it goes this way
            names = [self._tasks[index] for index in batch.active]
            if verify(result, batch.losses, factor, self._shared, names=self._names, tasks=names, rough=self._rough):
                self._verified.add(result.way)
        return result, losses

    def _grouped(self, graph: Graph, losses: Backwards, chosen: Sequence[int]) -> LayerGradients | None:
        """By one backward for all tasks, where each has rows of its own."""
        if self._route not in ("auto", "grouped"):
            return None
        obstacle: str | None = "the losses do not meet in one representation of two tasks or more"
        if losses.cut is not None and len(losses) > 1:
            obstacle = "each loss must reach rows of its own of the representation, one task after another"
            starts = starts_of(losses.at_cut(task) for task in range(len(losses)))
            total = None if starts is None else losses.sum_at_cut()
            if starts is not None and total is not None:
                plan = Plan(graph, self._shared, self._names, chosen, starts=starts, rows=len(total))
                obstacle = plan.obstacle
                if obstacle is None:
                    parts = self._divide(graph, losses, chosen, grouped=True)
                    result = LayerGradients("grouped", parts, losses.private, len(self._shared))
                    plan.take(losses.cut, total, parts, keep=losses.again or result.way not in self._verified)
                    return result
        if self._route == "grouped":
            raise RouteRefusedError(f"engine.route=grouped can't be taken: {obstacle}. Say engine.route=auto.")
        return None

    def _by_task(self, graph: Graph, losses: Backwards, chosen: Sequence[int]) -> LayerGradients:
        """By one backward for each task, or for each chunk of them."""
        if self._route == "batched" and graph.cut is None:
            raise RouteRefusedError(
                "engine.route=batched can't be taken: the losses do not meet in one representation. Say "
                "engine.route=auto."
            )
        hooked = [self._names[index] for index in chosen if self._shared[index]._backward_hooks]
        if self._route == "batched" and hooked:
            raise RouteRefusedError(
                f"engine.route=batched can't be taken: {hooked[0]} has a hook, which is to see the gradient of one "
                "task at a time. Say engine.route=auto."
            )
        parts = self._divide(graph, losses, chosen, grouped=False)
        # Of few measured parameters there is little to be batched.
        batches = self._route == "auto" and len(chosen) == len(self._shared) and not hooked and batches_well(graph)
        batched = bool(parts) and (self._route == "batched" or batches)  # none where no loss reaches what is shared
        result = LayerGradients("batched" if batched else "ghost", parts, losses.private, len(self._shared))
        keep = result.way not in self._verified
        asked = [tensor for part in parts for tensor in part.asked]
        start, tasks = 0, len(losses)
        # A layer whose gradients are made of those at the cut, as the last one often is, needs no backward.
        there = losses.there(asked) if asked else None
        while start < tasks:
            grads: Sequence[Tensor | None]
            if there is not None:
                chunk, grads = slice(tasks), [there] * len(asked)
            elif batched:
                chunk, grads = losses.chunk(start, self._chunk, asked, keep=keep)
            else:
                chunk = slice(start, start + 1)
                one = losses.one(start, asked, retain=keep or chunk.stop < tasks)
                grads = [None if grad is None else grad[None] for grad in one]
            for part in parts:
                part.add(chunk, grads[: len(part.asked)])
                grads = grads[len(part.asked) :]
            start = chunk.stop
        return result

    def _divide(self, graph: Graph, losses: Backwards, chosen: Sequence[int], *, grouped: bool) -> list[Part]:
        tasks, rough = len(losses), self._rough
        return divide(graph, self._shared, self._groups, tasks=tasks, chosen=chosen, grouped=grouped, rough=rough)
