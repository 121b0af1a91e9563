"""What a run leaves behind about itself: versions, revision, memory, a hash of its configuration."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mtlbench

PACKAGES = ("torch", "lightning", "transformers", "hydra-core", "torchmetrics", "numpy")
# What may differ between two starts of the same run.
_ELSEWHERE = ("resume", "method", "logger", "threads")
_ELSEWHERE_IN = {"data": ("dir", "num_workers"), "trainer": ("enable_progress_bar", "log_every_n_steps", "timeout")}


def config_hash(cfg: Mapping[str, Any]) -> str:
    """Identifies what a run computes, whatever the place and the loggers."""
    return hashlib.sha256(json.dumps(_kept(cfg), sort_keys=True, default=str).encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes two configurations' hashes differ, a line for each key."""
    old, new = dict(_flat(_kept(before))), dict(_flat(_kept(now)))
    keys = [key for key in old | new if old.get(key, "absent") != new.get(key, "absent")]
    return [f"{key} was {old.get(key, 'absent')} and is {new.get(key, 'absent')}" for key in keys]


def _kept(cfg: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in cfg.items() if key not in _ELSEWHERE}
    for group, names in _ELSEWHERE_IN.items():
        kept[group] = {key: value for key, value in kept.get(group, {}).items() if key not in names}
    return kept


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def versions() -> dict[str, str]:
    own = {"mtlbench": mtlbench.__version__, "python": sys.version.split()[0]}
    return own | {name: importlib.metadata.version(name) for name in PACKAGES}


def git_state() -> dict[str, Any] | None:
    """Revision of the source tree, and whether it is changed; None where mtlbench runs from no git checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", "--", __file__):
            return None  # installed into somebody else's repository
        # Without the lock that `status` takes to refresh the index: one who commits while runs start would meet it.
        dirty = git("--no-optional-locks", "status", "--porcelain")
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(dirty)}
    except (OSError, subprocess.CalledProcessError):
        return None


class PeakMemory:
    """Peak resident memory of the process since this object was made.

    Runs of one process must not inherit each other's peak, and only Linux can start the count anew.
    """

    def __init__(self) -> None:
        self._counts = sys.platform == "linux"
        if self._counts:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def mb(self) -> float | None:
        """In MB; None on other systems than Linux."""
        if not self._counts:
            return None
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
