"""One process of several that train a run, started by `mtlbench.processes`: `python -m mtlbench.launch.rank`."""

from __future__ import annotations

import logging.config
import os
import pickle
import sys
import threading
import time
import traceback

from omegaconf import OmegaConf

from mtlbench.processes import Job, Report


def main() -> int:
    """Does the job on the standard input, and returns the exit status."""
    job: Job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_leave_with_the_starting_process, daemon=True).start()
    if job.logging is not None:
        logging.config.dictConfig(dict(job.logging))
    try:
        from mtlbench.fit import fit

        report = Report(fit(OmegaConf.create(dict(job.config)), job.run_dir))
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # which Lightning turns into sys.exit
            return 130
        report = _failed(RuntimeError(f"The run left by sys.exit({error.code})."))
    except Exception as error:  # noqa: BLE001  # reported, and raised again in the starting process
        report = _failed(error)
    else:
        import torch.distributed as dist

        dist.destroy_process_group()
    partial = job.report.with_suffix(".part")
    partial.write_bytes(pickle.dumps(report))
    os.replace(partial, job.report)
    return 0 if report.error is None else 1


def _leave_with_the_starting_process() -> None:
    """Its end of the standard input closes when it ends, however that happens: a run must not go on without it."""
    os.read(0, 1)
    os._exit(1)


def _failed(error: BaseException) -> Report:
    text = "".join(traceback.format_exception(error))
    found = Report(None, error, error.__cause__, text, time.time())
    try:
        pickle.loads(pickle.dumps(found))
    except Exception:  # noqa: BLE001  # an error of any library's: what it says is what counts
        return Report(None, RuntimeError(f"{type(error).__name__}: {error}"), None, text, found.time)
    return found


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)  # without waiting for threads of libraries that wait for other ranks
