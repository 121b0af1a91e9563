"""Tests a run's saved weights again, and compares with what its record says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mtlbench.fit import test
from mtlbench.inference.config import EVERYTHING, check_code, read_config
from mtlbench.results.records import read_summary

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Compared:
    """One test metric: as recorded after training (None where it is not), and as computed now."""

    metric: str
    recorded: float | None
    now: float

    @property
    def equal(self) -> bool:
        """Both within `TOLERANCE`, or both no number."""
        if self.recorded is None:  # what is no number is recorded as null
            return not math.isfinite(self.now)
        return abs(self.recorded - self.now) <= TOLERANCE


def evaluate(run_dir: Path, *, data_dir: Path | None = None, trust_code: bool = False) -> list[Compared]:
    """Computes all test metrics from the saved weights, as training does at its end.

    Args:
        run_dir: of a finished run.
        data_dir: where the datasets lie now; None: where they lay in training.
        trust_code: whether the run's config may call functions from outside mtlbench.

    Raises:
        ValueError: the run is not finished or was not tested, or its data or weights do not fit its config.
    """
    cfg = read_config(run_dir)
    check_code(cfg, groups=EVERYTHING, trust_code=trust_code)
    summary = read_summary(run_dir)
    if "test" not in summary:
        raise ValueError(f"{run_dir} has no test results to compare with; its status is '{summary['status']}'.")
    if data_dir is not None:
        cfg.data.dir = str(data_dir)
    cfg.trainer.enable_progress_bar = False
    return [Compared(name, summary["test"].get(name), value) for name, value in test(cfg, run_dir=run_dir).items()]
