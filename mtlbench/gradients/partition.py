"""Who is shared and who is private: flat, ordered, disjoint lists of trainable parameters."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

Modules = nn.Module | Iterable[nn.Module | nn.Parameter]


def members(modules: Modules) -> list[nn.Module | nn.Parameter]:
    """The argument as a list of modules and bare parameters."""
    return [modules] if isinstance(modules, nn.Module) else list(modules)


def parameters(modules: Modules) -> list[nn.Parameter]:
    """The trainable parameters, each once, in registration order."""
    found: dict[int, nn.Parameter] = {}
    for member in members(modules):
        for parameter in [member] if isinstance(member, nn.Parameter) else member.parameters():
            if parameter.requires_grad:
                found.setdefault(id(parameter), parameter)
    return list(found.values())


def check(shared: list[nn.Parameter], private: list[nn.Parameter]) -> None:
    """Refuses partitions that the engine can't write gradients for.

    Raises:
        ValueError: a parameter is on both sides, or the shared parameters differ in dtype or device.
    """
    both = {id(p) for p in shared} & {id(p) for p in private}
    if both:
        raise ValueError(f"{len(both)} parameters are given as shared and as private; each belongs to one side.")
    kinds = {(p.dtype, p.device) for p in shared}
    if len(kinds) > 1:
        raise ValueError(f"Shared parameters must have one dtype and one device, got {sorted(map(str, kinds))}.")


def layer_groups(modules: Modules, shared: list[nn.Parameter]) -> list[int]:
    """For each shared parameter the index of its group: one group for each module that owns some directly."""
    group_of: dict[int, int] = {}
    groups = 0
    for member in members(modules):
        owners = (
            [[member]] if isinstance(member, nn.Parameter) else [m.parameters(recurse=False) for m in member.modules()]
        )
        for owner in owners:
            fresh = [p for p in owner if p.requires_grad and id(p) not in group_of]
            if fresh:
                group_of |= dict.fromkeys(map(id, fresh), groups)
                groups += 1
    return [group_of[id(p)] for p in shared]
