"""Where a Gramian is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from mtlbench.gradients.features import FeatureRows, Features
from mtlbench.gradients.last_layer import LastLayer
from mtlbench.gradients.losses import MicroBatch
from mtlbench.gradients.partition import Modules, parameters
from mtlbench.gradients.ranks import Ranks
from mtlbench.gradients.rows import Rows

Where = Literal["parameters", "last_layer", "features"] | nn.Module


class Measure:
    """Takes Gramians at all shared parameters, the last shared layer, the features, or a shared module.

    Args:
        modules: what is shared.
        groups: for each shared parameter the index of its group; one group where not all are measured.
        place: one of the four.
        num_tasks: T.
        ranks: those that train together.

    Raises:
        ValueError: `place` is none of the four, a module that is not shared, or does not fit what is shared.
    """

    def __init__(self, modules: Modules, *, groups: Sequence[int], place: Where, num_tasks: int, ranks: Ranks) -> None:
        self._groups, self._ranks = groups, ranks
        self._shared = parameters(modules)
        self.place: Sequence[nn.Parameter] | LastLayer | Features
        if place == "parameters":
            self.place = self._shared
        elif place == "last_layer":
            self.place = LastLayer(modules, num_tasks)
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
        """What to take the losses' gradients of; the losses' graph must be alive.

        Raises:
            RuntimeError: there is nothing of that kind, or it does not train any more.
        """
        if isinstance(self.place, Features):
            return self.place.take(batch)
        self.see(batch)
        return self._parameters()

    def see(self, batch: MicroBatch) -> None:
        """Lets the last layer be found, from losses whose graph is alive, where rows of all parameters are summed."""
        if isinstance(self.place, LastLayer) and batch.totals.active:
            self.place.find(batch, self._ranks)

    def gramian(self, rows: Rows, jacobian: Tensor, other: Tensor | None = None) -> Tensor:
        """(G, A, A) of rows (A, P) of all shared parameters where measured; with `other` their products with those."""
        if isinstance(rows, FeatureRows):
            return rows.at_features()
        if self.everywhere:
            return rows.gramian(jacobian, self._groups, other, num_groups=max(self._groups) + 1)
        measured = {id(p) for p in self._parameters()}
        return rows.gramian(jacobian, [0 if id(p) in measured else None for p in self._shared], other)

    def _parameters(self) -> list[nn.Parameter]:
        place = self.place.parameters if isinstance(self.place, LastLayer) else self.place
        assert isinstance(place, Sequence)
        found = [p for p in place if p.requires_grad]
        if not found:
            shapes = ", ".join(str(tuple(p.shape)) for p in place)
            raise RuntimeError(
                f"Gradients are measured at parameters of shapes {shapes}, and none of them trains any more. Make "
                "the engine anew, or say engine.measure=parameters."
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        """What was found in the steps so far."""
        return {"last_layer": self.place.state_dict()} if isinstance(self.place, LastLayer) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.place, LastLayer):
            self.place.load_state_dict(state["last_layer"])

    def forget(self) -> None:
        """Drops what was watched of a step that is not balanced."""
        if isinstance(self.place, Features):
            self.place.forget()

    def close(self) -> None:
        """Removes the hooks on shared modules."""
        if isinstance(self.place, LastLayer | Features):
            self.place.close()
