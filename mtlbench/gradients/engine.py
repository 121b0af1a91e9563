"""The gradient engine: computes what a balancer asks for and writes the balanced `.grad`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mtlbench.balancing.base import Aggregator, Balancer, Scalarizer, Weighting
from mtlbench.gradients import partition
from mtlbench.gradients.batches import BatchRows
from mtlbench.gradients.features import FeatureRows, Features
from mtlbench.gradients.losses import MicroBatch, read
from mtlbench.gradients.measure import Measure, Where
from mtlbench.gradients.options import Options
from mtlbench.gradients.partition import Modules
from mtlbench.gradients.ranks import Ranks
from mtlbench.gradients.record import BalanceRecord
from mtlbench.gradients.refresh import Refresh
from mtlbench.gradients.routes import Route, Routes
from mtlbench.gradients.rows import Rows
from mtlbench.gradients.shards import Shards
from mtlbench.gradients.ways import Ways
from mtlbench.gradients.writing import refuse_non_finite

Losses = Mapping[str, Tensor]
Counts = Mapping[str, Tensor | float]


class GradientEngine:
    """Turns the losses of several tasks into one balanced `.grad` for shared and private parameters.

    Gradients are written to `.grad`, replacing what was there, so a step must not mix this with `.backward`. Make the
    engine before the first forward: it may watch shared modules run.

    Args:
        shared: modules or parameters that two or more tasks' losses reach. May be empty for a Scalarizer. Modules of
            FSDP2 (`fully_shard`) are given as such: each rank has whole gradients of them within a step, and its part
            of `.grad` after it. What is frozen later gets no gradient; what is frozen now stays unknown, here and in
            `private`: where it is to train later, freeze it once the engine is made.
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
        refresh: approximates where above 1: the balancer is asked at every so many steps, and in between its last
            weights act once more, at the cost of equal weighting.
        products: `bfloat16` approximates the inner products of layers that are kept as factors, by some 4e-3 of the
            gradients' norms; the direction is exact for the weights that come of it. For one micro-batch a step on
            one process.
        route: how the task gradients are taken; all ways give the same. `auto`: the cheapest by counted cost.
            `sequential`: one backward for each task, its rows in one T x P matrix. `ghost`: the same, but where a
            layer's gradients are cheaper in another form, its rows are never there. `batched`: one backward for
            several tasks at once. `grouped`: one backward for all, where each task has rows of its own in one batch.
            Several ranks, micro-batches, shards, and what is not a Weighting of one batch measured at shared
            parameters, take `sequential`.
            Hooks on shared parameters see one task's gradient at a time. A hook on a result inside the shared modules
            can't be seen in the graph and may be passed by: say `sequential` where there are some.
        chunk: tasks in one batched backward: more take more memory. None: by their size.
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
        refresh: int = 1,
        products: Literal["exact", "bfloat16"] = "exact",
        route: Route = "auto",
        chunk: int | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        name = type(balancer).__name__
        if len(set(tasks)) != len(tasks) or len(tasks) != balancer.num_tasks:
            raise ValueError(f"{name} was made for {balancer.num_tasks} tasks; got the names {list(tasks)}.")
        self.options = Options(
            measure=measure,
            heads=heads,
            normalize=normalize,
            refresh=refresh,
            products=products,
            route=route,
            chunk=chunk,
        )
        self.options.check(balancer)
        self.balancer = balancer
        self.tasks = tuple(tasks)
        shared, private = partition.members(shared), partition.members(private)
        self._refresh = Refresh(refresh)
        self.step = 0  # named in errors; to be set after a restart
        device = next((p.device for p in partition.parameters([*shared, *private])), torch.device("cpu"))
        self._device = device.type
        self._ranks = Ranks(process_group, device=device)
        self._rows: Rows | None = None  # the step's micro-batches so far
        self._batch_rows: BatchRows | None = None  # the same of several batches
        self._shards = Shards(shared, private, ranks=self._ranks)
        with self._shards.whole():
            self.shared = partition.parameters(shared)
            self.private = partition.parameters(private)
            partition.check(self.shared, self.private)
            if not self.shared and not isinstance(balancer, Scalarizer):
                raise ValueError(f"{name} balances shared parameters, and there are none that train.")
            if not isinstance(balancer, Scalarizer):
                partition.check_comparable(shared, name)
            by_group = isinstance(balancer, Weighting) and balancer.groups == "layer"
            self._groups = partition.layer_groups(shared, self.shared) if by_group else [0] * len(self.shared)
            place = balancer.measure if measure is None else measure
            self._measure = Measure(shared, groups=self._groups, place=place, num_tasks=len(tasks), ranks=self._ranks)
            names = partition.names(shared, self.shared)
        self._by_layers = isinstance(balancer, Weighting) and balancer.num_batches == 1 and not self._measure.features
        self._layers()
        self._ways = Ways(
            balancer,
            tasks=self.tasks,
            shared=self.shared,
            private=self.private,
            groups=self._groups,
            measure=self._measure,
            routes=Routes(
                self.shared,
                self.private,
                self._groups,
                route=route,
                chunk=chunk,
                rough=products == "bfloat16",
                names=names,
                tasks=self.tasks,
            ),
            ranks=self._ranks,
            heads=heads,
            normalize=normalize,
        )

    def _layers(self) -> bool:
        """Whether a step goes layer by layer. Asked at each: Lightning casts a model once the engine is made."""
        halves = bool(self.shared) and self.shared[0].dtype not in (torch.float32, torch.float64)
        if self.options.forced and halves:
            raise ValueError(self.options.no_route(self.balancer))
        return self._by_layers and not halves and not self._shards and self.options.route != "sequential"

    @property
    def sharded(self) -> bool:
        """Whether some parameters are divided over the ranks."""
        return bool(self._shards)

    def gather(self) -> None:
        """Gives sharded modules their whole parameters until the step's gradients are there. For all ranks.

        Needed before forwards that a rank may lack, for want of rows: FSDP2's own gathering takes all of them. From
        then on forwards leave the parameters whole, whatever `fully_shard` was told of `reshard_after_forward`. Not
        between a step's gradients and the optimizer's update, which whole ones would not see.
        """
        self._shards.hold()

    def close(self) -> None:
        """Removes the hooks that a measure may have put on shared modules."""
        self._measure.close()

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs to go on alike, beside the balancer's own state: tensors and primitives."""
        return self._refresh.state_dict() | self._measure.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the state of another engine with the same options; a step's micro-batches so far are forgotten."""
        self._forget()
        self._refresh.load_state_dict(state)
        self._measure.load_state_dict(state)

    def backward(
        self,
        losses: Losses | Sequence[Losses],
        *,
        counts: Counts | Sequence[Counts] | None = None,
        scale: float | Tensor = 1.0,
        accumulate: bool = False,
    ) -> BalanceRecord | None:
        """Balances one step and writes `.grad`. Where it raises, the step's micro-batches so far are forgotten.

        Args:
            losses: () mean loss of each task over its labelled elements; tasks may be left out. Of one in half
                precision the scale and the weights that act on it are rounded to its type. For a balancer
                with `num_batches` > 1 a sequence of that many such mappings, and so are `counts`: see
                `Weighting.forward` for what becomes of them. A task is then balanced if every batch has labels of it.
            counts: number of labelled elements behind each loss; None: 1 each. A task with 0 is left out,
                whatever its loss. Over micro-batches, rows are summed as count x gradient and divided once,
                so that masks and uneven batches come out exact.
            scale: factor on the written gradients. A tensor is a loss scaler's scale: where a loss or a number of
                any gradient is not finite, `.grad` is all NaN for the scaler to see, and the balancer's state is what
                it was before.
            accumulate: adds this micro-batch to the step and returns None; the next call without it
                balances the sum. T x P numbers are kept meanwhile, whatever the balancer.

        Returns:
            The record of the step; None while accumulating.

        Raises:
            ValueError: an unknown task, a loss that is no differentiable scalar, another number of batches than
                the balancer takes, a scale that is not above 0, or micro-batches or ranks where the route or the
                refresh takes none.
            RuntimeError: the route can't be taken, or its first step finds it wrong.
            FloatingPointError: a non-finite loss, or a non-finite gradient among those that the balancer is asked
                about, naming task and step, unless under a scaler. Others (all where a Scalarizer has one micro-batch,
                those of private parameters, what is not measured) are not looked at without one, for that costs more
                than a percent of a step.
        """
        try:
            if torch.is_grad_enabled() and not torch.is_autocast_enabled(self._device):
                return self._backward(losses, counts, scale=scale, accumulate=accumulate)
            # As `loss.backward()` works under `no_grad`; and autocast would take inner products in half precision.
            with torch.enable_grad(), torch.autocast(self._device, enabled=False):
                return self._backward(losses, counts, scale=scale, accumulate=accumulate)
        except BaseException:
            self._forget()
            raise

    def _forget(self) -> None:
        """The next call begins a step anew."""
        self._rows = self._batch_rows = None
        self._measure.forget()
        self._shards.forget()

    def _backward(
        self,
        losses: Losses | Sequence[Losses],
        counts: Counts | Sequence[Counts] | None,
        *,
        scale: float | Tensor,
        accumulate: bool,
    ) -> BalanceRecord | None:
        scaled, factor = isinstance(scale, Tensor), float(scale)
        if not factor > 0 or (factor == math.inf and not scaled):  # a loss scaler's may be: the step is skipped
            raise ValueError(f"scale is a factor on gradients, above 0 and finite; got {factor}.")
        batches = self._read(losses, counts)
        for one in batches:
            if not scaled and one.totals.bad is not None:
                refuse_non_finite("loss", one.totals.bad, tasks=self.tasks, step=self.step)
        batch, totals = batches[0], batches[0].totals
        self.options.check_step(several=accumulate or self._rows is not None, alone=batch.alone and not self._shards)
        kept = self._refresh.kept(totals.active)
        self._shards.gather()
        before = copy.deepcopy(self.balancer.state_dict()) if scaled and not accumulate else None
        if len(batches) > 1:
            self._batch_rows = self._batch_rows or BatchRows(
                self.shared, self.private, num_tasks=len(self.tasks), ranks=self._ranks
            )
            self._measure.see(batch)
            self._batch_rows.add(batches, factor)
            if accumulate:
                return None
            several, self._batch_rows = self._batch_rows, None
            record = self._ways.by_batches(several, factor, scaled=scaled, step=self.step)
        elif accumulate or self._rows is not None:
            self._rows = self._rows or self._new_rows(weigh=True)
            self._measure.see(batch)
            self._rows.add(batch, factor)
            if accumulate:
                return None
            rows, self._rows = self._rows, None
            record = self._ways.by_rows(rows, factor, scaled=scaled, step=self.step)
        elif not totals.active or totals.bad is not None:
            record = self._ways.skip(totals.active, totals.means)
        elif kept is not None:
            record = self._ways.by_kept_weights(batch, kept, factor)
        elif isinstance(self.balancer, Scalarizer):
            record = self._ways.by_objective(batch, factor, sharded=self.sharded)
        elif self._layers() and batch.alone and not self._measure.everywhere:
            record = self._ways.by_measured_layers(batch, factor, scaled=scaled, step=self.step)
        elif not self._measure.everywhere:
            record = self._ways.by_measured_rows(batch, factor, scaled=scaled, step=self.step)
        elif self._layers() and batch.alone:
            record = self._ways.by_layers(batch, factor, scaled=scaled, step=self.step)
        else:
            rows = self._new_rows(weigh=False)
            rows.add(batch, factor)
            record = self._ways.by_rows(rows, factor, scaled=scaled, step=self.step)
        record = self._ways.settle(record, before)
        self._shards.hand_over()
        self.step += 1
        self._refresh.see(record, totals.active)
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
