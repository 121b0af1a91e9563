"""Entity F1, on torchmetrics' Metric base so that it reduces over ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from seqeval.metrics import f1_score
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

IGNORED = -100


class EntityF1(Metric):
    """Micro F1 over entities (conlleval's rule, through seqeval) from per-token tag indices.

    An entity counts where its type and both ends are right. Tags are read as BIO.

    Args:
        labels: the tags in the order of their indices.
    """

    full_state_update = False
    higher_is_better = True
    predictions: list[Tensor]
    targets: list[Tensor]

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = list(labels)
        self.add_state("predictions", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Both (B, L) int64; positions where the target is -100 do not count."""
        # Sentences are laid end to end, each closed by one ignored token.
        close = torch.full((len(targets), 1), IGNORED, dtype=torch.int64, device=targets.device)
        padded = torch.cat([targets, close], dim=1)
        keep = padded != IGNORED
        keep[:, -1] = True
        self.targets.append(padded[keep])
        self.predictions.append(torch.cat([predictions, close], dim=1)[keep])

    def compute(self) -> Tensor:
        predictions, targets = dim_zero_cat(self.predictions).tolist(), dim_zero_cat(self.targets).tolist()
        true: list[list[str]] = [[]]
        said: list[list[str]] = [[]]
        for prediction, target in zip(predictions, targets, strict=True):
            if target == IGNORED:
                true.append([])
                said.append([])
            else:
                true[-1].append(self.labels[target])
                said[-1].append(self.labels[prediction])
        # A split without any entity has nothing to find; seqeval then reports 0, which zero_division states.
        return torch.tensor(f1_score(true, said, zero_division=0), dtype=torch.float64)
