"""Where a Gramian is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from mtlbench.gradients.features import FeatureRows, Features
from mtlbench.gradients.last_layer import LastLayer
from mtlbench.gradients.losses import MicroBatch
from mtlbench.gradients.partition import Modules, parameters
from mtlbench.gradients.rows import Rows, gramian

Where = Literal["parameters", "last_layer", "features"] | nn.Module


class Measure:
    """Takes Gramians at all shared parameters, the last shared layer, the features, or a shared module.

    Args:
        modules: what is shared.
        groups: for each shared parameter the index of its group; one group where not all are measured.
        place: one of the four.

    Raises:
        ValueError: `place` is none of the four, a module that is not shared, or does not fit what is shared.
    """

    def __init__(self, modules: Modules, *, groups: Sequence[int], place: Where) -> None:
        self._groups = groups
        self._shared = parameters(modules)
        self.place: Sequence[nn.Parameter] | LastLayer | Features
        if place == "parameters":
            self.place = self._shared
        elif place == "last_layer":
            self.place = LastLayer(modules)
        elif place == "features":
            self.place = Features(modules)
        elif isinstance(place, nn.Module):
            self.place = parameters(place)
            if not self.place or not {id(p) for p in self.place} <= {id(p) for p in self._shared}:
                raise ValueError(f"measure={type(place).__name__} must own trainable parameters, all of them shared.")
        else:
            raise ValueError(f"measure is parameters, last_layer, features or a shared module; got {place!r}.")

    @property
    def everywhere(self) -> bool:
        """Whether at all shared parameters."""
        return self.place is self._shared

    @property
    def features(self) -> bool:
        """Whether at the features."""
        return isinstance(self.place, Features)

    def inputs(self, batch: MicroBatch) -> Sequence[Tensor]:
        """What to take the losses' gradients of; the losses' graph must be alive."""
        if isinstance(self.place, Features):
            return self.place.take(batch)
        return self.place.find(batch.losses) if isinstance(self.place, LastLayer) else self.place

    def see(self, batch: MicroBatch) -> None:
        """Lets the last layer be found, from losses whose graph is alive, where rows of all parameters are summed."""
        if isinstance(self.place, LastLayer) and batch.active:
            self.place.find(batch.losses)

    def rows(self, private: Sequence[nn.Parameter], *, num_tasks: int) -> Rows:
        """Rows of all shared parameters, to be summed over micro-batches."""
        if isinstance(self.place, Features):
            return FeatureRows(self._shared, private, num_tasks=num_tasks, features=self.place)
        return Rows(self._shared, private, num_tasks=num_tasks, weigh=True)

    def gramian(self, rows: Rows, jacobian: Tensor, other: Tensor | None = None) -> Tensor:
        """(G, A, A) of rows (A, P) of all shared parameters where measured; with `other` their products with those."""
        if isinstance(rows, FeatureRows):
            return rows.gramian()
        if self.everywhere:
            return gramian(rows.blocks(jacobian), self._groups, None if other is None else rows.blocks(other))
        place = self.place.parameters if isinstance(self.place, LastLayer) else self.place
        assert isinstance(place, Sequence)
        blocks = rows.columns(jacobian, place)
        return gramian(blocks, [0] * len(blocks), None if other is None else rows.columns(other, place))

    def forget(self) -> None:
        """Drops what was watched of a step that is not balanced."""
        if isinstance(self.place, Features):
            self.place.forget()

    def close(self) -> None:
        """Removes the hooks on shared modules."""
        if isinstance(self.place, LastLayer | Features):
            self.place.close()
