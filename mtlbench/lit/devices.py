"""Lightning's Trainer on one device or several: one process each, between which the gradient engine does the sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from mtlbench import processes
from mtlbench.lit.checkpoint_io import WholeCheckpoints
from mtlbench.lit.ddp import EngineDDP
from mtlbench.lit.fsdp import EngineFSDP
from mtlbench.lit.signals import KeepSigterm
from mtlbench.lit.stopping import StopAtStep


class SrunEnvironment(SLURMEnvironment):
    """Slurm's numbering of the processes that srun has started; what they go on from is the run's own checkpoint."""

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    @staticmethod
    def _validate_srun_variables() -> None:
        """Nothing: Lightning refuses `srun -n 2`, which counts tasks without saying how many a node gets."""


ENVIRONMENTS: dict[str, Callable[[], ClusterEnvironment]] = {
    "mtlbench": LightningEnvironment,
    "torchrun": TorchElasticEnvironment,
    "srun": SrunEnvironment,
}


def make_trainer(
    *,
    devices: Any = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    timeout: float = 1800,
    max_epochs: int | None = None,
    max_steps: int = -1,
    **arguments: Any,
) -> Trainer:
    """Lightning's Trainer in this process, which is one of several where there are more devices than one.

    Args:
        devices, num_nodes: as of `Trainer`.
        strategy: auto or ddp, which on several devices are the same; or fsdp (see `EngineFSDP`).
        timeout: seconds that a rank waits for another.
        max_epochs, max_steps: the training ends with the first of them; None or -1: not by it.
        arguments: the others of `Trainer`.

    Raises:
        ValueError: another strategy, one that does not fit the devices, or the other processes were not started.
    """
    if strategy not in ("auto", "ddp", "fsdp"):
        raise ValueError(f"strategy={strategy!r}: expected auto, ddp or fsdp.")
    place = processes.place()
    # One process alone gets one too: in a Slurm job Lightning would choose Slurm's, which requeues by itself.
    environment = ENVIRONMENTS["mtlbench" if place is None else place.started_by]()
    given = arguments.pop("plugins", None) or []
    plugins = [environment, WholeCheckpoints(), *(given if isinstance(given, Sequence) else [given])]
    if place is not None:
        arguments["strategy"] = (EngineFSDP if strategy == "fsdp" else EngineDDP)(timeout=timeout)
    stop = [StopAtStep(max_steps)] if max_steps > 0 else []
    arguments["callbacks"] = [*arguments.get("callbacks", ()), KeepSigterm(), *stop]
    arguments["max_epochs"] = -1 if max_epochs is None else max_epochs
    # The loader gives each rank its part; Lightning's sampler would repeat examples.
    trainer = Trainer(devices=devices, num_nodes=num_nodes, use_distributed_sampler=False, plugins=plugins, **arguments)
    if place is None and trainer.world_size > 1:
        raise ValueError(
            f"{trainer.world_size} devices take as many processes, and this is one alone. mtlbench.train.train starts "
            "them, as does torchrun."
        )
    if place is None and strategy == "fsdp":
        raise ValueError("strategy='fsdp' on one device: there are no others to divide the parameters with. Say auto.")
    return trainer


def check_strategy(trainer: Trainer) -> None:
    """Raises ValueError for a trainer of another strategy than one device's and `EngineDDP`."""
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, EngineDDP)):
        raise ValueError(
            f"{type(trainer.strategy).__name__} runs its own backward pass, past the balancer, or shards the "
            "parameters its own way. Make the trainer by mtlbench.lit.devices.make_trainer, with strategy=auto, or "
            "fsdp for shards."
        )


def count(accelerator: str, devices: Any) -> int:
    """How many devices of this machine `auto` or -1 means."""
    environment = LightningEnvironment()  # also in a Slurm job, where Lightning would look for srun's settings
    trainer = Trainer(
        accelerator=accelerator, devices=devices, logger=False, enable_checkpointing=False, plugins=[environment]
    )
    return trainer.num_devices


def average_statistics(model: nn.Module) -> None:
    """Gives BatchNorm's running statistics the mean over the ranks, each of which has seen its part of the batch."""
    found = [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if found:
        flat = torch.cat([buffer.flatten() for buffer in found])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for buffer, mean in zip(found, flat.split([buffer.numel() for buffer in found]), strict=True):
            buffer.copy_(mean.view_as(buffer))
