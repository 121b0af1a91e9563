"""Correlation of predictions and targets: of numbers, and of classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassMatthewsCorrCoef
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat


class Correlation(Metric):
    """Pearson's or Spearman's correlation, from all values at once in double precision.

    It is 0 where all predictions (or all targets) are equal: torchmetrics gives NaN there, and a network that predicts
    the mean, as many do in their first epoch, must have a score.

    Args:
        ranks: Spearman's, of ranks, rather than Pearson's.
    """

    full_state_update = False
    higher_is_better = True
    predictions: list[Tensor]
    targets: list[Tensor]

    def __init__(self, *, ranks: bool) -> None:
        super().__init__()
        self.ranks = ranks
        self.add_state("predictions", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Both (B,)."""
        self.predictions.append(predictions.double())
        self.targets.append(targets.double())

    def compute(self) -> Tensor:
        predictions, targets = dim_zero_cat(self.predictions), dim_zero_cat(self.targets)
        if bool((predictions == predictions[0]).all()) or bool((targets == targets[0]).all()):
            return predictions.new_zeros(())
        return spearman_corrcoef(predictions, targets) if self.ranks else pearson_corrcoef(predictions, targets)


class Matthews(MulticlassMatthewsCorrCoef):
    """Matthews correlation; 0 where all predictions (or all targets) are of one class.

    torchmetrics takes a limit there that is not 0: 0.58 for three of four right.
    """

    def compute(self) -> Tensor:
        matrix: Tensor = self.confmat
        if min(int((matrix.sum(axis) > 0).sum()) for axis in (0, 1)) < 2:
            return matrix.new_zeros((), dtype=torch.float32)
        return super().compute()
