"""FSDP2: gradients are taken of the whole parameters that `fully_shard` gathers; each rank keeps its part of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

import torch.distributed as dist
from torch import Tensor, nn

from mtlbench.gradients.partition import Modules, members
from mtlbench.gradients.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


class Sharded(NamedTuple):
    """A parameter as forwards use it and as each rank keeps it, a module that owns it, and its name there."""

    whole: nn.Parameter
    divided: DTensor
    owner: nn.Module
    name: str


class Shards:
    """The parameters that `fully_shard` has divided over the ranks.

    A forward uses whole ones, gathered into the same leaf tensors at each step: those are in the graph, and of those
    the engine takes and writes gradients. The divided ones are what optimizers and state dicts hold.

    Args:
        partitions: modules and parameters, those of `fully_shard` among them.
        ranks: those that train together.

    Raises:
        ValueError: parameters are divided in another way, over other ranks, or are given without their modules.
    """

    def __init__(self, *partitions: Modules, ranks: Ranks) -> None:
        self._modules: list[FSDPModule] = []
        self._found: list[Sharded] = []
        if not (dist.is_available() and dist.is_initialized()):  # without which nothing is divided
            return
        from torch.distributed.fsdp import FSDPModule  # 0.3 s of import
        from torch.distributed.tensor import DTensor

        given = [member for partition in partitions for member in members(partition)]
        modules = dict.fromkeys(m for member in given if isinstance(member, nn.Module) for m in member.modules())
        self._modules = [module for module in modules if isinstance(module, FSDPModule)]
        for module in self._modules:
            # Gathering and freeing again amid each task's backward would be for all ranks, and one may lack the task.
            module.set_reshard_after_backward(False, recurse=False)
        self._reshard()
        places = [(module, name) for module in modules for name, _ in module.named_parameters(recurse=False)]
        divided = [getattr(module, name) for module, name in places]
        with self.whole():
            whole = [getattr(module, name) for module, name in places]
            if any(isinstance(p, DTensor) for p in (*whole, *given)):
                raise ValueError(
                    "Some parameters are divided over ranks, and gradients of single tasks are of whole ones, which "
                    "only fully_shard's modules gather: give the engine those modules, not their parameters nor "
                    "modules inside them (shard the encoder and the heads by themselves, not the model around them); "
                    "and leave tensor parallelism out."
                )
        found = {
            id(d): Sharded(w, d, *place)
            for w, d, place in zip(whole, divided, places, strict=True)
            if isinstance(d, DTensor)
        }
        self._found = list(found.values())  # what modules share, once
        for size in {one.divided.device_mesh.size() for one in self._found} - {ranks.size}:
            raise ValueError(
                f"Parameters are divided over {size} ranks, and the engine balances the tasks of {ranks.size}: give "
                "both the same."
            )

    def __bool__(self) -> bool:
        return bool(self._found)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the modules own their whole parameters."""
        self.gather()
        try:
            yield
        finally:
            self._reshard()

    def gather(self) -> None:
        """Gives the modules their whole parameters. For all ranks, before a backward that one of them may lack."""
        for module in self._modules:
            module.unshard()

    def hold(self) -> None:
        """The same before forwards that a rank may lack: those that run free nothing, or the ranks would differ."""
        for module in self._modules:
            module.set_reshard_after_forward(False, recurse=False)
        self.gather()

    def hand_over(self) -> None:
        """Moves each whole parameter's `.grad`, equal on all ranks, to the divided one's: this rank's part of it."""
        self._reshard()
        for whole, divided, *_ in self._found:
            grad, whole.grad, divided.grad = whole.grad, None, None
            if grad is not None:
                divided.grad = part(grad.to(divided.dtype), divided)

    def forget(self) -> None:
        """Drops gradients of a step that is not finished: FSDP2 would add them to those of the next."""
        self._reshard()
        for one in self._found:
            one.whole.grad = None

    def _reshard(self) -> None:
        for whole, divided, owner, name in self._found:
            if getattr(owner, name) is whole:  # what was frozen meanwhile FSDP2 would forget
                divided.requires_grad_(whole.requires_grad)
        for module in self._modules:
            module.reshard()


def part(whole: Tensor, like: DTensor) -> DTensor:
    """This rank's part of a tensor that all ranks have, divided as another one is; without communication."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    # A view would keep the whole one in memory.
    return cast(DTensor, everywhere.redistribute(placements=like.placements).clone())
