"""Callbacks for runs in other processes, named in their configuration."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from mtlbench.lit.ddp import digest

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM, "warn": signal.SIGUSR1}


class Accident(Callback):
    """Something happens to one rank before a step, once: `happened` is a file that is then there, with its process.

    Args:
        kind: kill -9; stop, so that it answers nobody; warn or terminate, as Slurm does before a job's end; raise; or
            wait, for a test to do something.
    """

    def __init__(self, *, kind: str, rank: int, step: int, happened: str) -> None:
        self.kind, self.rank, self.step, self.happened = kind, rank, step, Path(happened)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.global_rank, trainer.global_step) != (self.rank, self.step) or self.happened.exists():
            return
        self.happened.write_text(str(os.getpid()))
        if self.kind == "raise":
            raise ValueError(f"rank {self.rank} can't read its data")
        if self.kind == "wait":
            time.sleep(60)
        else:
            os.kill(os.getpid(), SIGNALS[self.kind])


class Watch(Callback):
    """Writes, step by step, a digest of all weights and states on each rank."""

    def __init__(self, *, path: str) -> None:
        self.path, self.digests = Path(path), list[list[str]]()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        found: list[Any] = [None] * trainer.world_size
        state = {name: whole(value) for name, value in pl_module.state_dict().items()}
        dist.all_gather_object(found, digest(SimpleNamespace(state_dict=lambda: state)))  # type: ignore[arg-type]
        self.digests.append(found)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.digests))


class Thaw(Callback):
    """The shared encoder trains from the second epoch on."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            pl_module.model.sharing.encoder.requires_grad_(False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            encoder = pl_module.model.sharing.encoder.requires_grad_()
            trainer.optimizers[0].add_param_group({"params": list(encoder.parameters())})


class Held(Callback):
    """Writes how many numbers each rank holds after the training: weights, and the optimizer's state of each."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        (optimizer,) = trainer.optimizers
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        states = [value for p in parameters for value in optimizer.state[p].values() if value.ndim]
        held = sum((v.to_local() if isinstance(v, DTensor) else v).numel() for v in (*parameters, *states))
        found: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(found, held)
        if trainer.is_global_zero:
            Path(trainer.default_root_dir, "held.json").write_text(json.dumps(found))


def whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value
