"""Parameter groups, clipping and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from mtlbench.balancing.base import Balancer
from mtlbench.lit.stopping import StopAtStep
from mtlbench.models.encoders.base import Encoder
from mtlbench.models.multitask import MultiTaskModel


def build_optimizer(
    make: Callable[..., Optimizer],
    model: MultiTaskModel,
    balancer: Balancer,
    *,
    head_lr: Mapping[str, float] | float | None,
    layer_lr_decay: float,
) -> Optimizer:
    """One optimizer over all that trains.

    Biases, norms and the balancer's own parameters have no weight decay. With `layer_lr_decay` below 1, an encoder's
    stage learns at lr * decay ** (stages above it), as the layers of Howard and Ruder 2018 (arXiv:1801.06146).

    Args:
        model: its parameters train.
        balancer: its own parameters train too.
        make: the optimizer class with its settings, `lr` among them.
        head_lr: learning rate of all heads, or of some by task; None: that of the optimizer.
        layer_lr_decay: above 0, at most 1, which is one rate for all stages.

    Raises:
        ValueError: `head_lr` names an unknown task, or `layer_lr_decay` is out of its range.
    """
    rates = dict.fromkeys(model.heads, head_lr) if isinstance(head_lr, float | int) else dict(head_lr or {})
    unknown = sorted(set(rates) - set(model.heads))
    if unknown:
        raise ValueError(f"head_lr names {unknown}; the tasks are {list(model.heads)}.")
    if not 0 < layer_lr_decay <= 1:
        raise ValueError(f"layer_lr_decay={layer_lr_decay}: expected a number above 0 and at most 1.")
    factors = _stage_factors(model, layer_lr_decay)
    groups: dict[tuple[float, float | None, bool, bool], list[nn.Parameter]] = {}
    encoders = {id(p) for p in model.sharing.parameters()}  # also what decoders have tied to theirs
    heads = {
        id(p): rates.get(task) for task, head in model.heads.items() for p in head.parameters() if id(p) not in encoders
    }
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Parts of a sharded encoder by themselves: fused and foreach optimizers take no group of both.
            part = isinstance(parameter, DTensor)
            key = (factors.get(id(parameter), 1.0), heads.get(id(parameter)), parameter.ndim >= 2, part)
            groups.setdefault(key, []).append(parameter)
    own = [p for p in balancer.parameters() if p.requires_grad]
    if own:
        groups.setdefault((1.0, None, False, False), []).extend(own)
    ordered = sorted(groups.items(), key=lambda group: -group[0][0])  # the full rate first: that one is recorded
    settings: list[dict[str, Any]] = []
    for (_, rate, decays, _), parameters in ordered:
        group: dict[str, Any] = {"params": parameters}
        if rate is not None:
            group["lr"] = rate
        if not decays:
            group["weight_decay"] = 0.0
        settings.append(group)
    optimizer = make(settings)
    for group, ((factor, *_), _) in zip(optimizer.param_groups, ordered, strict=True):
        group["lr"] *= factor
    return optimizer


def _stage_factors(model: MultiTaskModel, decay: float) -> dict[int, float]:
    """By parameter, what its stage's place gives it of the learning rate."""
    return {
        id(parameter): decay**above
        for encoder in model.modules()
        if isinstance(encoder, Encoder)
        for above, stage in enumerate(reversed(encoder.stages))
        for parameter in stage.parameters()
    }


def build_schedule(
    optimizer: Optimizer, *, name: str, warmup: float | int, total_steps: int, **options: Any
) -> LRScheduler:
    """A warm-up and decay schedule of the transformers library, stepped at each optimizer step.

    Args:
        optimizer: what it schedules.
        total_steps: optimizer steps of the whole training.
        name: constant_with_warmup, linear, cosine, polynomial, ...
        warmup: steps where an integer, a part of `total_steps` where below 1.
        options: that schedule's own settings.
    """
    steps = round(warmup * total_steps) if isinstance(warmup, float) and warmup < 1 else int(warmup)
    return get_scheduler(
        name, optimizer, num_warmup_steps=steps, num_training_steps=total_steps, scheduler_specific_kwargs=options
    )


def total_steps(trainer: Trainer, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole training.

    Not `trainer.estimated_stepping_batches`: that makes the loader before a checkpoint is read, and Lightning then
    never gives the loader its state back, so that a resumed epoch would begin at its first batch again.

    Raises:
        ValueError: neither `max_epochs` nor `max_steps` bounds the training.
    """
    limit = trainer.limit_train_batches
    batches = min(steps_per_epoch, limit) if isinstance(limit, int) else int(steps_per_epoch * limit)
    by_epochs = -(-batches // trainer.accumulate_grad_batches) * (trainer.max_epochs or -1)
    stops = [callback.step for callback in trainer.callbacks if isinstance(callback, StopAtStep)]  # type: ignore[attr-defined]
    bounds = [steps for steps in (by_epochs, *stops) if steps > 0]
    if not bounds:
        raise ValueError("A learning-rate schedule needs trainer.max_epochs or trainer.max_steps.")
    return min(bounds)


def any_gradient(optimizer: Optimizer) -> bool:
    """Whether any parameter has one: none has in a step without labels."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def clip(parameters: Iterable[nn.Parameter], limit: float, algorithm: str | None) -> None:
    """Clips gradients, by the norm of all as one vector or (`value`) each number; where there are none, nothing.

    Some may be parts of a sharded encoder's, which torch and Lightning take by themselves alone.
    """
    kinds: dict[type, list[nn.Parameter]] = {}
    for p in parameters:
        if p.grad is not None:
            kinds.setdefault(type(p.grad), []).append(p)
    if algorithm == "value":
        for trained in kinds.values():
            nn.utils.clip_grad_value_(trained, limit)
    elif kinds:
        _clip_norm(list(kinds.values()), limit)


def _clip_norm(kinds: Sequence[list[nn.Parameter]], limit: float) -> None:
    norms = [nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None]) for trained in kinds]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
    for trained in kinds:
        nn.utils.clip_grads_with_norm_(trained, limit, total)
