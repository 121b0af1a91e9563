"""One run on one rank: fit, select on validation, test once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import wandb
from hydra.utils import instantiate
from omegaconf import DictConfig

from mtlbench import record
from mtlbench.assembly import plain, set_up
from mtlbench.lit.callbacks import Recorder
from mtlbench.lit.selection import check_checkpoint, check_folder, check_selection, quiet, select
from mtlbench.saved import load_weights, save

log = logging.getLogger(__name__)


def fit(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Computes a run, or this rank's part of one; files are written by the first rank alone.

    Returns:
        What `summary.json` says of it, the same on all ranks but for times and memory.
    """
    failed = 1
    try:
        result = _fit(cfg, run_dir)
        failed = 0
        return result
    finally:
        if wandb.run is not None:  # else the next job of the sweep would go on in this W&B run
            wandb.finish(exit_code=failed)


def _fit(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    check_folder(run_dir)
    memory = record.PeakMemory()
    recorder = Recorder(run_dir)
    trainer = _make_trainer(cfg, run_dir, recorder)
    data, tasks, datamodule, module = set_up(cfg, ranks=trainer.world_size)
    check_selection(trainer, module)
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    resume = cfg.resume and checkpoint.exists()
    if resume:
        trainer.precision_plugin.convert_module(module)  # Lightning would load a float64 checkpoint into float32 first
        check_checkpoint(checkpoint, module)
        log.info("Going on from %s.", checkpoint)
    trainer.fit(module, datamodule, ckpt_path=str(checkpoint) if resume else None, weights_only=True)
    selected, val = select(trainer, module, datamodule)
    state = trainer.strategy.lightning_module_state_dict()  # for all ranks, where each has a part
    if trainer.is_global_zero:
        weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        save(run_dir, module.model, weights=weights, tasks=tasks, inputs=data.input_spec)
    result: dict[str, Any] = {
        "tasks": {
            task.name: {
                "dataset": task.dataset,
                "type": task.info.type,
                "primary": task.primary,
                "metrics": {m: task.describe(m, value) for m, value in module.metrics_of(task.name).items()},
            }
            for task in tasks
        },
        "extra_metrics": {
            f"{module.tasks[members[0]].dataset}/{name}": {"higher_is_better": True}
            for name, members in module.joint.items()
        },
        "selected": selected,
        "val": val,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "examples_seen": recorder.examples,
        "examples_per_second": recorder.examples / recorder.seconds,
        "step_seconds": recorder.step_seconds,
        "train_seconds": recorder.seconds,
        "ranks": trainer.world_size,
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "overlaps": data.overlaps,  # of val and test with other datasets' train, and the rows dropped for it
    }
    if cfg.test:
        trainer.test(module, datamodule, verbose=False)
        result["test"] = module.test
        if trainer.is_global_zero:
            rows = pd.DataFrame(module.evaluations["test"].rows())
            for column in ("target", "prediction"):
                rows[column] = rows[column].map(lambda v: json.dumps(v) if isinstance(v, list) else str(v))
            rows.to_parquet(run_dir / "predictions.parquet", index=False)
    return result | {"peak_memory_mb": memory.mb()}


def run_itself(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """A benchmark that names its own function instead of datasets and tasks."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    return instantiate(cfg.benchmark, _partial_=True, _convert_="all")(
        balancer=instantiate(cfg.balancer, _partial_=True, _convert_="all"),
        optimizer=instantiate(cfg.optimizer, _partial_=True),
        seed=cfg.seed,
        run_dir=run_dir,
    )


def test(cfg: DictConfig, *, run_dir: Path) -> dict[str, float]:
    """Tests the weights that a run saved, on the test split that `cfg` names, and writes nothing."""
    check_folder(run_dir)
    _, _, datamodule, module = set_up(cfg)
    load_weights(module.model, run_dir)
    quiet()
    trainer = instantiate(
        cfg.trainer, callbacks=[], logger=False, enable_checkpointing=False, enable_model_summary=False, devices=1,
        num_nodes=1, strategy="auto", default_root_dir=str(run_dir),
    )  # fmt: skip
    trainer.test(module, datamodule, verbose=False)
    return module.test


def _make_trainer(cfg: DictConfig, run_dir: Path, recorder: Recorder) -> Any:
    callbacks: list[Any] = [recorder]
    for name, node in cfg.callbacks.items():
        if node is None or (name == "progress" and not cfg.trainer.get("enable_progress_bar", True)):
            continue
        extra = {"dirpath": str(run_dir / "checkpoints")} if node._target_.endswith("Checkpoint") else {}
        callbacks.append(instantiate(node, **extra))
    loggers = []
    for name, node in cfg.logger.items():
        extra = {"save_dir": str(run_dir)}
        if name == "wandb":
            extra["name"] = f"{cfg.benchmark.name}/{cfg.method}/seed={cfg.seed}"
        loggers.append(instantiate(node, **extra))
    quiet()
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers, default_root_dir=str(run_dir))
    precision = cfg.trainer.get("precision")
    if str(precision) in ("16-mixed", "16") and trainer.strategy.root_device.type == "cpu":
        raise ValueError(
            f"trainer.precision={precision}: float16 is for GPUs, and this run is on the CPU, where Lightning would "
            "take bfloat16 in its place. Say trainer.precision=bf16-mixed."
        )
    for logger in trainer.loggers:
        logger.log_hyperparams(plain(cfg))
    return trainer
