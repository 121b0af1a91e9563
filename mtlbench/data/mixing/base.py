"""Which rows of which dataset a step draws: pure functions of (seed, epoch, step), hence alike on all ranks."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

Draw = dict[str, Tensor]  # dataset -> (B,) int64 rows


class Mixing(ABC):
    """What each step of an epoch draws.

    Args:
        sizes: dataset -> its number of training rows.
        batch_size: rows of one batch of a dataset.
        seed: of the run.
        steps_per_epoch: None for the mixing's own length of an epoch.
        bucket: batches of similar length: within an epoch's permutation, each window of so many batches is sorted by
            length, cut into batches, and these are shuffled. 1: no sorting.
        lengths: dataset -> (N,) lengths of its rows; needed where `bucket` is above 1.

    Raises:
        ValueError: a size, `batch_size`, `bucket` or `steps_per_epoch` is not positive, or lengths are missing.
    """

    # Whether every step draws from every dataset; balancers that need all tasks ask for it.
    every_dataset: bool
    steps_per_epoch: int

    def __init__(
        self,
        *,
        sizes: Mapping[str, int],
        batch_size: int,
        seed: int,
        steps_per_epoch: int | None = None,
        bucket: int = 1,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> None:
        numbers = {f"size of '{name}'": size for name, size in sizes.items()}
        numbers |= {"batch_size": batch_size, "bucket": bucket}
        if steps_per_epoch is not None:
            numbers["steps_per_epoch"] = steps_per_epoch
        for what, number in numbers.items():
            if number < 1:
                raise ValueError(f"Mixing: the {what} must be at least 1, got {number}.")
        if not sizes:
            raise ValueError("Mixing: there is no dataset to draw from.")
        missing = sorted(set(sizes) - set(lengths or {})) if bucket > 1 else []
        if missing:
            raise ValueError(
                f"Mixing: bucket={bucket} sorts rows by length, and the inputs of {missing} all have the same. "
                "Use mixing.bucket=1."
            )
        self.sizes, self.batch_size, self.seed = dict(sizes), batch_size, seed
        self.bucket, self._lengths = bucket, lengths
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

    def key(self, *names: str | int) -> int:
        """A seed for what is named so: none depends on what was drawn before."""
        text = "/".join(map(str, (self.seed, *names)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")

    def _permutation(self, dataset: str, *, epoch: int, lap: int) -> Tensor:
        held = self._laps.get(dataset)
        if held is None or held[:2] != (epoch, lap):  # the last one is kept: steps follow each other
            generator = torch.Generator().manual_seed(self.key(dataset, epoch, lap))
            rows = torch.randperm(self.sizes[dataset], generator=generator)
            if self.bucket > 1:
                rows = self._bucketed(dataset, rows, lap=lap, generator=generator)
            held = self._laps[dataset] = (epoch, lap, rows)
        return held[2]

    def _bucketed(self, dataset: str, rows: Tensor, *, lap: int, generator: torch.Generator) -> Tensor:
        """The same rows (N,), in batches of similar length where batches begin in this lap of the stream."""
        assert self._lengths is not None
        lengths, size = self._lengths[dataset][rows], self.batch_size
        begun = min(-lap * len(rows) % size, len(rows))  # the rest of a batch that the lap before began
        parts = [rows[:begun]]
        windows = zip(rows[begun:].split(self.bucket * size), lengths[begun:].split(self.bucket * size), strict=True)
        for window, keys in windows:
            window = window[keys.argsort(stable=True)]
            whole = len(window) // size
            order = torch.randperm(whole, generator=generator)
            parts += [window[: whole * size].view(whole, size)[order].flatten(), window[whole * size :]]
        return torch.cat(parts)
