"""A number."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torchmetrics.regression as tmr
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.data.tables import TaskInfo
from mtlbench.metrics.correlation import Correlation
from mtlbench.models.heads.regression import RegressionHead
from mtlbench.tasks.base import Task


class Regression(Task):
    """A number. Targets (B,) float32, NaN where missing; the loss is the squared error over the training variance.

    Outputs are standardised with the training targets' mean and standard deviation, predictions in target units.
    """

    primary = "rmse"
    perfect: Mapping[str, float] = MappingProxyType({"rmse": 0.0, "mae": 0.0})
    more: Mapping[str, float] = MappingProxyType({"pearson": 1.0, "spearman": 1.0})
    needs_variety = frozenset({"pearson", "spearman"})

    def __init__(self, info: TaskInfo, train_targets: Tensor, *, head_options: Mapping[str, Any]) -> None:
        super().__init__(info, train_targets, head_options=head_options)
        known = train_targets[self.labelled(train_targets)].double()
        self.mean = known.mean().item()
        # A constant target has no scale of its own: its errors are left in its units.
        self.std = known.std(correction=0).item() or 1.0

    def constants(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}

    @staticmethod
    def labelled(targets: Tensor) -> Tensor:
        return ~targets.isnan()

    def encode(self, targets: Tensor) -> Tensor:
        return (targets - self.mean) / self.std

    def head(self, features: int) -> nn.Module:
        return RegressionHead(features, **self.head_options)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | int]:
        if self.dense:
            return F.mse_loss(outputs, targets), len(targets)
        keep = self.labelled(targets)
        count = keep.sum()
        return torch.where(keep, outputs - targets, 0).square().sum() / count, count

    def metrics(self) -> dict[str, Metric]:
        return self._chosen(
            {
                "rmse": lambda: tmr.MeanSquaredError(squared=False),
                "mae": tmr.MeanAbsoluteError,
                "pearson": lambda: Correlation(ranks=False),
                "spearman": lambda: Correlation(ranks=True),
            }
        )

    def trivial(self, targets: Tensor) -> Tensor:
        return torch.full_like(targets, self.mean)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs * self.std + self.mean
