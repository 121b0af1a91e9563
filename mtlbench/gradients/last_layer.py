"""The last shared layer, where GradNorm measures gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.gradients.partition import Modules, members
from mtlbench.gradients.ranks import Ranks


class LastLayer:
    """The last executed shared module that owns a parameter of two or more dimensions which every task's loss reaches.

    Watches the first forward through hooks, so it must be made before that, and removes them once the
    layer is known. "Executed" rules out modules that stand last in the code but serve one task alone
    (BERT's pooler, which tagging never reaches).

    Raises:
        ValueError: `shared` holds bare parameters alone, so there is no order of execution to watch.
    """

    def __init__(self, shared: Modules) -> None:
        self.parameters: list[nn.Parameter] | None = None
        self.name = ""
        self._executed: list[tuple[str, nn.Module]] = []
        self._names: dict[nn.Module, str] = {}
        for member in members(shared):
            if isinstance(member, nn.Module):
                self._names |= {m: name for name, m in member.named_modules() if _matrices(m)}
        if not self._names:
            raise ValueError(
                "measure='last_layer' needs shared modules that own a parameter of two or more dimensions; "
                "got none. Give the engine modules instead of bare parameters, or measure=<module>."
            )
        self._hooks = [m.register_forward_hook(self._note) for m in self._names]

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._executed.append((self._names[module], module))

    def find(self, losses: Sequence[Tensor], ranks: Ranks) -> list[nn.Parameter]:
        """The layer's parameters, found at the first call from the losses of the active tasks.

        Raises:
            RuntimeError: no executed shared layer is reached by every loss, on every rank that has losses.
        """
        if self.parameters is None:
            reached = (name for name, module in reversed(self._executed) if _reached(losses, _trained(module)))
            # On several ranks the last of all common ones; alone the first that is found.
            names = list(islice(reached, 1)) if ranks.size == 1 else ranks.common(list(reached) if losses else None)
            if not names:
                raise RuntimeError(
                    "No shared layer was executed since the engine was made that every task's loss reaches. "
                    "Make the engine before the first forward, or say measure=<module>."
                )
            self.name = names[0]
            self.parameters = next(_trained(module) for module, name in self._names.items() if name == self.name)
            self.close()
        return self.parameters

    def close(self) -> None:
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._executed = [], []


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if p.requires_grad]


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in _trained(module) if p.ndim >= 2]


def _reached(losses: Sequence[Tensor], weights: list[nn.Parameter]) -> bool:
    return all(_reaches(loss, weights) for loss in losses)


def _reaches(loss: Tensor, weights: list[nn.Parameter]) -> bool:
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return any(g is not None and p.ndim >= 2 for g, p in zip(found, weights, strict=True))
