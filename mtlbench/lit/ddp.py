"""A copy of the model in each of several processes, between which the gradient engine does the sums."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn


class EngineDDP(DDPStrategy):
    """A copy of the model on each device, all equal to the bit after every step.

    DDP without torch's DistributedDataParallel: the engine takes every gradient by `autograd.grad`, of which that
    wrapper sees nothing. It would keep a second copy of the gradients, and send all buffers at every forward.

    Args:
        timeout: seconds that a rank waits for another.
    """

    def __init__(self, *, timeout: float) -> None:
        super().__init__(timeout=datetime.timedelta(seconds=timeout))

    def _configure_launcher(self) -> None:
        """Nothing to launch: whoever started this process has started the others."""

    def _get_process_group_backend(self) -> str:
        # Small sums are of numbers on the CPU, wherever the model is.
        return "gloo" if self.root_device.type == "cpu" else "cpu:gloo,cuda:nccl"

    def configure_ddp(self) -> None:
        """Checks, instead of wrapping the model, that all ranks start alike.

        Raises:
            RuntimeError: naming the ranks whose model differs from the first one's.
        """
        assert isinstance(self.model, nn.Module)
        digests: list[Any] = [None] * self.world_size
        dist.all_gather_object(digests, digest(self.model))
        others = [str(rank) for rank, found in enumerate(digests) if found != digests[0]]
        if others:
            raise RuntimeError(
                f"The model of rank {', '.join(others)} differs from that of rank 0 before the first step. All ranks "
                "need the same data, configuration and versions: `mtlbench doctor` on each machine shows the latter."
            )


def digest(model: nn.Module) -> str:
    """Of all parameters and buffers: equal models have equal ones."""
    found = hashlib.blake2b()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        if isinstance(value, Tensor):  # extra state is none
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
