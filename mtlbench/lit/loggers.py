"""Loggers that need more than their own settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger


def wandb_logger(
    *, save_dir: Path, project: str, entity: str | None, group: str, job_type: str, tags: Sequence[str], name: str
) -> WandbLogger:
    """A Weights & Biases run of its own for each job; offline unless the user is logged in or WANDB_MODE says else.

    Args:
        save_dir: the run directory; files go to its `wandb` folder.
        project, entity, group, job_type, tags, name: as in `wandb.init`.
    """
    offline = os.environ.get("WANDB_MODE") == "offline" or not wandb.login(prompt=False, verify=False)
    return WandbLogger(
        save_dir=save_dir,
        project=project,
        entity=entity,
        group=group,
        job_type=job_type,
        tags=list(tags),
        name=name,
        offline=offline,
    )
