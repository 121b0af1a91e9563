"""Which rows of which dataset a step draws: pure functions of (seed, epoch, step), and the loader that follows them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mtlbench.data.tables import Batch, Split

Draw = dict[str, Tensor]  # dataset -> (B,) int64 rows


class Mixing(ABC):
    """What each step of an epoch draws.

    Args:
        sizes: dataset -> its number of training rows.
        batch_size: rows that a step draws from a dataset.
        seed: of the run.
        steps_per_epoch: None for the mixing's own length of an epoch.

    Raises:
        ValueError: a size, `batch_size` or `steps_per_epoch` is not positive.
    """

    # Whether every step draws from every dataset; balancers that need all tasks ask for it.
    every_dataset: ClassVar[bool]
    steps_per_epoch: int

    def __init__(self, *, sizes: Mapping[str, int], batch_size: int, seed: int, steps_per_epoch: int | None) -> None:
        numbers = {**{f"size of '{name}'": size for name, size in sizes.items()}, "batch_size": batch_size}
        if steps_per_epoch is not None:
            numbers["steps_per_epoch"] = steps_per_epoch
        for what, number in numbers.items():
            if number < 1:
                raise ValueError(f"Mixing: the {what} must be at least 1, got {number}.")
        if not sizes:
            raise ValueError("Mixing: there is no dataset to draw from.")
        self.sizes, self.batch_size, self.seed = dict(sizes), batch_size, seed
        self._laps: dict[str, tuple[int, int, Tensor]] = {}

    @abstractmethod
    def plan(self, epoch: int, step: int) -> Draw:
        """The rows of step `step`, counted from 0 in its epoch. The same for the same arguments, always."""

    def draw(self, dataset: str, *, epoch: int, start: int, stop: int) -> Tensor:
        """Positions start to stop of the dataset's stream in an epoch: one fresh permutation after another."""
        size, parts = self.sizes[dataset], []
        while start < stop:
            lap, first = divmod(start, size)
            last = min(size, first + stop - start)
            parts.append(self._permutation(dataset, epoch=epoch, lap=lap)[first:last])
            start += last - first
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _permutation(self, dataset: str, *, epoch: int, lap: int) -> Tensor:
        held = self._laps.get(dataset)
        if held is None or held[:2] != (epoch, lap):  # the last one is kept: steps follow each other
            # A seed of its own for every permutation, so that none depends on what was drawn before.
            key = hashlib.blake2b(f"{self.seed}/{dataset}/{epoch}/{lap}".encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
            held = self._laps[dataset] = (epoch, lap, torch.randperm(self.sizes[dataset], generator=generator))
        return held[2]


class Joint(Mixing):
    """Every dataset at every step, `batch_size` rows of each.

    By itself an epoch is one pass over the largest dataset, whose last batch may be short; shorter datasets begin
    again, newly shuffled, as often as it takes.
    """

    every_dataset = True

    def __init__(
        self, *, sizes: Mapping[str, int], batch_size: int, seed: int, steps_per_epoch: int | None = None
    ) -> None:
        super().__init__(sizes=sizes, batch_size=batch_size, seed=seed, steps_per_epoch=steps_per_epoch)
        largest = max(sizes.values())
        self.steps_per_epoch = -(-largest // batch_size) if steps_per_epoch is None else steps_per_epoch
        self._once = {name for name, size in sizes.items() if size == largest} if steps_per_epoch is None else set()

    def plan(self, epoch: int, step: int) -> Draw:
        start = step * self.batch_size
        return {
            name: self.draw(
                name, epoch=epoch, start=start, stop=min(start + self.batch_size, size if name in self._once else 2**62)
            )
            for name, size in self.sizes.items()
        }


class Plan(Sampler[Draw]):
    """Yields the draws of one epoch, from where a checkpoint left off.

    `handed` counts the batches that the training has received, not those that workers have fetched ahead.
    """

    def __init__(self, mixing: Mixing) -> None:
        self.mixing, self.epoch, self.handed = mixing, 0, 0

    def __len__(self) -> int:
        return self.mixing.steps_per_epoch

    def __iter__(self) -> Iterator[Draw]:
        return (self.mixing.plan(self.epoch, step) for step in range(self.handed, len(self)))

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


class Union(Dataset[Batch]):
    """Several datasets as one: an item is what a draw asks for, {dataset: {"inputs": ..., "targets": ...}}."""

    def __init__(self, splits: Mapping[str, Split]) -> None:
        self.splits = dict(splits)

    def __getitem__(self, draw: Draw) -> dict[str, Batch]:  # type: ignore[override]
        return {name: self.splits[name].batch(rows) for name, rows in draw.items()}


class PlanLoader(DataLoader[Batch]):
    """Loads what a `Plan` says. Lightning saves and restores its state, since it has both methods."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, hence lazy: Lightning makes the iterator before it sets the epoch, and workers begin at once.
        plan = self.plan
        if plan.handed == len(plan):
            plan.set_epoch(plan.epoch + 1)
        for batch in super().__iter__():
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


def make_loader(union: Union, plan: Plan, *, num_workers: int) -> PlanLoader:
    """The training loader: one batch a step, collated by the dataset itself."""
    # A private generator: making an iterator draws from it, and would otherwise shift the global random numbers.
    return PlanLoader(
        union,
        sampler=plan,
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),
        collate_fn=_as_it_is,
    )


def evaluation_loader(splits: Mapping[str, Split], *, batch_size: int) -> DataLoader[Batch]:
    """Every row once and in order, one dataset after another."""
    draws: Sequence[Draw] = [
        {name: rows} for name, split in splits.items() for rows in torch.split(torch.arange(len(split)), batch_size)
    ]
    return DataLoader(Union(splits), sampler=draws, batch_size=None, generator=torch.Generator(), collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
