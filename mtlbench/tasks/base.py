"""A task: one thing to predict. Its head, its loss, its metrics, one of them primary.

Missing labels are marked in the targets (-100 for classes and tags, NaN for numbers) and masked by the task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torchmetrics import Metric

from mtlbench.data.tables import TaskInfo


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
