"""`benchmark=toy2d`: follows a balancer from several starts at once, without a network and without data."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from torch.optim import Optimizer

from mtlbench.balancing.base import Balancer
from mtlbench.toy.directions import Directions
from mtlbench.toy.problem import Array, losses_and_gradients, on_front

log = logging.getLogger(__name__)


def run(
    *,
    name: str,
    starts: Mapping[str, Sequence[float]],
    steps: int,
    scale: float,
    clip: float | None,
    epoch: int,
    every: int,
    balancer: Callable[..., Balancer],
    optimizer: Callable[..., Optimizer],
    seed: int,
    run_dir: Path,
) -> dict[str, Any]:
    """Runs all starts, writes `trajectories.parquet`, and returns what the run's record tells of them.

    Args:
        name: of the benchmark.
        starts: name -> the point (x1, x2).
        steps: of the optimizer.
        scale: of the first loss.
        clip: greatest length of a start's direction; None: as it is.
        epoch: steps between two calls of the balancers' `end_epoch`.
        every: steps between two rows of a trajectory; the last point is always there.
        balancer: makes one from num_tasks, seed and tasks.
        optimizer: makes one from parameter groups; it must treat every coordinate by itself, as Adam does.
        seed: of the balancers.
        run_dir: where the trajectories go.

    Raises:
        ValueError: a start is no point, or the balancer does not take the losses.
        FloatingPointError: a direction is not finite.
    """
    fits = [len(point) == 2 and all(isinstance(x, int | float) for x in point) for point in starts.values()]
    if not starts or not all(fits):
        raise ValueError(f"{name}.starts: expected names with two numbers each, S1: [-8.5, 7.5]; got {dict(starts)}.")
    path = np.empty((steps + 1, len(starts), 2))
    path[0] = list(starts.values())
    directions = Directions(list(starts), balancer, seed=seed)
    began, cpu = time.perf_counter(), time.process_time()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one, for ten numbers, makes steps thirty times as long where a core is busy
    try:
        descend(path, directions, optimizer, scale=scale, clip=clip, epoch=epoch)
    finally:
        torch.set_num_threads(threads)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu

    table = _trajectories(path, starts, every=every, scale=scale)
    table.to_parquet(run_dir / "trajectories.parquet", index=False)
    ends, _ = losses_and_gradients(path[-1], scale=scale)
    inside = on_front(path)
    found = {
        start: {
            "from": path[0, i].tolist(),
            "to": path[-1, i].tolist(),
            "losses": ends[i].tolist(),
            "reached": bool(inside[-1, i]),
            "first_step": int(inside[:, i].argmax()) if inside[:, i].any() else None,
            "degenerate_steps": directions.degenerate[start],
        }
        for i, start in enumerate(starts)
    }
    log.info("%d of %d starts end at the Pareto front.", inside[-1].sum(), len(starts))
    return {
        "scale": scale,
        "starts": found,
        "selected": {"monitor": "reached", "mode": "max", "value": float(inside[-1].mean())},
        "steps": steps,
        "step_seconds": seconds / steps,
        "train_seconds": seconds,
        "cpu_seconds": cpu,
    }


def descend(
    path: Array,
    directions: Directions,
    make: Callable[..., Optimizer],
    *,
    scale: float,
    clip: float | None,
    epoch: int,
) -> None:
    """Fills `path` (steps + 1, S, 2) from its first entry on."""
    x = torch.from_numpy(path[0].copy())
    x.grad = torch.zeros_like(x)
    point, gradient = x.numpy(), x.grad.numpy()  # these share memory with the tensors
    optimizer = make([{"params": [x]}, *([{"params": directions.own, "weight_decay": 0.0}] if directions.own else [])])
    losses, gradients = losses_and_gradients(point, scale=scale)
    total = np.zeros_like(losses)
    steps, step = range(1, len(path)), 0
    try:
        for step in track(steps, description="steps", transient=True, disable=not sys.stdout.isatty()):
            direction = directions(losses, gradients)
            _check_finite(direction, directions.starts, step=step)
            gradient[:] = _clipped(direction, clip)
            optimizer.step()
            path[step] = point
            total += losses
            before = losses
            losses, gradients = losses_and_gradients(point, scale=scale)
            if directions.needs_after_step:
                directions.after_step(before, losses)
            if step % epoch == 0:
                directions.end_epoch(total / epoch)
                total[:] = 0
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"Step {step}, {error}") from error


def _check_finite(directions: Array, starts: Sequence[str], *, step: int) -> None:
    finite = np.isfinite(directions).all(1)
    if not finite.all():
        start = starts[int(finite.argmin())]
        raise FloatingPointError(f"Step {step}, from {start}: the direction is not finite. Lower the learning rate.")


def _clipped(directions: Array, clip: float | None) -> Array:
    """(S, 2) directions, none longer than `clip`."""
    if clip is None:
        return directions
    lengths = np.sqrt((directions * directions).sum(1, keepdims=True))
    return directions * (clip / np.maximum(lengths, clip))


def _trajectories(path: Array, starts: Iterable[str], *, every: int, scale: float) -> pd.DataFrame:
    """(steps + 1, S, 2) points -> columns start, step, x1, x2, f1, f2; a start's rows follow each other."""
    steps = np.unique(np.append(np.arange(0, len(path), every), len(path) - 1))
    losses, _ = losses_and_gradients(path[steps], scale=scale)
    rows = np.concatenate([path[steps], losses], axis=-1)
    tables = [
        pd.DataFrame(rows[:, i], columns=["x1", "x2", "f1", "f2"]).assign(start=start, step=steps)
        for i, start in enumerate(starts)
    ]
    return pd.concat(tables, ignore_index=True)[["start", "step", "x1", "x2", "f1", "f2"]]
