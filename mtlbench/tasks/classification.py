"""One class of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torchmetrics.classification as tmc
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.metrics import IGNORED
from mtlbench.models.heads.classification import ClassificationHead
from mtlbench.tasks.base import Task


class Classification(Task):
    """One class of several. Targets (B,) int64."""

    primary = "accuracy"
    perfect: ClassVar[Mapping[str, float]] = {"accuracy": 1.0, "macro_f1": 1.0}

    @staticmethod
    def labelled(targets: Tensor) -> Tensor:
        return targets != IGNORED

    def head(self, features: int) -> nn.Module:
        return ClassificationHead(features, self.info.num_outputs, **self.head_options)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | int]:
        count = len(targets) if self.dense else self.labelled(targets).sum()
        return F.cross_entropy(outputs, targets, ignore_index=IGNORED), count

    def metrics(self) -> dict[str, Metric]:
        classes = self.info.num_outputs
        return {
            "accuracy": tmc.MulticlassAccuracy(classes, average="micro", validate_args=False),
            "macro_f1": tmc.MulticlassF1Score(classes, average="macro", validate_args=False),
        }

    def trivial(self, targets: Tensor) -> Tensor:
        return torch.full_like(targets, int(self._train[self.labelled(self._train)].mode().values))

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)
