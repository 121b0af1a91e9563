"""One process at a time trains in a run directory."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)
_held: set[Path] = set()  # by this process


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Holds the directory's lock, which the system releases however this process ends.

    Raises:
        ValueError: another process holds it.
    """
    with (run_dir / ".lock").open("a+", encoding="utf-8") as file:
        try:
            # Not flock: loader workers would inherit it, and hold it for seconds after their trainer was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise ValueError(
                f"Another process trains in {run_dir}: {file.read()}. Wait for its end, or choose another directory."
            ) from error
        except OSError as error:
            log.warning("%s can't be locked (%s): start no second run in it.", run_dir, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        _held.add(run_dir.resolve())
        try:
            yield
        finally:
            _held.remove(run_dir.resolve())


def abandoned(run_dir: Path) -> bool:
    """Whether the process that trained here is gone; False where that cannot be told, as on another machine."""
    if run_dir.resolve() in _held:  # closing the file would release the lock
        return False
    try:
        with (run_dir / ".lock").open(encoding="utf-8") as file:
            if file.read().rpartition(" on ")[2] != socket.gethostname():
                return False
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # somebody holds it, or there is none
        return False
    return True
