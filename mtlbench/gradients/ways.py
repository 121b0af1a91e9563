"""The ways through a step, from task gradients to `.grad`: by rows, by layers, or by one weighted backward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Balancer, Scalarizer, Weighting
from mtlbench.gradients import asking, gramians
from mtlbench.gradients.batches import BatchRows
from mtlbench.gradients.losses import MicroBatch
from mtlbench.gradients.measure import Measure
from mtlbench.gradients.ranks import Ranks
from mtlbench.gradients.record import BalanceRecord, expand
from mtlbench.gradients.routes import Routes
from mtlbench.gradients.rows import Rows, TaskGradients, times
from mtlbench.gradients.structure import outside
from mtlbench.gradients.training import of_training
from mtlbench.gradients.writing import norm, ratio, refuse_non_finite, separate, write, write_private


class Ways:
    """Balances one step's gradients and writes them.

    Args:
        balancer: decides.
        tasks: names.
        shared: parameters.
        private: parameters.
        groups: of each shared parameter, whose weights act on it.
        measure: where the Gramian is taken.
        routes: the quick ways to task gradients.
        ranks: those that train together.
        heads: see `GradientEngine`.
        normalize: see `GradientEngine`.
    """

    def __init__(
        self,
        balancer: Balancer,
        *,
        tasks: Sequence[str],
        shared: Sequence[nn.Parameter],
        private: Sequence[nn.Parameter],
        groups: Sequence[int],
        measure: Measure,
        routes: Routes,
        ranks: Ranks,
        heads: Literal["raw", "weighted"],
        normalize: Literal["none", "match_equal"],
    ) -> None:
        self._balancer, self._tasks, self._shared, self._private = balancer, tasks, shared, private
        self._groups, self._measure, self._routes, self._ranks = groups, measure, routes, ranks
        self._heads, self._match = heads, normalize == "match_equal"
        self._own = asking.own_parameters(balancer)
        self._written = [*shared, *private, *self._own]
        self._accumulated: tuple[int, ...] | None = None  # the step's tasks, where autograd itself wrote `.grad`
        self._apart: set[tuple[int, ...]] = set()  # of which tasks it is known to write no memory twice

    def by_rows(self, rows: Rows, factor: float, *, scaled: bool, step: int) -> BalanceRecord:
        """From the rows of all shared parameters."""
        grads = rows.mean()
        if not grads.active or not self._finite(rows, grads, scaled=scaled, step=step):
            return self.skip(grads.active, grads.means)
        gram = weights = None
        if isinstance(self._balancer, Scalarizer):
            weights = asking.objective_weights(self._balancer, grads.active, grads.means, factor)
            direction = rows.combine(weights, grads.jacobian, self._groups)
        else:
            if isinstance(self._balancer, Weighting):
                gram = self._measure.gramian(rows, grads.jacobian)
                if not self._finite_products(gram, grads.active, scaled=scaled, step=step):
                    return self.skip(grads.active, grads.means)
            losses, slopes = asking.transform(self._balancer, grads.active, grads.means, factor)
            if gram is not None:
                gram = gramians.scaled(gram, slopes, factor)
                weights = self._weigh(gram, losses, grads.active, step)
            grads = grads if slopes is None else grads.scaled(slopes)
            if weights is not None:
                direction = rows.combine(weights, grads.jacobian, self._groups)
            else:
                active = asking.subset(self._balancer, grads.active, grads.jacobian.device)
                direction = self._balancer(grads.jacobian / factor, losses.to(grads.jacobian), active=active) * factor
        self._write_rows(rows, direction, grads, weights)
        return self._record(grads.active, grads.means, weights, gram)

    def by_batches(self, rows: BatchRows, factor: float, *, scaled: bool, step: int) -> BalanceRecord:
        """From the rows of three batches: two decide the weights, which act on the third."""
        grads = rows.mean()
        active, means = grads.step.active, grads.step.means
        finite = [
            self._finite(rows.last, grads.step._replace(jacobian=jacobian), scaled=scaled, step=step)
            for jacobian in (*grads.pair, grads.step.jacobian)
        ]
        if not active or not all(finite):
            return self.skip(active, means)
        gram = self._measure.gramian(rows.last, *grads.pair)
        if not self._finite_products(gram, active, scaled=scaled, step=step):
            return self.skip(active, means)
        losses, slopes = asking.transform(self._balancer, active, means, factor)
        gram = gramians.scaled(gram, slopes, factor)
        weights = self._weigh(gram, losses, active, step)
        acting = grads.step if slopes is None else grads.step.scaled(slopes)
        direction = rows.last.combine(weights, acting.jacobian, self._groups)
        self._write_rows(rows.last, direction, acting, weights)
        return self._record(active, means, weights, gram)

    def by_layers(self, batch: MicroBatch, factor: float, *, scaled: bool, step: int) -> BalanceRecord:
        """A Weighting of one micro-batch on one process, measured at all shared parameters."""
        active, means = batch.totals.active, batch.totals.means
        grads, _ = self._routes.take(self._routes.read(batch), batch, factor)
        gram = grads.gramian(max(self._groups) + 1)
        if not self._finite_products(gram, active, scaled=scaled, step=step):
            return self.skip(active, means)
        losses, slopes = asking.transform(self._balancer, active, means, factor)
        gram = gramians.scaled(gram, slopes, factor)
        weights = self._weigh(gram, losses, active, step)
        plain = torch.ones_like(weights) if slopes is None else slopes.to(weights).expand_as(weights)
        direction = grads.combine(weights * plain)
        if self._match:
            direction = _times(direction, ratio(norm(grads.combine(plain)), norm(direction)))
        write(self._shared, direction)
        self._write_private(grads.private if slopes is None else times(grads.private, slopes.tolist()), weights)
        return self._record(active, means, weights, gram)

    def by_measured_layers(self, batch: MicroBatch, factor: float, *, scaled: bool, step: int) -> BalanceRecord:
        """The same measured at some shared parameters: their gradients first, then one weighted backward for all."""
        active, means = batch.totals.active, batch.totals.means
        measured, graph = self._measure.inputs(batch), self._routes.read(batch)
        known = asking.known_weights(self._balancer, active) if self._heads == "raw" and not self._match else None
        squares = None if known is None else self._routes.weigh(graph, batch, known, factor, measured)
        if squares is not None:
            return self._by_norms(batch, squares, factor, scaled=scaled, step=step)
        grads, losses = self._routes.take(graph, batch, factor, measured=measured)
        gram = grads.gramian(1)
        if not self._finite_products(gram, active, scaled=scaled, step=step):
            return self.skip(active, means)
        means_of, slopes = asking.transform(self._balancer, active, means, factor)
        gram = gramians.scaled(gram, slopes, factor)
        weights = self._weigh(gram, means_of, active, step)
        plain = torch.ones_like(weights[0]) if slopes is None else slopes.to(weights)
        both = weights[0] * plain
        equal: list[Tensor | None] = []
        if self._match:
            equal = of_training(self._shared, lambda asked: losses.weighted(plain, asked, retain=True))
        direction = of_training(self._shared, lambda asked: losses.weighted(both, asked, retain=False))
        if self._match:
            direction = _times(direction, ratio(norm(equal), norm(direction)))
        write(self._shared, direction)
        self._write_private(grads.private if slopes is None else times(grads.private, slopes.tolist()), weights)
        return self._record(active, means, weights, gram)

    def _by_norms(
        self, batch: MicroBatch, squares: Sequence[float], factor: float, *, scaled: bool, step: int
    ) -> BalanceRecord:
        """The rest of a step whose gradients are written: the balancer learns their squared norms (A,)."""
        active, means = batch.totals.active, batch.totals.means
        gram = gramians.of_norms(squares, factor)
        if not all(map(math.isfinite, squares)) and not self._finite_products(gram, active, scaled=scaled, step=step):
            return self.skip(active, means)
        weights = self._weigh(gram, means, active, step)
        self._accumulated = tuple(active)
        return self._record(active, means, weights, gram)

    def by_measured_rows(self, batch: MicroBatch, factor: float, *, scaled: bool, step: int) -> BalanceRecord:
        """A Weighting measured at one place: its rows there first, then one weighted backward for the rest."""
        measured = self._measure.inputs(batch)
        raw = self._heads == "raw"
        rows = Rows(
            measured,
            self._private if raw else [],
            num_tasks=len(self._tasks),
            weigh=False,
            ranks=self._ranks,
            columns="own" if self._measure.features else "part",
        )
        rows.add(batch, factor, retain_graph=True)
        grads = rows.mean()
        if not self._finite(rows, grads, scaled=scaled, step=step):
            return self.skip(grads.active, grads.means)
        gram = rows.gramian(grads.jacobian, [0] * len(measured))
        if not self._finite_products(gram, grads.active, scaled=scaled, step=step):
            return self.skip(grads.active, grads.means)
        losses, slopes = asking.transform(self._balancer, grads.active, grads.means, factor)
        gram = gramians.scaled(gram, slopes, factor)
        weights = self._weigh(gram, losses, grads.active, step)
        private = [] if raw else self._private
        record = self.by_one_backward(batch, weights, factor, private=private, slopes=slopes, gram=gram)
        if raw:  # after the last backward, in which FSDP2 would take up any `.grad` that it finds
            self._write_private((grads if slopes is None else grads.scaled(slopes)).private, None)
        return record

    def by_objective(self, batch: MicroBatch, factor: float, *, sharded: bool) -> BalanceRecord:
        """A Scalarizer: one backward of its objective."""
        assert isinstance(self._balancer, Scalarizer)
        active, means = batch.totals.active, batch.totals.means
        elsewhere = any(p.device != batch.stacked.device for p in self._own)
        if not batch.alone or sharded or self._match or elsewhere:
            weights = asking.objective_weights(self._balancer, active, means, factor)
            return self.by_one_backward(batch, weights, factor, private=self._private)
        value = asking.objective(self._balancer, active, batch.exact)
        inputs = None
        if outside(batch.losses, {*map(id, self._written)}):
            inputs = [batch.exact, *(p for p in self._written if p.requires_grad)]
        for parameter in self._written:
            parameter.grad = None
        batch.exact.retain_grad()
        # The same numbers as of `autograd.grad`, but `.grad` is written by autograd, which saves a percent of a step.
        torch.autograd.backward(value if factor == 1 else value * factor, inputs=inputs)
        assert batch.exact.grad is not None
        self._accumulated = tuple(active)
        weights = batch.exact.grad.unsqueeze(0)
        return self._record(active, means, weights if factor == 1 else weights / factor, None)

    def by_kept_weights(self, batch: MicroBatch, weights: Tensor, factor: float) -> BalanceRecord:
        """A Weighting that is not asked: one backward with (1, A) weights of an earlier step."""
        self._measure.forget()
        own: list[Tensor | None] = []
        raw = self._heads == "raw"
        if raw:
            equal = torch.full_like(batch.totals.means, factor)
            own = self._of_losses(batch, equal, self._private, retain_graph=True)
        record = self.by_one_backward(batch, weights, factor, private=[] if raw else self._private)
        if raw:  # after the last backward, as above
            write(self._private, own)
        return record._replace(status="kept")

    def by_one_backward(
        self,
        batch: MicroBatch,
        weights: Tensor,
        factor: float,
        *,
        private: Sequence[nn.Parameter],
        slopes: Tensor | None = None,
        gram: Tensor | None = None,
    ) -> BalanceRecord:
        """One backward of the losses, weighted with (1, A) weights."""
        weighted = weights[0] * factor if slopes is None else weights[0] * slopes.to(weights) * factor
        plain = None
        if self._match and self._shared:
            equal = torch.full_like(weighted, factor) if slopes is None else slopes.to(weights) * factor
            plain = norm(self._of_losses(batch, equal, self._shared, retain_graph=True))
        parameters = [*self._shared, *private]
        grads = self._of_losses(batch, weighted, parameters)
        if plain is not None:
            shared = grads[: len(self._shared)]
            grads[: len(shared)] = _times(shared, ratio(plain, norm(shared)))
        write(parameters, grads)
        return self._record(batch.totals.active, batch.totals.means, weights, gram)

    def _of_losses(
        self, batch: MicroBatch, cotangent: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """Gradients of the losses over all ranks, weighted with a cotangent (A,)."""
        here: Sequence[Tensor | None] = [None] * len(parameters)
        if batch.active:
            mine = batch.mine(cotangent).to(batch.stacked)
            here = of_training(
                parameters,
                lambda asked: torch.autograd.grad(
                    batch.stacked, asked, mine, retain_graph=retain_graph, allow_unused=True
                ),
            )
        return self._ranks.sum_found(here, parameters)

    def _weigh(self, gram: Tensor, losses: Tensor, active: list[int], step: int) -> Tensor:
        assert isinstance(self._balancer, Weighting)
        try:
            return asking.weigh(self._balancer, gram, losses, active)
        except RuntimeError as error:  # say whose and when
            raise RuntimeError(f"{type(self._balancer).__name__} at step {step}: {error}") from error

    # ---------------------------------------------------------------- writing, recording, refusing

    def _write_rows(self, rows: Rows, direction: Tensor, grads: TaskGradients, weights: Tensor | None) -> None:
        if self._match:
            direction = direction * ratio(rows.norm(grads.jacobian.sum(0)), rows.norm(direction))
        rows.write(direction, grads.active)
        self._write_private(grads.private, weights)

    def _write_private(self, rows: Sequence[dict[int, Tensor]], weights: Tensor | None) -> None:
        """Each task's own gradients, times its weight where heads are weighted."""
        factors = None
        if weights is not None and (self._heads == "weighted" or isinstance(self._balancer, Scalarizer)):
            factors = weights.mean(0).tolist()  # with weights for each group, heads take their mean
        write_private(self._private, rows, factors, self._ranks)

    def _record(self, active: list[int], means: Tensor, weights: Tensor | None, gram: Tensor | None) -> BalanceRecord:
        return expand(BalanceRecord(means, weights, gram, self._balancer.status), active, len(self._tasks))

    def skip(self, active: list[int], means: Tensor) -> BalanceRecord:
        """No balanced step: gradients are None where no task had a label, NaN where a number was not finite."""
        self._measure.forget()
        self._write_none(nan=bool(active))
        return self._record(active, means, None, None)._replace(status="skipped")

    def _write_none(self, *, nan: bool) -> None:
        """No gradient, or NaN in all that train."""
        for parameter in self._written:
            parameter.grad = torch.full_like(parameter, torch.nan) if nan and parameter.requires_grad else None

    def settle(self, record: BalanceRecord, before: dict[str, Any] | None) -> BalanceRecord:
        """What every way ends with: gradients that may be changed in place.

        Args:
            record: of the step.
            before: the balancer's state dict before it, to go back to where a loss scaler will skip the step; None
                without one.
        """
        tasks, self._accumulated = self._accumulated, None
        if tasks is None or tasks not in self._apart:
            copied = separate(self._written)
            if tasks is not None and not copied:
                self._apart.add(tasks)  # not looked at again: that takes half a percent of a small step
        if before is None or record.status == "skipped" or math.isfinite(norm([p.grad for p in self._written])):
            return record
        self._balancer.load_state_dict(before)
        self._write_none(nan=True)
        return record._replace(weights=None, gramian=None, status="skipped")

    def _finite(self, rows: Rows, grads: TaskGradients, *, scaled: bool, step: int) -> bool:
        """Whether losses and rows are finite; raises where they must be."""
        finite = rows.finite(grads.jacobian)
        self._require(finite, grads.active, scaled=scaled, step=step)
        return bool((finite & grads.means.isfinite()).all())

    def _finite_products(self, gram: Tensor, active: list[int], *, scaled: bool, step: int) -> bool:
        """Whether the rows behind a Gramian (G, A, A) are finite: their squares then are, up to norms of 1e19."""
        squares = gram.diagonal(dim1=1, dim2=2)
        if math.isfinite(squares.sum()):
            return True
        finite = squares.isfinite().all(0).cpu()
        self._require(finite, active, scaled=scaled, step=step, also=", or finite, but too long to be squared")
        return bool(finite.all())

    def _require(self, finite: Tensor, active: list[int], *, scaled: bool, step: int, also: str = "") -> None:
        if not scaled and not finite.all():
            bad = torch.zeros(1, len(self._tasks), dtype=torch.bool)
            bad[0, active] = ~finite
            refuse_non_finite("gradient", bad, tasks=self._tasks, step=step, also=also)


def _times(grads: Sequence[Tensor | None], factor: float) -> list[Tensor | None]:
    return [g if g is None else g * factor for g in grads]
