"""From a composed configuration to what is trained: data, tasks, network, Lightning's modules."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import Container, DictConfig, OmegaConf
from torch import Tensor

from mtlbench.balancing.base import Balancer, TaskSpec
from mtlbench.data.build import DatasetSource, Tables, build
from mtlbench.data.names import choose
from mtlbench.data.nodes import check_dataset
from mtlbench.data.sources import read_source
from mtlbench.data.tables import Data, InputSpec, TaskInfo
from mtlbench.gradients.options import Options
from mtlbench.lit.datamodule import MultiTaskDataModule
from mtlbench.lit.evaluation import whole
from mtlbench.lit.module import MultiTaskModule
from mtlbench.models.encoders.base import Encoder
from mtlbench.models.heads.classification import ClassificationHead
from mtlbench.models.heads.masked_lm import MaskedLMHead
from mtlbench.models.heads.regression import RegressionHead
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.tasks import TASK_TYPES, Task


class SetUp(NamedTuple):
    """What one run trains."""

    data: Data
    tasks: list[Task]
    datamodule: MultiTaskDataModule
    module: MultiTaskModule


def set_up(cfg: DictConfig, *, ranks: int = 1) -> SetUp:
    """Reads the data and makes the network, the same on each of `ranks` ranks."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    nodes = choose(plain(cfg.benchmark.tasks), None if cfg.tasks is None else list(cfg.tasks))
    balancer = _make_balancer(cfg, [TaskSpec(name, node.type) for name, node in nodes.items()])
    Options(**plain(cfg.engine)).check(balancer)  # both options are told before the data are read
    data = load_data(cfg)
    targets = {dataset: whole(split) for dataset, split in data.splits["train"].items()}
    tasks = [_make_task(cfg, info, targets[info.dataset][name]) for name, info in data.tasks.items()]
    datamodule = MultiTaskDataModule(
        data,
        tasks,
        instantiate(cfg.mixing, _partial_=True),
        batch_size=cfg.data.batch_size,
        ranks=ranks,
        eval_batch_size=cfg.data.eval_batch_size,
        seed=cfg.seed,
        num_workers=cfg.data.num_workers,
    )
    module = _make_module(cfg, data, tasks, steps_per_epoch=datamodule.mixing.steps_per_epoch)
    datamodule.serve(module.balancer)
    return SetUp(data, tasks, datamodule, module)


def load_sources(cfg: DictConfig) -> dict[str, DatasetSource]:
    """The benchmark's datasets, not read yet."""
    return {name: _source(str(name), plain(node)) for name, node in cfg.benchmark.datasets.items()}


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
        tasks=plain(cfg.benchmark.tasks),
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
    return plain(OmegaConf.merge(cfg.head, {} if node is None else node.get("head", {})))


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
    balancer = _make_balancer(cfg, [TaskSpec(task.name, task.info.type) for task in tasks])
    head_lr = plain(cfg.head_lr) if isinstance(cfg.head_lr, DictConfig) else cfg.head_lr
    joint = {
        name: list(node.tasks)
        for name, node in cfg.benchmark.get("metrics", {}).items()
        if set(node.tasks) <= set(names)
    }
    return MultiTaskModule(
        model,
        tasks,
        balancer,
        engine=plain(cfg.engine),
        optimizer=instantiate(cfg.optimizer, _partial_=True),
        schedule=None if cfg.scheduler.name is None else plain(cfg.scheduler),
        head_lr=head_lr,
        layer_lr_decay=cfg.layer_lr_decay,
        loss_scale=cfg.loss_scale,
        splits=data.splits,
        joint=joint,
        steps_per_epoch=steps_per_epoch,
        seed=cfg.seed,
        log_every_n_steps=cfg.trainer.get("log_every_n_steps", 50),
        tokenizers={dataset: spec.tokenizer for dataset, spec in data.input_spec.items()},
    )


def _make_balancer(cfg: DictConfig, tasks: Sequence[TaskSpec]) -> Balancer:
    make = instantiate(cfg.balancer, _partial_=True, _convert_="all")
    balancer: Balancer = make(num_tasks=len(tasks), seed=cfg.seed, tasks=tasks)
    return balancer


def _encoder(make: Any, specs: dict[str, InputSpec]) -> Encoder:
    """One encoder serves all datasets, so their inputs must look alike."""
    first, *others = specs.items()
    for name, spec in others:
        if (spec.type, spec.shape, spec.vocab_size) != (first[1].type, first[1].shape, first[1].vocab_size):
            raise ValueError(f"One encoder can't take datasets {first[0]!r} ({first[1]}) and {name!r} ({spec}).")
    return make(spec=first[1])


def plain(node: Container) -> Any:
    """Plain containers: none of OmegaConf's may get into a checkpoint."""
    return OmegaConf.to_container(node, resolve=True)
