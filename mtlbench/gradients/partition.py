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


def names(modules: Modules, shared: list[nn.Parameter]) -> list[str]:
    """What to call each shared parameter in messages: its path in its module, or its shape where it is in none."""
    found: dict[int, str] = {}
    for member in members(modules):
        if isinstance(member, nn.Module):
            for name, parameter in member.named_parameters():
                found.setdefault(id(parameter), f"{type(member).__name__}.{name}")
    return [found.get(id(p), f"a bare parameter of shape {tuple(p.shape)}") for p in shared]


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


def check_comparable(modules: Modules, balancer: str) -> None:
    """Refuses shared embeddings with sparse gradients, which have no rows to compare, and complex parameters.

    Raises:
        ValueError: there is one that trains.
    """
    if any(parameter.is_complex() for parameter in parameters(modules)):
        raise ValueError(
            f"{balancer} compares gradients of single tasks, which are real, and there are complex shared parameters: "
            "keep them as real ones of twice the numbers and use them through torch.view_as_complex."
        )
    for member in members(modules):
        for module in member.modules() if isinstance(member, nn.Module) else ():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and module.weight.requires_grad:
                raise ValueError(
                    f"{balancer} compares gradients of single tasks, which are dense, and a shared "
                    f"{type(module).__name__} has sparse=True: say sparse=False there."
                )


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
