"""SIGTERM does what it did before Lightning came."""

from __future__ import annotations

import signal

from lightning.pytorch import Callback, LightningModule, Trainer


class KeepSigterm(Callback):
    """Takes back the handler that Lightning sets at every fit, validate and test.

    Lightning's waits for the end of a step, and on several ranks broadcasts amid the step's collectives, which hangs.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._before = signal.getsignal(signal.SIGTERM)

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if signal.getsignal(signal.SIGTERM) != self._before:  # in another thread than the main one it never differs
            signal.signal(signal.SIGTERM, self._before)

    on_train_start = on_validation_start = on_test_start = _restore
