"""A task: one thing to predict. Its head, its loss, its metrics, one of them primary.

Missing labels are marked in the targets (-100 for classes and tags, NaN for numbers) and masked here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torchmetrics.classification as tmc
import torchmetrics.regression as tmr
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.data.tables import TaskInfo
from mtlbench.metrics import IGNORED, EntityF1
from mtlbench.models.heads.classification import ClassificationHead
from mtlbench.models.heads.regression import RegressionHead
from mtlbench.models.heads.tagging import TaggingHead


class Task(ABC):
    """Base of the task types.

    Args:
        info: what the data say of the task.
        train_targets: all targets of its training split, for statistics of the trivial predictor.
        head_options: options of the head, from the config.

    Raises:
        ValueError: the training split holds no label of the task.
    """

    primary: ClassVar[str]
    # Each metric's value for perfect predictions; higher is better where that is above 0.
    perfect: ClassVar[Mapping[str, float]]

    def __init__(self, info: TaskInfo, train_targets: Tensor, *, head_options: Mapping[str, Any]) -> None:
        self.info, self.name, self.dataset = info, info.name, info.dataset
        self.head_options = dict(head_options)
        labelled = self.labelled(train_targets)
        if not bool(labelled.any()):
            raise ValueError(f"Task {self.name!r}: no labelled example in the training split of {self.dataset!r}.")
        self.dense = bool(labelled.all())
        self._train = train_targets

    @staticmethod
    @abstractmethod
    def labelled(targets: Tensor) -> Tensor:
        """Bool mask, of the targets' shape, of what is labelled."""

    @abstractmethod
    def head(self, features: int) -> nn.Module:
        """A fresh head on D features."""

    def encode(self, targets: Tensor) -> Tensor:
        """Targets in the form that the loss takes; done once for the training split."""
        return targets

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | int]:
        """() mean loss over the labelled elements of encoded targets, and their number; NaN without any."""

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Fresh metrics by name; each takes (predictions, targets) of labelled elements."""

    @abstractmethod
    def trivial(self, targets: Tensor) -> Tensor:
        """Predictions that the trivial predictor (majority class, mean) makes for these targets."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Predictions in the targets' form."""

    def update(self, metrics: Mapping[str, Metric], predictions: Tensor, targets: Tensor) -> None:
        """Feeds the labelled elements to the metrics."""
        keep = self.labelled(targets)
        if not bool(keep.all()):
            predictions, targets = predictions[keep], targets[keep]
        if len(targets):
            for metric in metrics.values():
                metric.update(predictions, targets)

    def readable(self, values: Tensor, known: Tensor) -> Any:
        """One example's targets or predictions as label names or numbers."""
        if values.ndim:
            return [self.readable(v, k) for v, k in zip(values, known, strict=True) if k]
        return self.info.labels[int(values)] if self.info.labels and not values.is_floating_point() else float(values)

    def higher_is_better(self, metric: str) -> bool:
        return self.perfect[metric] > 0

    def correct(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """(B,) whether each example is predicted exactly, unlabelled elements aside."""
        right = (predictions == targets) | ~self.labelled(targets)
        return right.flatten(1).all(1) if right.ndim > 1 else right


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


class Tagging(Classification):
    """A tag for each token. Targets (B, L) int64, -100 where there is none. Entities are read as BIO."""

    primary = "f1"
    perfect: ClassVar[Mapping[str, float]] = {"f1": 1.0, "token_accuracy": 1.0}

    def head(self, features: int) -> nn.Module:
        options = {k: v for k, v in self.head_options.items() if k != "pooling"}
        return TaggingHead(features, self.info.num_outputs, **options)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | int]:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED), (
            targets != IGNORED
        ).sum()

    def metrics(self) -> dict[str, Metric]:
        classes = self.info.num_outputs
        token = tmc.MulticlassAccuracy(classes, average="micro", ignore_index=IGNORED, validate_args=False)
        return {"f1": EntityF1(self.info.labels), "token_accuracy": token}

    def update(self, metrics: Mapping[str, Metric], predictions: Tensor, targets: Tensor) -> None:
        for metric in metrics.values():
            metric.update(predictions, targets)


class Regression(Task):
    """A number. Targets (B,) float32, NaN where missing; the loss is the squared error over the training variance.

    Outputs are standardised with the training targets' mean and standard deviation, predictions in target units.
    """

    primary = "rmse"
    perfect: ClassVar[Mapping[str, float]] = {"rmse": 0.0, "mae": 0.0}

    def __init__(self, info: TaskInfo, train_targets: Tensor, *, head_options: Mapping[str, Any]) -> None:
        super().__init__(info, train_targets, head_options=head_options)
        known = train_targets[self.labelled(train_targets)].double()
        self.mean = known.mean().item()
        # A constant target has no scale of its own: its errors are left in its units.
        self.std = known.std(correction=0).item() or 1.0

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
        return {"rmse": tmr.MeanSquaredError(squared=False), "mae": tmr.MeanAbsoluteError()}

    def trivial(self, targets: Tensor) -> Tensor:
        return torch.full_like(targets, self.mean)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs * self.std + self.mean


class MultiLabel(Task):
    """Several yes-or-no labels of one example. Targets (B, C) float32 of 0 and 1, NaN where missing."""

    primary = "macro_f1"
    perfect: ClassVar[Mapping[str, float]] = {"macro_f1": 1.0, "accuracy": 1.0}

    @staticmethod
    def labelled(targets: Tensor) -> Tensor:
        return ~targets.isnan()

    def head(self, features: int) -> nn.Module:
        return ClassificationHead(features, self.info.num_outputs, **self.head_options)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | int]:
        keep = self.labelled(targets)
        count = keep.sum()
        safe = torch.where(keep, targets, 0.0)
        losses = F.binary_cross_entropy_with_logits(outputs, safe, reduction="none")
        return torch.where(keep, losses, 0.0).sum() / count, count

    def metrics(self) -> dict[str, Metric]:
        labels = self.info.num_outputs
        options: dict[str, Any] = {"ignore_index": IGNORED, "validate_args": False}
        return {
            "macro_f1": tmc.MultilabelF1Score(labels, average="macro", **options),
            "accuracy": tmc.MultilabelAccuracy(labels, average="micro", **options),
        }

    def trivial(self, targets: Tensor) -> Tensor:
        return (self._train.nanmean(0) > 0.5).to(targets).expand_as(targets)

    def predict(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).to(outputs.dtype)

    def update(self, metrics: Mapping[str, Metric], predictions: Tensor, targets: Tensor) -> None:
        known = torch.where(self.labelled(targets), targets, IGNORED).long()
        for metric in metrics.values():
            metric.update(predictions, known)


TASK_TYPES: dict[str, type[Task]] = {
    "classification": Classification,
    "tagging": Tagging,
    "regression": Regression,
    "multilabel": MultiLabel,
}
