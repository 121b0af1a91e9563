"""The gradient engine: computes what a balancer asks for and writes the balanced `.grad`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlbench.balancing.base import Aggregator, Balancer, Scalarizer, Weighting
from mtlbench.gradients import asking, partition
from mtlbench.gradients.batches import BatchRows
from mtlbench.gradients.features import FeatureRows, Features
from mtlbench.gradients.losses import MicroBatch, read
from mtlbench.gradients.measure import Measure, Where
from mtlbench.gradients.partition import Modules
from mtlbench.gradients.ranks import Ranks
from mtlbench.gradients.record import BalanceRecord, expand
from mtlbench.gradients.rows import Rows, TaskGradients

Losses = Mapping[str, Tensor]
Counts = Mapping[str, Tensor | float]


class GradientEngine:
    """Turns the losses of several tasks into one balanced `.grad` for shared and private parameters.

    Every gradient is taken by `torch.autograd.grad` and written to `.grad`, replacing what was there, so
    a step must not mix it with `.backward`. Make the engine before the first forward: it may watch shared
    modules run.

    Args:
        shared: modules or parameters that two or more tasks' losses reach. May be empty for a Scalarizer.
        balancer: decides the direction of the shared parameters.
        tasks: names of the tasks: the order of the rows and of the balancer's state.
        private: modules or parameters of single tasks (heads).
        measure: where the Gramian is taken: all shared `parameters`, the `last_layer` (see `LastLayer`), the
            `features` that all heads read (see `Features`), or a given shared module. The weights act on all
            shared parameters all the same. None: what the balancer declares.
        heads: private parameters get their own task's gradient (`raw`), or that times the task's weight
            (`weighted`). A Scalarizer always weights heads as its objective does.
        normalize: `match_equal` rescales the shared direction to the norm of the plain sum of the task
            gradients, so that methods compare under one learning rate.
        process_group: the ranks whose tasks are balanced together: the gradients of the losses over all their
            batches. Every rank calls `backward` at every micro-batch. None: the default group, once there is one.

    Raises:
        ValueError: the partition, the measure or an option does not fit the balancer.
    """

    def __init__(
        self,
        shared: Modules,
        balancer: Balancer,
        *,
        tasks: Sequence[str],
        private: Modules = (),
        measure: Where | None = None,
        heads: Literal["raw", "weighted"] = "raw",
        normalize: Literal["none", "match_equal"] = "none",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        name = type(balancer).__name__
        if len(set(tasks)) != len(tasks) or len(tasks) != balancer.num_tasks:
            raise ValueError(f"{name} was made for {balancer.num_tasks} tasks; got the names {list(tasks)}.")
        if heads not in ("raw", "weighted") or normalize not in ("none", "match_equal"):
            raise ValueError(f"heads is raw|weighted and normalize none|match_equal; got {heads!r} and {normalize!r}.")
        if balancer.num_batches not in (1, 3) or (balancer.num_batches == 3 and not isinstance(balancer, Weighting)):
            raise ValueError(
                f"{name} takes {balancer.num_batches} batches a step; the engine gives one, or three to a Weighting."
            )
        if heads == "weighted" and isinstance(balancer, Aggregator):
            raise ValueError(f"heads='weighted' needs task weights, and {name} has none; say heads='raw'.")
        self.balancer = balancer
        self.tasks = tuple(tasks)
        self.shared = partition.parameters(shared)
        self.private = partition.parameters(private)
        partition.check(self.shared, self.private)
        if not self.shared and not isinstance(balancer, Scalarizer):
            raise ValueError(f"{name} balances shared parameters, and there are none that train.")
        self.heads, self.normalize = heads, normalize
        self.step = 0  # named in errors; to be set after a restart
        device = next((p.device for p in (*self.shared, *self.private)), torch.device("cpu"))
        self._ranks = Ranks(process_group, device=device)
        self._rows: Rows | None = None  # the step's micro-batches so far
        self._batch_rows: BatchRows | None = None  # the same of several batches
        by_layer = isinstance(balancer, Weighting) and balancer.groups == "layer"
        self._groups = partition.layer_groups(shared, self.shared) if by_layer else [0] * len(self.shared)
        if measure is not None and not isinstance(balancer, Weighting):
            raise ValueError(f"measure says where a Gramian is taken, and {name} does not look at one.")
        place = balancer.measure if measure is None else measure
        self._measure = Measure(shared, groups=self._groups, place=place, ranks=self._ranks)
        if by_layer and not self._measure.everywhere:
            raise ValueError(f"{name} weighs each layer by itself and so needs measure='parameters'.")
        if self._measure.features and balancer.num_batches > 1:
            raise ValueError(
                f"{name} compares the gradients of several batches, and features of different examples have "
                "nothing to compare: say measure='parameters'."
            )

    def close(self) -> None:
        """Removes the hooks that a measure may have put on shared modules."""
        self._measure.close()

    def backward(
        self,
        losses: Losses | Sequence[Losses],
        *,
        counts: Counts | Sequence[Counts] | None = None,
        scale: float | Tensor = 1.0,
        accumulate: bool = False,
    ) -> BalanceRecord | None:
        """Balances one step and writes `.grad`.

        Args:
            losses: () mean loss of each task over its labelled elements; tasks may be left out. For a balancer
                with `num_batches` > 1 a sequence of that many such mappings, and so are `counts`: see
                `Weighting.forward` for what becomes of them. A task is then balanced if every batch has labels of it.
            counts: number of labelled elements behind each loss; None: 1 each. A task with 0 is left out,
                whatever its loss. Over micro-batches, rows are summed as count x gradient and divided once,
                so that masks and uneven batches come out exact.
            scale: factor on the written gradients. A tensor is a loss scaler's scale: non-finite numbers
                then fill `.grad` for the scaler to see, and the balancer is not called.
            accumulate: adds this micro-batch to the step and returns None; the next call without it
                balances the sum. T x P numbers are kept meanwhile, whatever the balancer.

        Returns:
            The record of the step; None while accumulating.

        Raises:
            ValueError: an unknown task, a loss that is no differentiable scalar, or another number of batches than
                the balancer takes.
            FloatingPointError: a non-finite loss or gradient, naming task and step, unless under a scaler.
        """
        batches = self._read(losses, counts)
        scaled, factor = isinstance(scale, Tensor), float(scale)
        for one in batches:
            if not scaled and one.totals.bad is not None:
                self._rows = self._batch_rows = None
                self._measure.forget()
                self._raise_non_finite("loss", one.totals.bad)
        batch, totals = batches[0], batches[0].totals
        if len(batches) > 1:
            self._batch_rows = self._batch_rows or BatchRows(
                self.shared, self.private, num_tasks=len(self.tasks), ranks=self._ranks
            )
            self._measure.see(batch)
            self._batch_rows.add(batches, factor)
            if accumulate:
                return None
            several, self._batch_rows = self._batch_rows, None
            record = self._balance_batches(several, factor, scaled=scaled)
        elif accumulate or self._rows is not None:
            self._rows = self._rows or self._new_rows(weigh=True)
            self._measure.see(batch)
            self._rows.add(batch, factor)
            if accumulate:
                return None
            rows, self._rows = self._rows, None
            record = self._balance_rows(rows, factor, scaled=scaled)
        elif not totals.active or totals.bad is not None:
            record = self._skip(totals.active, totals.means)
        elif isinstance(self.balancer, Scalarizer):
            weights = asking.objective_weights(self.balancer, totals.active, totals.means, factor)
            record = self._weighted_backward(batch, weights, factor, private=self.private)
        elif not self._measure.everywhere:
            record = self._measure_then_weigh(batch, factor, scaled=scaled)
        else:
            rows = self._new_rows(weigh=False)
            rows.add(batch, factor)
            record = self._balance_rows(rows, factor, scaled=scaled)
        self.step += 1
        return record

    def _read(self, losses: Losses | Sequence[Losses], counts: Counts | Sequence[Counts] | None) -> list[MicroBatch]:
        """The batches of the step, one unless the balancer takes more."""
        number, name = self.balancer.num_batches, type(self.balancer).__name__
        several = [losses] if isinstance(losses, Mapping) else list(losses)
        sizes = [counts] if counts is None or isinstance(counts, Mapping) else list(counts)
        if counts is None:
            sizes *= len(several)
        if not len(several) == len(sizes) == number:
            given = f"{len(several)} and {len(sizes)}"
            raise ValueError(f"{name} takes {number} batches a step: expected so many losses and counts, got {given}.")
        return [read(one, size, tasks=self.tasks, ranks=self._ranks) for one, size in zip(several, sizes, strict=True)]

    def _new_rows(self, *, weigh: bool) -> Rows:
        """Of all shared parameters; `weigh` where they are summed over micro-batches."""
        if weigh and isinstance(self._measure.place, Features):
            return FeatureRows(
                self.shared,
                self.private,
                num_tasks=len(self.tasks),
                features=self._measure.place,
                ranks=self._ranks,
            )
        # An Aggregator has a state for each column: all ranks hold the whole of it, and any of them can save it.
        columns: Literal["all", "part"] = "all" if isinstance(self.balancer, Aggregator) else "part"
        return Rows(
            self.shared, self.private, num_tasks=len(self.tasks), weigh=weigh, ranks=self._ranks, columns=columns
        )

    # ---------------------------------------------------------------- the four ways through a step

    def _balance_rows(self, rows: Rows, factor: float, *, scaled: bool) -> BalanceRecord:
        """From the rows of all shared parameters."""
        grads = rows.mean()
        if not grads.active or not self._finite(rows, grads, scaled=scaled):
            return self._skip(grads.active, grads.means)
        gram = weights = None
        if isinstance(self.balancer, Scalarizer):
            weights = asking.objective_weights(self.balancer, grads.active, grads.means, factor)
            direction = rows.combine(weights, grads.jacobian, self._groups)
        else:
            losses, slopes = asking.transform(self.balancer, grads.active, grads.means, factor)
            if isinstance(self.balancer, Weighting):
                gram = _scaled(self._measure.gramian(rows, grads.jacobian), slopes, factor)
                weights = self._weigh(gram, losses, grads.active)
            grads = grads if slopes is None else grads.scaled(slopes)
            if weights is not None:
                direction = rows.combine(weights, grads.jacobian, self._groups)
            else:
                active = asking.subset(self.balancer, grads.active, grads.jacobian.device)
                direction = self.balancer(grads.jacobian / factor, losses.to(grads.jacobian), active=active) * factor
        if self.normalize == "match_equal":
            direction = direction * _ratio(rows.norm(grads.jacobian.sum(0)), rows.norm(direction))
        rows.write(direction)
        self._write_private(grads, weights)
        return self._record(grads.active, grads.means, weights, gram)

    def _balance_batches(self, rows: BatchRows, factor: float, *, scaled: bool) -> BalanceRecord:
        """From the rows of three batches: two decide the weights, which act on the third."""
        grads = rows.mean()
        active, means = grads.step.active, grads.step.means
        finite = [
            self._finite(rows.last, grads.step._replace(jacobian=jacobian), scaled=scaled)
            for jacobian in (*grads.pair, grads.step.jacobian)
        ]
        if not active or not all(finite):
            return self._skip(active, means)
        losses, slopes = asking.transform(self.balancer, active, means, factor)
        gram = _scaled(self._measure.gramian(rows.last, *grads.pair), slopes, factor)
        weights = self._weigh(gram, losses, active)
        step = grads.step if slopes is None else grads.step.scaled(slopes)
        direction = rows.last.combine(weights, step.jacobian, self._groups)
        if self.normalize == "match_equal":
            direction = direction * _ratio(rows.last.norm(step.jacobian.sum(0)), rows.last.norm(direction))
        rows.last.write(direction)
        self._write_private(step, weights)
        return self._record(active, means, weights, gram)

    def _measure_then_weigh(self, batch: MicroBatch, factor: float, *, scaled: bool) -> BalanceRecord:
        """A Weighting measured at one place: its rows there first, then one weighted backward for the rest."""
        measured = self._measure.inputs(batch)
        raw = self.heads == "raw"
        rows = Rows(
            measured,
            self.private if raw else [],
            num_tasks=len(self.tasks),
            weigh=False,
            ranks=self._ranks,
            columns="own" if self._measure.features else "part",
        )
        rows.add(batch, factor, retain_graph=True)
        grads = rows.mean()
        if not self._finite(rows, grads, scaled=scaled):
            return self._skip(grads.active, grads.means)
        losses, slopes = asking.transform(self.balancer, grads.active, grads.means, factor)
        gram = _scaled(rows.gramian(grads.jacobian, [0] * len(measured)), slopes, factor)
        weights = self._weigh(gram, losses, grads.active)
        if raw:
            self._write_private(grads if slopes is None else grads.scaled(slopes), None)
        private = [] if raw else self.private
        return self._weighted_backward(batch, weights, factor, private=private, slopes=slopes, gram=gram)

    def _weighted_backward(
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
        if self.normalize == "match_equal" and self.shared:
            equal = torch.full_like(weighted, factor) if slopes is None else slopes.to(weights) * factor
            plain = _norm(self._of_losses(batch, equal, self.shared, retain_graph=True))
        parameters = [*self.shared, *private]
        grads = self._of_losses(batch, weighted, parameters)
        if plain is not None:
            shared = grads[: len(self.shared)]
            ratio = _ratio(plain, _norm(shared))
            grads[: len(shared)] = [g if g is None else g * ratio for g in shared]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        return self._record(batch.totals.active, batch.totals.means, weights, gram)

    def _of_losses(
        self, batch: MicroBatch, cotangent: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """Gradients of the losses over all ranks, weighted with a cotangent (A,)."""
        here: Sequence[Tensor | None] = [None] * len(parameters)
        if batch.active:
            here = torch.autograd.grad(
                batch.stacked,
                parameters,
                batch.mine(cotangent).to(batch.stacked),
                retain_graph=retain_graph,
                allow_unused=True,
            )
        return self._ranks.sum_found(here, parameters)

    def _weigh(self, gram: Tensor, losses: Tensor, active: list[int]) -> Tensor:
        assert isinstance(self.balancer, Weighting)
        try:
            return asking.weigh(self.balancer, gram, losses, active)
        except RuntimeError as error:  # say whose and when
            raise RuntimeError(f"{type(self.balancer).__name__} at step {self.step}: {error}") from error

    # ---------------------------------------------------------------- writing, recording, refusing

    def _write_private(self, grads: TaskGradients, weights: Tensor | None) -> None:
        """Each private parameter's gradient: the sum over the tasks that reach it, in fact one."""
        factors = [1.0] * len(grads.active)
        if weights is not None and (self.heads == "weighted" or isinstance(self.balancer, Scalarizer)):
            factors = weights.mean(0).tolist()  # with weights for each group, heads take their mean
        sums: list[Tensor | None] = []
        for index in range(len(self.private)):
            parts = [
                g if w == 1.0 else g * w
                for g, w in zip((row[index] for row in grads.private), factors, strict=True)
                if g is not None
            ]
            sums.append(sum(parts[1:], parts[0]) if parts else None)
        for parameter, grad in zip(self.private, self._ranks.sum_found(sums, self.private), strict=True):
            parameter.grad = grad

    def _record(self, active: list[int], means: Tensor, weights: Tensor | None, gram: Tensor | None) -> BalanceRecord:
        return expand(BalanceRecord(means, weights, gram, self.balancer.status), active, len(self.tasks))

    def _skip(self, active: list[int], means: Tensor) -> BalanceRecord:
        """No balanced step: gradients are None where no task had a label, NaN where a number was not finite."""
        self._measure.forget()
        for parameter in [*self.shared, *self.private, *asking.own_parameters(self.balancer)]:
            parameter.grad = torch.full_like(parameter, torch.nan) if active else None
        return self._record(active, means, None, None)._replace(status="skipped")

    def _finite(self, rows: Rows, grads: TaskGradients, *, scaled: bool) -> bool:
        """Whether losses and rows are finite; raises where they must be."""
        finite = rows.finite(grads.jacobian)
        if not scaled and not finite.all():
            bad = torch.zeros(1, len(self.tasks), dtype=torch.bool)
            bad[0, grads.active] = ~finite
            self._raise_non_finite("gradient", bad)
        return bool((finite & grads.means.isfinite()).all())

    def _raise_non_finite(self, what: str, bad: Tensor) -> None:
        names = ", ".join(name for name, found in zip(self.tasks, bad.any(0).tolist(), strict=True) if found)
        where = f" on rank {', '.join(map(str, bad.any(1).nonzero().flatten().tolist()))}" if len(bad) > 1 else ""
        raise FloatingPointError(
            f"Non-finite {what} of task {names} at step {self.step}{where}. Look at that step's data, lower the "
            "learning rate, or clip gradients."
        )


def _norm(grads: Sequence[Tensor | None]) -> float:
    return float(torch.stack([g.norm() for g in grads if g is not None]).norm())


def _ratio(target: float, norm: float) -> float:
    """What rescales `norm` to `target`; a zero direction stays zero."""
    return target / norm if norm > 0 else 1.0


def _scaled(gram: Tensor, slopes: Tensor | None, factor: float) -> Tensor:
    """From the Gramian of `factor` times the losses' gradients to that of the transformed losses'."""
    gram = gram / factor**2
    return gram if slopes is None else gram * torch.outer(slopes, slopes).to(gram)
