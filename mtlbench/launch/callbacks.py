"""What happens around jobs: all are checked before the first one starts, and the failures of a sweep are collected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from mtlbench import processes
from mtlbench.launch.compose import check_job, overrides, without_hydra
from mtlbench.launch.errors import CONFIG_ERRORS, explain


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that failed: its overrides, its directory, and why."""

    overrides: str
    run_dir: Path
    error: str


# Of this process's sweep. Hydra makes the callback itself and hands it to nobody.
failures: list[Failure] = []


class Refused(SystemExit):
    """A job cannot run. Not an Exception: those of a callback Hydra turns into warnings."""

    def __init__(self, reason: str) -> None:
        super().__init__(2)
        self.reason = reason


class Guard(Callback):
    """Configured in conf/hydra/default.yaml."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks a single run, before it has a directory.

        Raises:
            Refused: saying why it cannot run.
        """
        try:
            check_job(without_hydra(config), context=config.hydra)
            _check_directory(config, "hydra.run.dir")
        except CONFIG_ERRORS as error:
            raise Refused(explain(error)) from error
        place = processes.place()
        named = any(line.startswith("hydra.run.dir=") for line in overrides(config.hydra, of="hydra"))
        if place is not None and not named:
            raise Refused(
                f"{place.started_by} has started {place.size} processes, and each would name a run directory by its "
                "own time of day. Say hydra.run.dir=FOLDER; the same command then goes on with what is there."
            )

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Composes and checks every job.

        Raises:
            Refused: naming the first job that cannot run; or this is one process of several, which would all sweep.
        """
        place = processes.place()
        if place is not None:
            raise Refused(
                f"{place.started_by} has started {place.size} processes, and a sweep starts those of its jobs by "
                "itself. Run it without, or its jobs one by one with hydra.run.dir=FOLDER."
            )
        # Other sweepers choose their jobs while they go.
        if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
            return
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        loader = GlobalHydra.instance().config_loader()
        given = [f"{key}={values}" for key, values in (config.hydra.sweeper.params or {}).items()]
        given += overrides(config.hydra, of="task")
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(given)
        for number, of_job in enumerate(BasicSweeper.split_arguments(parsed, None)[0]):
            try:
                job = loader.load_sweep_config(config, list(of_job))
                check_job(without_hydra(job), context=job.hydra)
                with open_dict(job):
                    job.hydra.job.id = job.hydra.job.num = number
                _check_directory(job, "hydra.sweep.dir", "hydra.sweep.subdir")
            except CONFIG_ERRORS as error:
                raise Refused(f"{explain(error)}\nIn the job: {' '.join(of_job)}. No job was started.") from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Remembers a failure: after a sweep Hydra itself tells of the first alone."""
        if job_return.status == JobStatus.FAILED and config.hydra.mode.name == "MULTIRUN":
            given = " ".join(overrides(config.hydra, of="task"))
            run_dir = Path(config.hydra.runtime.output_dir)
            failures.append(Failure(overrides=given, run_dir=run_dir, error=str(job_return._return_value)))


def _check_directory(config: DictConfig, *keys: str) -> None:
    """Refuses a job whose directory holds another run, before Hydra writes the job's overrides and log there.

    Args:
        config: of the job, with Hydra's own node.
        keys: whose values, joined, are the directory.

    Raises:
        ValueError: naming what differs.
    """
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)  # for what refers to it
    try:
        run_dir = Path(*(str(OmegaConf.select(config, key)) for key in keys))
        if (run_dir / "summary.json").exists():
            from mtlbench.train import finished

            plain: Any = OmegaConf.to_container(without_hydra(config), resolve=True)
            finished(run_dir, plain)
    finally:
        HydraConfig.instance().cfg = before
