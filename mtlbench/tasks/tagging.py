"""A tag for each token."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torchmetrics.classification as tmc
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.metrics import IGNORED, EntityF1
from mtlbench.models.heads.tagging import TaggingHead
from mtlbench.tasks.classification import Classification


class Tagging(Classification):
    """A tag for each token. Targets (B, L) int64, -100 where there is none. Entities are read as BIO."""

    primary = "f1"
    perfect: Mapping[str, float] = MappingProxyType({"f1": 1.0, "token_accuracy": 1.0})
    more: Mapping[str, float] = MappingProxyType({})

    def head(self, features: int) -> nn.Module:
        options = {k: v for k, v in self.head_options.items() if k != "pooling"}
        return TaggingHead(features, self.info.num_outputs, **options)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | int]:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED), (
            targets != IGNORED
        ).sum()

    def metrics(self) -> dict[str, Metric]:
        classes = self.info.num_outputs
        return self._chosen(
            {
                "f1": lambda: EntityF1(self.info.labels),
                "token_accuracy": lambda: tmc.MulticlassAccuracy(
                    classes, average="micro", ignore_index=IGNORED, validate_args=False
                ),
            }
        )

    def update(self, metrics: Mapping[str, Metric], predictions: Tensor, targets: Tensor) -> None:
        for metric in metrics.values():
            metric.update(predictions, targets)
