"""One run: from a composed configuration to a run directory."""

from __future__ import annotations

import datetime
import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mtlbench import processes, record
from mtlbench.check_trainer import number_of_devices
from mtlbench.lock import alone
from mtlbench.results.records import read_summary, write_summary

log = logging.getLogger(__name__)


def train(cfg: DictConfig, *, run_dir: Path, method: str | None = None, overrides: Sequence[str] = ()) -> float:
    """Trains, selects on validation, tests once, and writes the run directory.

    A directory whose record says finished is left as it is; one that holds a checkpoint of the same
    configuration goes on from there.

    With several devices each one has a process: started here, unless torchrun or srun has started this one among
    others. Then all of them call this function with the same arguments, and the first one writes.

    Args:
        cfg: composed from conf/train.yaml.
        run_dir: where the run's files go; made if absent.
        method: the run's name in tables, unless `cfg.method` gives one; None: the balancer's module name.
        overrides: what was changed on the command line, for the record.

    Returns:
        The selection metric at the selected epoch (the mean over tasks' scores for independent runs).

    Raises:
        ValueError: the configuration, the data or the run directory does not fit, or another process trains there.
        FloatingPointError: a loss or gradient is not finite.
        ChildProcessError: the process of a device was killed, or hung.
    """
    cfg = cfg.copy()
    cfg.method = cfg.method or method or _method_name(cfg)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    place = processes.place()
    run_dir.mkdir(parents=True, exist_ok=True)
    done = finished(run_dir, plain)
    if done is not None:
        log.info("%s is finished already: not run again.", run_dir)
        return done
    compute = _way(plain, place=place, run_dir=run_dir)
    if place is not None and place.rank > 0:
        return compute()["selected"]["value"]
    with alone(run_dir):
        OmegaConf.save(OmegaConf.create(plain), run_dir / "config.yaml")
        summary: dict[str, Any] = {
            "format": 1, "status": "running", "error": None, "benchmark": cfg.benchmark.name, "method": cfg.method,
            "sharing": _last(cfg.sharing), "balancer": _last(cfg.balancer),
            "encoder": _last(cfg.encoder) if "encoder" in cfg else None, "runner": cfg.benchmark.get("_target_"),
            "seed": cfg.seed, "overrides": list(overrides), "config_hash": record.config_hash(plain),
            "versions": record.versions(), "git": record.git_state(), "started": _now(),
        }  # fmt: skip
        write_summary(run_dir, summary)
        start = time.perf_counter()
        try:
            summary |= compute() | {"status": "finished"}
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
            summary["status"] = "interrupted"
            raise
        except Exception as error:
            summary |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            raise
        finally:
            summary |= {"finished": _now(), "wall_seconds": time.perf_counter() - start}
            write_summary(run_dir, summary)
    return summary["selected"]["value"]


def _way(cfg: dict[str, Any], *, place: processes.Place | None, run_dir: Path) -> Callable[[], dict[str, Any]]:
    """How the run is done: here, or in processes of its own, for which this one needs neither torch nor pandas.

    Raises:
        ValueError: it needs another number of processes than were started, or processes on other machines.
    """
    from_place = "" if place is None else f"{place.started_by} started {place.size} processes, and"
    if "_target_" in cfg["benchmark"]:
        if place is not None:
            raise ValueError(f"{from_place} benchmark={cfg['benchmark']['name']} runs in one.")
        from mtlbench.fit import run_itself

        return functools.partial(run_itself, OmegaConf.create(cfg), run_dir)
    trainer = cfg["trainer"]
    devices, nodes = number_of_devices(trainer["devices"]), trainer.get("num_nodes", 1)
    if devices is None:
        from mtlbench.lit.devices import count

        devices = count(trainer.get("accelerator", "auto"), trainer["devices"])
    if place is not None and devices * nodes != place.size:
        raise ValueError(
            f"{from_place} this run takes {devices * nodes}: trainer.devices={trainer['devices']} on "
            f"trainer.num_nodes={nodes}. Make the numbers agree."
        )
    if place is None and nodes > 1:
        raise ValueError(
            f"trainer.num_nodes={nodes}: processes on several machines are started by torchrun on each of them, or by "
            "Slurm's srun. README, 'Several devices', has the commands."
        )
    if place is None and devices > 1:
        logs: Any = None
        if HydraConfig.initialized():
            logs = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
        return functools.partial(
            processes.run, cfg, run_dir=run_dir, number=devices, threads=cfg["threads"], logging=logs
        )
    from mtlbench.fit import fit

    return functools.partial(fit, OmegaConf.create(cfg), run_dir)


def finished(run_dir: Path, cfg: dict[str, Any]) -> float | None:
    """The result of a finished run of the same configuration; None where there is something left to do.

    Raises:
        ValueError: the directory holds a run of another configuration, or a broken record.
    """
    if not (run_dir / "summary.json").exists():
        return None
    summary = read_summary(run_dir)
    if summary["config_hash"] != record.config_hash(cfg):
        before: Any = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
        found = record.differences(before, cfg)
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(
            f"{run_dir} holds a run of another configuration: {', '.join(found[:3])}{more}. Choose another directory, "
            "or delete that one."
        )
    return summary["selected"]["value"] if summary["status"] == "finished" else None


def _method_name(cfg: DictConfig) -> str:
    independent = cfg.sharing._target_.endswith(".Independent")
    return "independent" if independent else _last(cfg.balancer)


def _last(node: DictConfig) -> str:
    """The module that a node's `_target_` is in: one concept a file."""
    return node._target_.split(".")[-2]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
