"""The processes that train one run together, one for each device: started here, by torchrun, or by Slurm's srun."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

GRACE = 10.0  # seconds that the others get to end by themselves after one has failed
OWN = "MTLBENCH_RANK"  # the variable that tells a process started here: 0/2 is the first of two


class Terminated(KeyboardInterrupt):
    """SIGTERM, as Slurm sends at a job's end: it stops what Ctrl-C stops, sweeps too."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within it SIGTERM raises `Terminated`."""

    def terminate(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Place(NamedTuple):
    """This process among those of its run."""

    rank: int
    size: int
    started_by: Literal["mtlbench", "torchrun", "srun"]


def place() -> Place | None:
    """None where this process is the only one of its run, or has not started the others yet."""
    env = os.environ
    if OWN in env:
        rank, size = env[OWN].split("/")
        found = Place(int(rank), int(size), "mtlbench")
    elif "TORCHELASTIC_RUN_ID" in env:
        found = Place(int(env["RANK"]), int(env["WORLD_SIZE"]), "torchrun")
    elif "SLURM_STEP_NUM_TASKS" in env:
        found = Place(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), "srun")
    else:
        return None
    return found if found.size > 1 else None


@dataclass(frozen=True)
class Job:
    """What each process is told on its standard input, which stays open for as long as the starting one lives.

    Attributes:
        config: of the run, plain and resolved.
        run_dir: where the run's files go.
        report: the file that this process leaves its `Report` in.
        logging: how the first process logs, for `logging.config`; None: not at all.
    """

    config: Mapping[str, Any]
    run_dir: Path
    report: Path
    logging: Mapping[str, Any] | None


@dataclass(frozen=True)
class Report:
    """How a process ended: with a result, or with an error at a time, its cause and its traceback beside it."""

    result: Any = None
    error: BaseException | None = None
    cause: BaseException | None = None
    traceback: str = ""
    time: float = 0.0


def run(
    config: Mapping[str, Any], *, run_dir: Path, number: int, threads: int | None, logging: Mapping[str, Any] | None
) -> Any:
    """Trains in `number` processes of this machine, and waits for all.

    What the first one prints goes where this one's goes, what the others print into `rank1.log` and so on.

    Args:
        config: of the run, plain and resolved.
        run_dir: where the run's files go.
        number: of processes.
        threads: of torch on the CPU, in each; None: the cores divided among them.
        logging: how the first process logs, for `logging.config`.

    Returns:
        The first one's result.

    Raises:
        ChildProcessError: a process was killed, or did not end when another failed.
        Exception: that of the process that failed first.
    """
    logs = [run_dir / f"rank{rank}.log" for rank in range(number)]
    shared = _environment(number, threads=threads)
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
        reports = [Path(folder) / str(rank) for rank in range(number)]
        try:
            for rank in range(number):
                processes.append(
                    _start(
                        Job(config, run_dir, reports[rank], logging if rank == 0 else None),
                        environment=shared | {OWN: f"{rank}/{number}", "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        output=None if rank == 0 else files.enter_context(logs[rank].open("ab")),
                    )
                )
            _wait(processes)
            hung = [rank for rank, process in enumerate(processes) if process.poll() is None]
        finally:
            _stop(processes)
            for log in logs[1:]:
                if log.exists() and not log.stat().st_size:
                    log.unlink()
        return _result(processes, [_read(path) for path in reports], hung=hung, logs=logs)


def _environment(number: int, *, threads: int | None) -> dict[str, str]:
    """What all processes have in common."""
    settings = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "NODE_RANK": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # what this process can import, they can
    }
    if threads is not None or "OMP_NUM_THREADS" not in os.environ:
        settings["OMP_NUM_THREADS"] = str(threads or max(1, (os.cpu_count() or 1) // number))
    return os.environ | settings


def _start(job: Job, *, environment: Mapping[str, str], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "mtlbench.launch.rank"],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        env=environment,
        start_new_session=True,  # Ctrl-C comes to the starting process alone, and is handed on
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended already: its status says more
        process.stdin.write(pickle.dumps(job))
        process.stdin.flush()
    return process


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, or one has failed and the others have had their time."""
    failed: float | None = None
    # All are polled at every turn: one that has ended stays unseen while those before it run.
    while None in (statuses := [process.poll() for process in processes]):
        if failed is None and any(statuses):
            failed = time.monotonic()
        if failed is not None and time.monotonic() > failed + GRACE:
            return
        time.sleep(0.05)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupts those that still run; kills what does not heed it."""
    try:
        for process in processes:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + GRACE / 2
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()


def _read(path: Path) -> Report | None:
    """None where a process ended before it could say how."""
    return pickle.loads(path.read_bytes()) if path.exists() else None


def _result(
    processes: Sequence[subprocess.Popen[bytes]],
    reports: Sequence[Report | None],
    *,
    hung: Sequence[int],
    logs: Sequence[Path],
) -> Any:
    """The first process's result.

    Raises:
        ChildProcessError: naming the ranks that were killed or hung.
        Exception: the first error, with the traceback of its process as a note.
    """
    ended = [rank for rank in range(len(processes)) if rank not in hung]
    for rank in ended:
        process = processes[rank]
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            raise ChildProcessError(
                f"Rank {rank} of {len(processes)} (process {process.pid}) was killed by {name}, and the other ranks "
                "were stopped. The same command goes on from the last checkpoint."
                + (" Linux kills so where memory runs out." if name == "SIGKILL" else "")
            )
    errors = {rank: report for rank, report in enumerate(reports) if report is not None and report.error is not None}
    if errors:
        rank = min(errors, key=lambda rank: errors[rank].time)
        error, cause = errors[rank].error, errors[rank].cause
        assert error is not None
        error.__cause__ = cause
        error.add_note(f"On rank {rank}:\n{errors[rank].traceback}")
        if not hung:
            raise error
        numbers = ", ".join(f"{other} (process {processes[other].pid})" for other in hung)
        raise ChildProcessError(
            f"Rank {rank} failed: {error}\nRank {numbers} had not ended {GRACE:g} s later, and was stopped."
        ) from error
    for rank in ended:
        if processes[rank].returncode or reports[rank] is None:
            raise ChildProcessError(
                f"Rank {rank} of {len(processes)} ended with status {processes[rank].returncode} before it could say "
                f"why.{f' See {logs[rank]}.' if rank else ''}"
            )
    assert reports[0] is not None
    return reports[0].result
