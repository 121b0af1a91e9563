"""What happens beside the steps: the run's own record, per-task selection, the progress bar."""

from __future__ import annotations

import csv
import os
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from torch import Tensor

from mtlbench.data.mixing import batches_of
from mtlbench.lit.module import MultiTaskModule


class Recorder(Callback):
    """Writes `metrics.csv`, one row an epoch, and counts time and examples, those of each dataset epoch by epoch.

    Its rows are in the checkpoint, so that a resumed run's file is that of an uninterrupted one. On several ranks it
    counts the examples of all, and times and writes those of the first.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.csv"
        self.rows: list[dict[str, float]] = []
        self.examples, self.seconds = 0, 0.0
        self.drawn: Counter[str] = Counter()  # examples of each dataset in this epoch
        self._steps: list[float] = []  # seconds of each training step since the start or restart

    @property
    def step_seconds(self) -> float | None:
        """Median wall time of one training step: forward, balancing and update."""
        return statistics.median(self._steps) if self._steps else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = time.perf_counter()  # what lies between epochs is no training

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self._steps.append(now - self._step_start)
        self.seconds, self._mark = self.seconds + now - self._mark, now
        for one in batches_of(batch):
            drawn = {dataset: part["drawn"] for dataset, part in one.items()}
            self.drawn.update(drawn)
            self.examples += sum(drawn.values())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MultiTaskModule)
        row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": self.seconds}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        drawn: dict[str, float] = {f"drawn/{name}": self.drawn[name] for name in pl_module.model.datasets}
        for logger in trainer.loggers:
            logger.log_metrics(drawn, step=trainer.global_step)
        self.drawn.clear()
        self.rows.append(row | drawn | pl_module.means.row() | pl_module.val)
        if not trainer.is_global_zero:
            return
        columns = dict.fromkeys(key for row in self.rows for key in row)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "examples": self.examples, "seconds": self.seconds, "drawn": dict(self.drawn)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.examples = list(state_dict["rows"]), state_dict["examples"]
        self.seconds, self.drawn = state_dict["seconds"], Counter(state_dict["drawn"])


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which a killed run goes on: after every epoch, and every so many steps inside it.

    Never after an epoch's last step but before its end, nor between a step and a validation that follows it: Lightning
    would go on past that validation. A run that was stopped (early, or by `max_steps`) stays so.

    Args:
        dirpath: the folder of the run's checkpoints.
        every_n_steps: optimizer steps between checkpoints inside an epoch; None: none there.
    """

    def __init__(self, *, dirpath: str, every_n_steps: int | None = None) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._saved = 0
        self._stopped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What a run goes on from is saved already. Once more, amid the next step, would lose its first micro-batches.
        self._saved = trainer.global_step
        trainer.should_stop = self._stopped

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._save_amid_epoch(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_amid_epoch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save_amid_epoch(self, trainer: Trainer) -> None:
        step = trainer.global_step
        # Between the micro-batches of a step the count stands still.
        due = self.every_n_steps and step % self.every_n_steps == 0 and step != self._saved
        if due and not (trainer.is_last_batch or trainer.should_stop):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved, self._stopped = trainer.global_step, trainer.should_stop
        trainer.save_checkpoint(self.path, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {"stopped": self._stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stopped = state_dict["stopped"]


class PerTaskSelection(Callback):
    """Selects and stops each task of an independent run by itself, by its own primary validation metric.

    At the end of training every network gets back the weights of its best epoch.

    Args:
        patience: validations without improvement after which a task stops; None: never.
    """

    def __init__(self, *, patience: int | None = None) -> None:
        self.patience = patience
        self.best: dict[str, dict[str, Any]] = {}  # task -> value, epoch
        self._weights: dict[str, dict[str, Tensor]] = {}
        self._waits: dict[str, int] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MultiTaskModule)
        if trainer.sanity_checking:
            return
        for name, task in pl_module.tasks.items():
            if name in pl_module.stopped:
                continue
            value = pl_module.val[f"val/{name}/{task.primary}"]
            sign = 1 if task.higher_is_better(task.primary) else -1
            if name not in self.best or sign * value > sign * self.best[name]["value"]:
                self.best[name] = {"value": value, "epoch": trainer.current_epoch}
                state = pl_module.model.network(name).state_dict()
                self._weights[name] = {key: tensor.detach().clone() for key, tensor in state.items()}
                self._waits[name] = 0
            else:
                self._waits[name] += 1
                if self.patience is not None and self._waits[name] >= self.patience:
                    pl_module.stopped.add(name)
        if len(pl_module.stopped) == len(pl_module.tasks):
            trainer.should_stop = True

    def restore(self, module: MultiTaskModule) -> None:
        """Gives every task's network the weights of its best epoch."""
        for name, weights in self._weights.items():
            module.model.network(name).load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "weights": self._weights, "waits": self._waits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._weights = state_dict["best"], state_dict["weights"]
        self._waits = state_dict["waits"]


class TaskProgressBar(RichProgressBar):
    """Lightning's rich bar with the step's task losses; beyond a few tasks, their mean and the worst.

    Args:
        most: tasks up to which each loss is shown.
    """

    def __init__(self, *, most: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.most = most

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        assert isinstance(pl_module, MultiTaskModule)
        if pl_module.record is None:
            return {}
        losses = pl_module.record.losses
        if len(losses) <= self.most:
            return {n: f"{v:.3f}" for n, v in zip(pl_module.tasks, losses.tolist(), strict=True)}
        worst = int(torch.nan_to_num(losses, nan=-torch.inf).argmax())
        name = list(pl_module.tasks)[worst]
        return {"mean": f"{losses.nanmean():.3f}", f"worst ({name})": f"{losses[worst]:.3f}"}
