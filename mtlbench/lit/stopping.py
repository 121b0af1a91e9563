"""The end of a training by its steps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopAtStep(Callback):
    """Ends the training after so many steps, with a validation, as an epoch ends.

    In place of Lightning's `max_steps`, which ends it without one, and with which Lightning takes every checkpoint for
    one from amid an epoch: gone on with from an epoch's end, it would train an epoch again, or leave one out.

    Args:
        step: optimizer steps.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self.step:
            trainer.should_stop = True
