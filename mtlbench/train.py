"""One run: from a composed configuration to a run directory."""

from __future__ import annotations

import datetime
import functools
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import wandb
from hydra.utils import instantiate
from omegaconf import Container, DictConfig, OmegaConf
from torch import Tensor

from mtlbench import record
from mtlbench.balancing.base import Balancer, TaskSpec
from mtlbench.data.build import DatasetSource, Tables, build
from mtlbench.data.nodes import check_dataset
from mtlbench.data.sources import read_source
from mtlbench.data.tables import Data, InputSpec, TaskInfo
from mtlbench.lit.callbacks import Recorder
from mtlbench.lit.datamodule import MultiTaskDataModule
from mtlbench.lit.evaluation import whole
from mtlbench.lit.module import MultiTaskModule
from mtlbench.lit.selection import check_checkpoint, check_selection, quiet, select
from mtlbench.models.encoders.base import Encoder
from mtlbench.models.heads.classification import ClassificationHead
from mtlbench.models.heads.masked_lm import MaskedLMHead
from mtlbench.models.heads.regression import RegressionHead
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.independent import Independent
from mtlbench.results.records import read_summary, write_summary
from mtlbench.saved import load_weights, save
from mtlbench.tasks import TASK_TYPES, Task

log = logging.getLogger(__name__)


def train(cfg: DictConfig, *, run_dir: Path, method: str | None = None, overrides: Sequence[str] = ()) -> float:
    """Trains, selects on validation, tests once, and writes the run directory.

    A directory whose record says finished is left as it is; one that holds a checkpoint of the same
    configuration goes on from there.

    Args:
        cfg: composed from conf/train.yaml.
        run_dir: where the run's files go; made if absent.
        method: the run's name in tables, unless `cfg.method` gives one; None: the balancer's module name.
        overrides: what was changed on the command line, for the record.

    Returns:
        The selection metric at the selected epoch (the mean over tasks' scores for independent runs).

    Raises:
        ValueError: the configuration, the data or the run directory does not fit.
        FloatingPointError: a loss or gradient is not finite.
    """
    cfg = cfg.copy()
    cfg.method = cfg.method or method or _method_name(cfg)
    plain = _plain(cfg)
    identity = record.config_hash(plain)
    run_dir.mkdir(parents=True, exist_ok=True)
    done = _finished(run_dir, identity)
    if done is not None:
        log.info("%s is finished already: not run again.", run_dir)
        return done
    OmegaConf.save(OmegaConf.create(plain), run_dir / "config.yaml")
    summary: dict[str, Any] = {
        "format": 1, "status": "running", "error": None, "benchmark": cfg.benchmark.name, "method": cfg.method,
        "sharing": _last(cfg.sharing), "balancer": _last(cfg.balancer),
        "encoder": _last(cfg.encoder) if "encoder" in cfg else None, "runner": cfg.benchmark.get("_target_"),
        "seed": cfg.seed, "overrides": list(overrides), "config_hash": identity, "versions": record.versions(),
        "git": record.git_state(), "started": _now(),
    }  # fmt: skip
    write_summary(run_dir, summary)
    start = time.perf_counter()
    failed = 1
    try:
        summary |= (_run if summary["runner"] is None else _run_itself)(cfg, run_dir) | {"status": "finished"}
        failed = 0
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        summary["status"] = "interrupted"
        raise
    except Exception as error:
        summary |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        summary |= {"finished": _now(), "wall_seconds": time.perf_counter() - start}
        write_summary(run_dir, summary)
        if wandb.run is not None:  # else the next job of the sweep would go on in this W&B run
            wandb.finish(exit_code=failed)
    return summary["selected"]["value"]


