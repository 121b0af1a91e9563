"""What tests of whole runs share: a run killed within an epoch, and what a run leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from mtlbench.lit.module import MultiTaskModule
from mtlbench.train import train


class Killed(BaseException):
    """Ends a run as a kill would: no handler of the run's own sees it as an error."""


def killed(cfg: DictConfig, *, run_dir: Path, at: tuple[int, int]) -> dict[str, Any]:
    """Trains up to a step, given as epoch and batch, that is not taken; the last checkpoint."""
    step = MultiTaskModule.training_step

    def dies(self: MultiTaskModule, batch: Any, batch_idx: int) -> Tensor:
        if (self.current_epoch, batch_idx) == at:
            raise Killed
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiTaskModule, "training_step", dies)
        with pytest.raises(Killed):
            train(cfg, run_dir=run_dir)
    return last(run_dir)


def last(run_dir: Path) -> dict[str, Any]:
    """The last checkpoint, which must load without running code."""
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def weights(run_dir: Path) -> dict[str, Tensor]:
    """The model's weights in the last checkpoint."""
    return {key: value for key, value in last(run_dir)["state_dict"].items() if key.startswith("model.")}


def curves(run_dir: Path) -> pd.DataFrame:
    return pd.read_csv(run_dir / "metrics.csv").drop(columns="seconds")
