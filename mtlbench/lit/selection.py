"""From a trained module to the selected one: which weights are tested, and by what rule."""

from __future__ import annotations

import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from mtlbench.lit.callbacks import PerTaskSelection
from mtlbench.lit.datamodule import MultiTaskDataModule
from mtlbench.lit.module import MultiTaskModule


def check_selection(trainer: Trainer, module: MultiTaskModule) -> None:
    """Refuses callbacks that can't select this model's weights.

    Raises:
        ValueError: saying which callbacks belong to which sharing.
    """
    per_task = [c for c in _callbacks(trainer) if isinstance(c, PerTaskSelection)]
    monitoring = [c for c in _callbacks(trainer) if isinstance(c, ModelCheckpoint) and c.monitor is not None]
    if module.model.shared() and (per_task or len(monitoring) != 1):
        raise ValueError(
            f"Tasks that share parameters are selected together: expected one ModelCheckpoint with a monitor, got "
            f"{len(monitoring)}, and no PerTaskSelection, got {len(per_task)}. callbacks=default has them right."
        )
    if not module.model.shared() and len(per_task) != 1:
        raise ValueError(
            f"Independent networks are selected task by task: expected one PerTaskSelection, got {len(per_task)}. "
            "callbacks=independent has it."
        )


def check_folder(run_dir: Path) -> None:
    """Refuses a folder with a requeued job's checkpoint.

    In a Slurm job Lightning loads it at every fit, validate and test, whatever the weights at hand.

    Raises:
        ValueError: naming the file.
    """
    for path in sorted(run_dir.glob("hpc_ckpt_*")):
        raise ValueError(
            f"{path} was left by a job that Lightning requeued, and in a Slurm job it would be loaded in place of the "
            "selected weights. Delete it: a run goes on from checkpoints/last.ckpt."
        )


def check_checkpoint(path: Path, module: nn.Module) -> None:
    """Refuses a checkpoint that can't be gone on from.

    Raises:
        ValueError: the file is damaged, or of another model.
    """
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no checkpoint that can be read ({error}). Delete it to start anew.") from error
    own, theirs = (
        # A state whose size is that of the first step is extra state, which has no shape.
        {name: getattr(value, "shape", None) for name, value in state.items()}
        for state in (module.state_dict(), found)
    )
    differing = [name for name in own | theirs if own.get(name, "none") != theirs.get(name, "none")]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{path} is of another model: {len(differing)} entries differ, first {name} (here {own.get(name)}, there "
            f"{theirs.get(name)}). Choose another run directory, or delete the checkpoint to start anew."
        )


def select(
    trainer: Trainer, module: MultiTaskModule, datamodule: MultiTaskDataModule
) -> tuple[dict[str, Any], dict[str, float]]:
    """Puts the selected weights into the module.

    Returns:
        What was selected (monitor, mode, epoch, value; for independent networks by task), and the
        validation metrics of the selected weights.
    """
    per_task = [c for c in _callbacks(trainer) if isinstance(c, PerTaskSelection)]
    if per_task:
        per_task[0].restore(module)
        val = _validate(trainer, module, datamodule)
        tasks = {
            name: {
                "monitor": f"val/{name}/{task.primary}",
                "mode": "max" if task.higher_is_better(task.primary) else "min",
                **per_task[0].best[name],
            }
            for name, task in module.tasks.items()
        }
        return {"tasks": tasks, "monitor": "val/score", "mode": "max", "value": val["score"]}, val
    (checkpoint,) = [c for c in _callbacks(trainer) if isinstance(c, ModelCheckpoint) and c.monitor is not None]
    # It keeps no checkpoints: what is tried out is tested as it is.
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
        val = _validate(trainer, module, datamodule)
        return {"monitor": checkpoint.monitor, "mode": checkpoint.mode, "epoch": 0, "value": val["score"]}, val
    if checkpoint.best_model_score is None:
        raise ValueError("No epoch was validated, so none can be selected. Train at least one whole epoch.")
    best = torch.load(checkpoint.best_model_path, weights_only=True, map_location="cpu")
    trainer.strategy.load_model_state_dict(best)
    val = _validate(trainer, module, datamodule)
    selected = {"monitor": checkpoint.monitor, "mode": checkpoint.mode, "epoch": best["epoch"]}
    return {**selected, "value": float(checkpoint.best_model_score)}, val


def _validate(trainer: Trainer, module: MultiTaskModule, datamodule: MultiTaskDataModule) -> dict[str, float]:
    trainer.validate(module, datamodule, verbose=False)
    return {key.removeprefix("val/"): value for key, value in module.val.items()}


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]  # set by a connector


def quiet() -> None:
    """Silences advice of Lightning's that does not hold here: data are in memory, loggers are chosen in conf/."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",  # a deprecation inside Lightning
        ".*sync_dist=True.*",  # every rank has the values of all
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # the engine gathers parameters by itself
        ".*`srun` command is available.*",  # one process is as good in a Slurm job
        ".*number of training batches .* is smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=message)