def _run(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    memory = record.PeakMemory()
    data, tasks, datamodule, module = _set_up(cfg)
    recorder = Recorder(run_dir)
    trainer = _make_trainer(cfg, run_dir, recorder)
    check_selection(trainer, module)
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    resume = cfg.resume and checkpoint.exists()
    if resume:
        check_checkpoint(checkpoint, module)
        log.info("Going on from %s.", checkpoint)
    trainer.fit(module, datamodule, ckpt_path=str(checkpoint) if resume else None, weights_only=True)
    selected, val = select(trainer, module, datamodule)
    save(run_dir, module.model, tasks=tasks, inputs=data.input_spec)
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
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "overlaps": data.overlaps,  # of val and test with other datasets' train, and the rows dropped for it
    }
    if cfg.test:
        trainer.test(module, datamodule, verbose=False)
        result["test"] = module.test
        rows = pd.DataFrame(module.evaluations["test"].rows())
        for column in ("target", "prediction"):
            rows[column] = rows[column].map(lambda v: json.dumps(v) if isinstance(v, list) else str(v))
        rows.to_parquet(run_dir / "predictions.parquet", index=False)
    return result | {"peak_memory_mb": memory.mb()}


def _run_itself(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
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
    _, _, datamodule, module = _set_up(cfg)
    load_weights(module.model, run_dir)
    quiet()
    trainer = instantiate(
        cfg.trainer, callbacks=[], logger=False, enable_checkpointing=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.test(module, datamodule, verbose=False)
    return module.test


def _set_up(cfg: DictConfig) -> tuple[Data, list[Task], MultiTaskDataModule, MultiTaskModule]:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    data = load_data(cfg)
    targets = {dataset: whole(split) for dataset, split in data.splits["train"].items()}
    tasks = [_make_task(cfg, info, targets[info.dataset][name]) for name, info in data.tasks.items()]
    datamodule = MultiTaskDataModule(
        data,
        tasks,
        instantiate(cfg.mixing, _partial_=True),
        batch_size=cfg.data.batch_size,
        eval_batch_size=cfg.data.eval_batch_size,
        seed=cfg.seed,
        num_workers=cfg.data.num_workers,
    )
    module = _make_module(cfg, data, tasks, steps_per_epoch=datamodule.mixing.steps_per_epoch)
    datamodule.serve(module.balancer)
    return data, tasks, datamodule, module


def load_sources(cfg: DictConfig) -> dict[str, DatasetSource]:
    """The benchmark's datasets, not read yet."""
    return {name: _source(str(name), _plain(node)) for name, node in cfg.benchmark.datasets.items()}


def _source(name: str, node: dict[str, Any]) -> DatasetSource:
    check_dataset(name, node)
    given = {key: value for key, value in node.items() if key != "input"}
    if given.get("load") is not None:
        load = {"_target_": given["load"]} if isinstance(given["load"], str) else given["load"]
        given["load"] = instantiate(load, _partial_=True, _convert_="all")
    return DatasetSource(load=functools.partial(read_source, **given), input=node["input"])


def load_data(cfg: DictConfig, *, tables: Tables | None = None) -> Data:
    """The benchmark's data in memory, with the encoder's tokenizer where there is text; `tables` if read already."""
    tokenizer = cfg.encoder.get("tokenizer")
    return build(
        datasets=load_sources(cfg),
        tasks=_plain(cfg.benchmark.tasks),
        select=None if cfg.tasks is None else list(cfg.tasks),
        data_dir=cfg.data.dir,
        tokenizer=None if tokenizer is None else instantiate(tokenizer, _partial_=True),
        max_length=cfg.data.max_length,
        overlaps=cfg.data.overlaps,
        tables=tables,
    )


def _make_task(cfg: DictConfig, info: TaskInfo, train_targets: Tensor) -> Task:
    return TASK_TYPES[info.type](info, train_targets, head_options=head_options(cfg, info.name))


def head_options(cfg: DictConfig, task: str) -> dict[str, Any]:
    """The options of a task's head: those of all, and its own."""
    node = cfg.benchmark.tasks.get(task)
    return _plain(OmegaConf.merge(cfg.head, {} if node is None else node.get("head", {})))


def make_network(cfg: DictConfig, tasks: Sequence[Task], inputs: dict[str, InputSpec]) -> MultiTaskModel:
    """The network, initialised from the seed: encoder, sharing and the tasks' heads."""
    encoder = {key: node for key, node in cfg.encoder.items() if key != "tokenizer"}
    make_encoder = instantiate(encoder, _partial_=True, _convert_="all")
    network = MultiTaskModel(
        instantiate(cfg.sharing, _partial_=True), lambda: _encoder(make_encoder, inputs), tasks, seed=cfg.seed
    )
    _check_causal(network)
    return network


def _check_causal(network: MultiTaskModel) -> None:
    causal = any(isinstance(part, Encoder) and part.causal for part in network.modules())
    masked = [name for name, head in network.heads.items() if isinstance(head, MaskedLMHead)]
    if causal and masked:
        raise ValueError(
            f"The encoder is decoder-only: a position sees no word after it, and {', '.join(masked)} tells masked "
            "words from those on both sides. Choose another encoder, or leave the task out: tasks=[...]."
        )
    kinds = (ClassificationHead, RegressionHead)
    first = [name for name, head in network.heads.items() if isinstance(head, kinds) and head.pooling == "first"]
    if causal and first:
        raise ValueError(
            f"The encoder is decoder-only, where the first position sees no other, and {', '.join(first)} would be "
            "told from that one alone: say head.pooling=last, or mean."
        )


def _make_module(cfg: DictConfig, data: Data, tasks: Sequence[Task], *, steps_per_epoch: int) -> MultiTaskModule:
    names = [task.name for task in tasks]
    model = make_network(cfg, tasks, data.input_spec)
    specs = [TaskSpec(task.name, task.info.type) for task in tasks]
    balancer: Balancer = instantiate(cfg.balancer, _partial_=True, _convert_="all")(
        num_tasks=len(tasks), seed=cfg.seed, tasks=specs
    )
    head_lr = _plain(cfg.head_lr) if isinstance(cfg.head_lr, DictConfig) else cfg.head_lr
    joint = {
        name: list(node.tasks)
        for name, node in cfg.benchmark.get("metrics", {}).items()
        if set(node.tasks) <= set(names)
    }
    return MultiTaskModule(
        model,
        tasks,
        balancer,
        engine=_plain(cfg.engine),
        optimizer=instantiate(cfg.optimizer, _partial_=True),
        schedule=None if cfg.scheduler.name is None else _plain(cfg.scheduler),
        head_lr=head_lr,
        layer_lr_decay=cfg.layer_lr_decay,
        loss_scale=cfg.loss_scale,
        splits=data.splits,
        joint=joint,
        steps_per_epoch=steps_per_epoch,
        seed=cfg.seed,
        log_every_n_steps=cfg.trainer.log_every_n_steps,
        tokenizers={dataset: spec.tokenizer for dataset, spec in data.input_spec.items()},
    )


def _encoder(make: Any, specs: dict[str, InputSpec]) -> Encoder:
    """One encoder serves all datasets, so their inputs must look alike."""
    first, *others = specs.items()
    for name, spec in others:
        if (spec.type, spec.shape, spec.vocab_size) != (first[1].type, first[1].shape, first[1].vocab_size):
            raise ValueError(f"One encoder can't take datasets {first[0]!r} ({first[1]}) and {name!r} ({spec}).")
    return make(spec=first[1])


def _make_trainer(cfg: DictConfig, run_dir: Path, recorder: Recorder) -> Any:
    callbacks: list[Any] = [recorder]
    for name, node in cfg.callbacks.items():
        if node is None or (name == "progress" and not cfg.trainer.enable_progress_bar):
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
    trainer = instantiate(
        cfg.trainer, callbacks=callbacks, logger=loggers, default_root_dir=str(run_dir), use_distributed_sampler=False
    )
    for logger in trainer.loggers:
        logger.log_hyperparams(_plain(cfg))
    return trainer


def _finished(run_dir: Path, identity: str) -> float | None:
    """The result of a finished run of the same configuration; None where there is something left to do."""
    if not (run_dir / "summary.json").exists():
        return None
    summary = read_summary(run_dir)
    if summary["config_hash"] != identity:
        raise ValueError(
            f"{run_dir} holds a run of another configuration (its config.yaml shows it). Choose another directory, "
            "or delete that one."
        )
    return summary["selected"]["value"] if summary["status"] == "finished" else None


def _method_name(cfg: DictConfig) -> str:
    independent = cfg.sharing._target_.endswith(f".{Independent.__name__}")
    return "independent" if independent else _last(cfg.balancer)


def _last(node: DictConfig) -> str:
    """The module that a node's `_target_` is in: one concept a file."""
    return node._target_.split(".")[-2]


def _plain(node: Container) -> Any:
    """Plain containers: none of OmegaConf's may get into a checkpoint."""
    return OmegaConf.to_container(node, resolve=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
