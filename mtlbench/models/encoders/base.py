"""An encoder: an ordered list of stages, each of which maps a state to a state."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

State = dict[str, Tensor]


class Stage(nn.Module):
    """Maps the state's `x` through a module; masks and positions ride along untouched."""

    def __init__(self, module: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module

    def forward(self, state: State) -> State:
        return {**state, "x": self.module(state["x"])}


class Encoder(nn.Module):
    """Stages in order. Soft-sharing modules weave between those of several encoders.

    Args:
        stages: modules from state to state; the first takes the batch's inputs, the last leaves the
            features in `x`: (B, D), or (B, L, D) with an `attention_mask` (B, L).
        features: D.
    """

    def __init__(self, stages: Iterable[nn.Module], *, features: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.features = features

    def forward(self, state: State) -> State:
        for stage in self.stages:
            state = stage(state)
        return state
