"""The last shared layer, where GradNorm measures gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mtlbench.gradients.graph import Graphs
from mtlbench.gradients.losses import MicroBatch
from mtlbench.gradients.partition import Modules, members
from mtlbench.gradients.ranks import Ranks


class LastLayer:
    """The last executed shared module that owns a parameter of two or more dimensions which every task's loss reaches.

    Watches forwards through hooks, so it must be made before the first, and removes them once every task has been
    seen: until then the layer is that of the tasks so far. "Executed" rules out modules that stand last in the code
    but serve one task alone (BERT's pooler, which tagging never reaches).

    Args:
        shared: modules.
        num_tasks: T.

    Raises:
        ValueError: `shared` holds bare parameters alone, so there is no order of execution to watch.
    """

    def __init__(self, shared: Modules, num_tasks: int) -> None:
        self.parameters: list[nn.Parameter] = []
        self._num_tasks = num_tasks
        self._seen: set[int] = set()  # tasks
        self._common: list[nn.Module] = []  # reached by all of those, the last first
        self._executed: dict[nn.Module, None] = {}  # the last one last
        # By the member's place too: members may have one name for different modules.
        self._names: dict[nn.Module, str] = {}
        for index, member in enumerate(members(shared)):
            if isinstance(member, nn.Module):
                self._names |= {m: f"{index}.{name}" for name, m in member.named_modules() if _matrices(m)}
        if not self._names:
            raise ValueError(
                "engine.measure=last_layer needs shared modules that own a parameter of two or more dimensions; "
                "got none. Give the engine modules instead of bare parameters, or measure=<module>."
            )
        # What trains now: a part that is frozen at a restart may train again later.
        self._own = {m: [p for p in m.parameters(recurse=False) if p.requires_grad] for m in self._names}
        self._hooks = [m.register_forward_hook(self._note) for m in self._names]

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._executed.pop(module, None)
            self._executed[module] = None

    def find(self, batch: MicroBatch, ranks: Ranks) -> list[nn.Parameter]:
        """The layer's parameters; looked for where a task has its first losses, whose graph must then be alive.

        Raises:
            RuntimeError: no executed shared layer is reached by every loss, on every rank that has losses.
        """
        if not self._seen.issuperset(batch.totals.active):
            reach, all_losses = Graphs((), ()).read(batch.losses).reach, (1 << len(batch.losses)) - 1
            names = [
                self._names[module]
                for module in reversed(self._executed)
                if (not self._seen or module in self._common)
                and any(reach.get(id(p), 0) == all_losses for p in self._own[module] if p.requires_grad and p.ndim >= 2)
            ]
            common = ranks.common(names if batch.losses else None)
            if not common:
                raise RuntimeError(
                    "No shared layer was executed since the engine was made that every task's loss reaches. "
                    "Make the engine before the first forward, or say measure=<module>."
                )
            self._settle(common, self._seen.union(batch.totals.active))
        return self.parameters

    def _settle(self, names: Sequence[str], seen: set[int]) -> None:
        modules = {name: module for module, name in self._names.items()}
        self._common, self._seen = [modules[name] for name in names], seen
        self.parameters = [p for module in self._common[:1] for p in self._own[module]]
        if len(seen) == self._num_tasks:
            self.close()

    def state_dict(self) -> dict[str, Any]:
        """The layers that the tasks so far have in common, and those tasks."""
        return {"names": [self._names[module] for module in self._common], "seen": sorted(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._settle(state["names"], set(state["seen"]))

    def close(self) -> None:
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._executed = [], {}


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if p.requires_grad and p.ndim >= 2]
