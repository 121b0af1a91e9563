"""Every dataset at every step."""

from __future__ import annotations

from typing import Any

from mtlbench.data.mixing.base import Draw, Mixing


class Joint(Mixing):
    """Every dataset at every step, `batch_size` rows of each.

    By itself an epoch is one pass over the largest dataset, whose last batch may be short; shorter datasets begin
    again, newly shuffled, as often as it takes.
    """

    every_dataset = True

    def __init__(self, *, steps_per_epoch: int | None = None, **common: Any) -> None:
        super().__init__(steps_per_epoch=steps_per_epoch, **common)
        largest = max(self.sizes.values())
        self.steps_per_epoch = -(-largest // self.batch_size) if steps_per_epoch is None else steps_per_epoch
        self._once = {name for name, size in self.sizes.items() if size == largest} if steps_per_epoch is None else ()

    def plan(self, epoch: int, step: int) -> Draw:
        start = step * self.batch_size
        return {
            name: self.draw(
                name, epoch=epoch, start=start, stop=min(start + self.batch_size, size if name in self._once else 2**62)
            )
            for name, size in self.sizes.items()
        }
