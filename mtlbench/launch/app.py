"""`mtlbench train`: a Hydra app whose errors are short, and whose sweeps outlive a failing job."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtlbench import processes
from mtlbench.check import ConfigError
from mtlbench.confdir import conf_dir
from mtlbench.launch.callbacks import Refused, failures
from mtlbench.launch.compose import check_job, overrides
from mtlbench.launch.errors import CONFIG_ERRORS, JobError, explain

log = logging.getLogger(__name__)
# conf/hydra/ sends it to the run's train.log alone.
traceback_log = logging.getLogger("mtlbench.traceback")
# What a user can mend. Everything else is shown with its type, for it may be a bug.
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)


def folder_name(text: str, *, longest: int = 150) -> str:
    """A job's overrides as the name of one folder: no slashes, and short enough for a file system."""
    name = text.replace("/", "_") or "defaults"
    return name if len(name) <= longest else f"{name[:longest]}-{hashlib.sha1(text.encode()).hexdigest()[:8]}"


# At import, so that launchers which start jobs in other processes have it there too.
OmegaConf.register_new_resolver("mtlbench_folder", folder_name, replace=True)


def job(cfg: DictConfig) -> float:
    """One run: what Hydra calls for each job, after composing its config.

    Returns:
        What sweepers optimise: the value of the selection rule.

    Raises:
        JobError: the run failed. Its traceback is in the run's log. Never SystemExit, which would end a sweep.
    """
    context = HydraConfig.get()
    run_dir = Path(context.runtime.output_dir)
    place = processes.place()
    trace = run_dir / "train.log"
    if place is not None and place.rank > 0:
        trace = run_dir / f"rank{place.rank}.log"
        _only_warnings(place.rank, trace)
    try:
        check_job(cfg, context=context)  # again, for sweepers other than the basic one choose jobs as they go
        from mtlbench.train import train

        method = context.runtime.choices.get("balancer")
        value = train(cfg, method=method, run_dir=run_dir, overrides=overrides(context, of="task"))
        log.info("%s %.4f, in %s", cfg.selection.monitor, value, os.path.relpath(run_dir))
        return value
    except ConfigError as error:
        raise JobError(str(error), config=True) from error
    except Exception as error:
        traceback_log.exception("The run failed.")
        text = explain(error) if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: {error}"
        if place is not None and "gloo" in str(error):
            text = (
                f"Rank {place.rank} of {place.size} lost another rank, which failed, hung or was killed; look at what "
                f"that one and {place.started_by} say. The same command goes on from the last checkpoint.\n{text}"
            )
        raise JobError(f"{text}\nTraceback: {os.path.relpath(trace)}") from error
    except SystemExit as error:
        # Lightning turns Ctrl-C into sys.exit; a sweep must stop at Ctrl-C or SIGTERM, and at nothing else.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from error
        raise JobError(f"The run left by sys.exit({error.code}).") from error


def _only_warnings(rank: int, trace: Path) -> None:
    """Of a process that torchrun or srun has started beside the first, which prints and logs for all.

    Args:
        rank: of this process.
        trace: the file that a traceback goes to, made only then.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"rank {rank}: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger().handlers = [handler]
    traceback_log.handlers = [logging.FileHandler(trace, delay=True)]


def train(arguments: list[str]) -> int:
    """Runs the Hydra app on the command line's arguments and returns the exit status."""
    place = processes.place()
    if place is not None and place.rank > 0:
        arguments = [*arguments, "hydra.output_subdir=null"]  # the first process writes .hydra
    # Hydra reads the command line from sys.argv. With this variable it hands its exceptions on instead of printing
    # them and leaving with status 1, so that every error is explained in one place.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *arguments]
    failures.clear()
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)
    try:
        # One of several processes dies of it, which the others see at once: its threads may wait for theirs for long.
        with nullcontext() if place is not None else processes.sigterm_interrupts():
            app()
    except Refused as refused:
        return _fail(refused.reason, status=2)
    except BrokenPipeError:  # `--cfg job | head`
        raise
    except JobError as error:
        if wants_traceback:
            raise
        return _list_failures() if failures else _fail(str(error), status=2 if error.config else 1)
    except CONFIG_ERRORS as error:
        if wants_traceback:
            raise
        return _fail(explain(error), status=2)
    finally:
        if not wants_traceback:
            del os.environ["HYDRA_FULL_ERROR"]
    return 0


def _fail(text: str, *, status: int) -> int:
    print(f"mtlbench train: {text}", file=sys.stderr)
    return status


def _list_failures() -> int:
    print(f"mtlbench train: {len(failures)} of the sweep's jobs failed, the others ran:", file=sys.stderr)
    for failure in failures:
        print(f"\n  {failure.overrides}\n    in {os.path.relpath(failure.run_dir)}", file=sys.stderr)
        print("    " + failure.error.replace("\n", "\n    "), file=sys.stderr)
    return 1
