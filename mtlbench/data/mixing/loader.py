"""The loader that follows a mixing, and the one that passes once over every row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mtlbench.data.masking import Masking
from mtlbench.data.mixing.base import Draw, Mixing
from mtlbench.data.tables import Batch, Ragged, Split

Draws = Draw | list[Draw]


class Plan(Sampler[Draws]):
    """Yields the draws of one epoch, from where a checkpoint left off.

    `handed` counts the steps' batches that the training has received, not those that workers have fetched ahead.

    Args:
        mixing: what an epoch draws.
        batches: batches a step. Where it takes several, its draw is a list of that many successive draws of the mixing:
            they share no row until a dataset begins again, and an epoch has as much data in so many times fewer steps.

    Raises:
        ValueError: an epoch of the mixing has fewer draws than a step takes.
    """

    def __init__(self, mixing: Mixing, *, batches: int = 1) -> None:
        if mixing.steps_per_epoch < batches:
            raise ValueError(
                f"A step takes {batches} batches, and an epoch of the mixing has {mixing.steps_per_epoch}. Use a "
                f"smaller data.batch_size, or mixing.steps_per_epoch={batches} or more."
            )
        self.mixing, self.batches, self.epoch, self.handed = mixing, batches, 0, 0

    def __len__(self) -> int:
        return self.mixing.steps_per_epoch // self.batches

    def __iter__(self) -> Iterator[Draws]:
        return (self._draw(step) for step in range(self.handed, len(self)))

    def _draw(self, step: int) -> Draws:
        draws = [self.mixing.plan(self.epoch, step * self.batches + index) for index in range(self.batches)]
        return draws if self.batches > 1 else draws[0]

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; stays where it is if that epoch is under way."""
        if epoch != self.epoch:
            self.epoch, self.handed = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "handed": self.handed, "steps_per_epoch": len(self)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Raises ValueError where the checkpoint's epoch has another number of steps."""
        if state["steps_per_epoch"] != len(self):
            raise ValueError(
                f"The checkpoint stands in an epoch of {state['steps_per_epoch']} steps, this run's has {len(self)}: "
                "data, data.batch_size and mixing must be those of the run that is resumed."
            )
        self.epoch, self.handed = state["epoch"], state["handed"]


class Union(Dataset[Any]):
    """Several datasets as one: an item is what a draw asks for, {dataset: {"inputs": ..., "targets": ...}}.

    For a list of draws the item is the list of theirs.

    Args:
        splits: dataset -> its rows.
        rank, ranks: this rank has every so-manieth row of a draw, from its own number on. A dataset of which none is
            left for it is left out; rank 0 has a row of each. `drawn` says how many rows all ranks have together.
    """

    def __init__(self, splits: Mapping[str, Split], *, rank: int = 0, ranks: int = 1) -> None:
        self.splits, self.rank, self.ranks = dict(splits), rank, ranks

    def __getitem__(self, draw: Draws) -> dict[str, Batch] | list[dict[str, Batch]]:
        if isinstance(draw, list):
            return [self._batch(one) for one in draw]
        return self._batch(draw)

    def _batch(self, draw: Draw) -> dict[str, Batch]:
        return {
            name: {**self.splits[name].batch(rows[self.rank :: self.ranks]), "drawn": len(rows)}
            for name, rows in draw.items()
            if len(rows) > self.rank
        }


def lengths(splits: Mapping[str, Split]) -> dict[str, Tensor]:
    """Dataset -> (N,) lengths of its inputs, by the first one of several lengths; without datasets that have none."""
    ragged = {
        name: [value for value in split.inputs.values() if isinstance(value, Ragged)] for name, split in splits.items()
    }
    return {name: values[0].offsets.diff() for name, values in ragged.items() if values}


def batches_of(item: Any) -> list[Any]:
    """The batches of one step's item, which is a list where a step takes several."""
    return item if isinstance(item, list) else [item]


class PlanLoader(DataLoader[Batch]):
    """Loads what a `Plan` says. Lightning saves and restores its state, since it has both methods.

    Attributes:
        maskings: what masks its batches, here rather than in workers: anew at each step, by a seed of its own.
    """

    maskings: Sequence[Masking] = ()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, hence lazy: Lightning makes the iterator before it sets the epoch, and workers begin at once.
        plan, union = self.plan, self.dataset
        assert isinstance(union, Union)
        if plan.handed == len(plan):
            plan.set_epoch(plan.epoch + 1)
        for batch in super().__iter__():
            for index, part in enumerate(batches_of(batch)):
                draw = plan.handed * plan.batches + index
                for masking in self.maskings:
                    own = (union.rank,) if union.rank else ()
                    masking.mask(part, seed=plan.mixing.key("mask", masking.task, plan.epoch, draw, *own))
            plan.handed += 1
            yield batch

    @property
    def plan(self) -> Plan:
        assert isinstance(self.sampler, Plan)
        return self.sampler

    def state_dict(self) -> dict[str, int]:
        return self.plan.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.plan.load_state_dict(state)


def make_loader(union: Union, plan: Plan, *, num_workers: int, maskings: Sequence[Masking] = ()) -> PlanLoader:
    """The training loader: one batch a step, collated by the dataset itself, masked where a task wants that."""
    # A private generator: making an iterator draws from it, and would otherwise shift the global random numbers.
    loader = PlanLoader(
        union,
        sampler=plan,
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),
        collate_fn=_as_it_is,
    )
    loader.maskings = maskings
    return loader


def evaluation_loader(
    splits: Mapping[str, Split], *, batch_size: int, rank: int = 0, ranks: int = 1, trial: bool = False
) -> DataLoader[Batch]:
    """Every row once and in order, one dataset after another; of several ranks each has every so-manieth batch.

    All ranks have as many batches, the last of which may be empty. In a `trial` each has rows of all datasets: of a few
    batches the first ones would leave out the later datasets.
    """
    draws: list[Draw] = [
        {name: rows} for name, split in splits.items() for rows in torch.split(torch.arange(len(split)), batch_size)
    ]
    if trial:
        draws = [{name: torch.arange(len(split))[:batch_size] for name, split in splits.items()}] * len(draws)
    draws = [*draws, *([{}] * (-len(draws) % ranks))][rank::ranks]
    return DataLoader(Union(splits), sampler=draws, batch_size=None, generator=torch.Generator(), collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
