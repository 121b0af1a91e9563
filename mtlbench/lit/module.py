"""The training loop's side of the model: balanced steps, epoch means, evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric

from mtlbench.balancing.base import Balancer
from mtlbench.data.mixing import batches_of
from mtlbench.data.tables import Split
from mtlbench.gradients import BalanceRecord, GradientEngine
from mtlbench.gradients.ranks import Ranks
from mtlbench.lit.devices import average_statistics, check_strategy
from mtlbench.lit.epoch import EpochMeans
from mtlbench.lit.evaluation import Evaluation
from mtlbench.lit.losses import InitialLosses, in_float64, losses_again
from mtlbench.lit.optim import any_gradient, build_optimizer, build_schedule, clip, total_steps
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.tasks import Task

Batch = dict[str, dict[str, Any]]  # dataset -> inputs, targets -> name -> tensor; rows -> (B,)


class MultiTaskModule(LightningModule):
    """Trains a `MultiTaskModel` with a balancer under automatic optimization.

    `training_step` keeps the task losses in an attribute and returns a carrier; `backward` gives the
    losses to the engine, which writes every `.grad`. Clipping, accumulation, precision and schedulers stay Trainer
    flags.

    Args:
        model: encoder, sharing and heads.
        tasks: the tasks, in the balancer's order.
        balancer: decides the direction of the shared parameters.
        engine: options of `GradientEngine`.
        optimizer: the optimizer class with its settings.
        schedule: settings of `build_schedule`; None for a constant rate.
        head_lr: learning rate of all heads, or of some by task.
        layer_lr_decay: rate of an encoder's stage over that of the next.
        loss_scale: `initial` divides each task's loss by its first value.
        splits: the benchmark's splits by name and dataset, for the trivial predictors.
        joint: metrics over several tasks: name to the tasks that must all be right.
        steps_per_epoch: batches of an epoch.
        seed: seeds every step's random numbers (dropout), as a function of rank, step and micro-batch.
        log_every_n_steps: how often step-level losses and weights go to the loggers.
        tokenizers: dataset -> what turns the token ids of generated texts into texts.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Sequence[Task],
        balancer: Balancer,
        *,
        engine: Mapping[str, Any],
        optimizer: Callable[..., Optimizer],
        schedule: Mapping[str, Any] | None,
        head_lr: Mapping[str, float] | float | None,
        layer_lr_decay: float,
        loss_scale: Literal["none", "initial"],
        splits: Mapping[str, Mapping[str, Split]],
        joint: Mapping[str, Sequence[str]],
        steps_per_epoch: int,
        seed: int,
        log_every_n_steps: int,
        tokenizers: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.balancer, self.seed = model, balancer, seed
        self.tasks = {task.name: task for task in tasks}
        self._options = engine
        self.engine = self.make_engine()
        self.joint = joint
        self._generating = {task.name for task in tasks if task.generates}
        self._guided = self._generating | {task.name for task in tasks if task.masks}
        self.stopped: set[str] = set()  # tasks of independent networks that train no more
        self.evaluations = {
            name: Evaluation(self.tasks, splits[name], joint, split=name, tokenizers=tokenizers)
            for name in ("val", "test")
        }
        self.means = EpochMeans(list(self.tasks))
        self.val: dict[str, float] = {}  # of this epoch, empty where there was no validation
        self._ranks = Ranks(None, device=torch.device("cpu"))
        self.loss_scale = InitialLosses(list(self.tasks), self._ranks) if loss_scale == "initial" else None
        self._make_optimizer, self._schedule = optimizer, schedule
        self._rates: dict[str, Any] = {"head_lr": head_lr, "layer_lr_decay": layer_lr_decay}
        self._steps_per_epoch = steps_per_epoch // balancer.num_batches
        self._log_every = log_every_n_steps
        self.record: BalanceRecord | None = None  # of the last step
        self._losses: list[dict[str, Tensor]] = []  # one entry for each batch of the step
        self._counts: list[dict[str, Tensor | float]] = []
        self._stepping = False
        self._micro_batches: list[tuple[Batch | list[Batch], int]] = []  # kept for after_step alone

    def make_engine(self) -> GradientEngine:
        """One of the model's present parameters."""
        return GradientEngine(
            self.model.shared(), self.balancer, tasks=list(self.tasks), private=self.model.private(), **self._options
        )

    # ---------------------------------------------------------------- one step

    def forward(self, inputs: Mapping[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        return self.model(inputs)

    def training_step(self, batch: Batch | list[Batch], batch_idx: int) -> Tensor:
        if self.balancer.needs_after_step:
            self._micro_batches.append((batch, batch_idx))
        for index, one in enumerate(batches_of(batch)):
            losses, counts = self.task_losses(one, batch_idx, index)
            self._losses.append(losses)
            self._counts.append(counts)
        # What reaches `backward`, scaled by the precision plugin; the losses themselves wait in the attribute.
        return torch.ones((), device=self.device)

    def task_losses(
        self, batch: Batch, batch_idx: int, index: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | float]]:
        self._seed_forward(batch_idx, index)
        self.engine.gather()
        outputs = self.model(
            {dataset: part["inputs"] for dataset, part in batch.items()},
            self._hints(batch),
            tasks=self.tasks.keys() - self.stopped if self.stopped else None,
        )
        losses: dict[str, Tensor] = {}
        counts: dict[str, Tensor | float] = {}
        for part in batch.values():
            for name, targets in part["targets"].items():
                if name in outputs:
                    output = outputs[name]
                    if self.balancer.needs_after_step:  # of how little a loss changes, float32 keeps few digits
                        output, targets = in_float64(output), in_float64(targets)
                    losses[name], counts[name] = self.tasks[name].loss(output, targets)
        return losses if self.loss_scale is None else self.loss_scale(losses, counts), counts

    def _seed_forward(self, batch_idx: int, index: int) -> None:
        """Random numbers of a forward are a function of seed, rank, step and batch: a restart repeats them."""
        key = f"{self.seed}/{self.global_rank}/{self.current_epoch}/{batch_idx}" + (f"/{index}" if index else "")
        state = zlib.crc32(key.encode())
        torch.default_generator.manual_seed(state)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(state)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Called by Lightning with the carrier; writes the balanced gradients."""
        scaler = self._scaler()
        record = self.engine.backward(
            self._losses,
            counts=self._counts,
            scale=1.0 if scaler is None else torch.tensor(scaler.get_scale()),
            accumulate=not self._stepping,
        )
        self._losses, self._counts = [], []
        if record is not None:
            self.record = record

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Lightning calls this for a step's last micro-batch alone, and runs `backward` inside."""
        self._stepping = True
        scaler = self._scaler()
        scale = scaler.get_scale() if scaler is not None and self.balancer.needs_after_step else 0.0

        def closure() -> Any:
            result = None if optimizer_closure is None else optimizer_closure()
            # Without a label of any task there is no gradient. A scaler refuses that; at None it is left out.
            return result if any_gradient(optimizer) else None

        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure if scaler is None else closure)
        finally:
            self._stepping = False
        if self.trainer.world_size > 1:
            average_statistics(self.model)
        record = self.record
        assert record is not None
        if record.status != "skipped":
            self.means.add(record)
            # A scaler lowers its scale where it found the gradients infinite, and did not step.
            if self.balancer.needs_after_step and (scaler is None or scaler.get_scale() >= scale):
                self._after_step(record.losses.detach())
        self._micro_batches = []
        # Before any checkpoint, which callbacks take after this hook.
        if self.trainer.is_last_batch:
            self.balancer.end_epoch(self.means.losses())
        if self._log_every and self.trainer.loggers and self.trainer.global_step % self._log_every == 0:
            self._log_step()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing to do: the engine replaces every `.grad`, and sums micro-batches by itself."""

    def _after_step(self, losses: Tensor) -> None:
        """Tells the balancer how the step's losses (T,) have changed."""
        after = losses_again(self, self._micro_batches, ranks=self._ranks)
        bad = [name for name, a, b in zip(self.tasks, losses, after, strict=True) if a.isfinite() and not b.isfinite()]
        if not bad:
            self.balancer.after_step(losses, after)
        elif self._scaler() is None:  # under a loss scaler the next step on such weights is skipped too
            raise FloatingPointError(
                f"Non-finite loss of task {', '.join(bad)} on the data of step {self.engine.step - 1} after its "
                "update. Lower the learning rate, or clip gradients."
            )

    def _scaler(self) -> Any:
        plugin = self.trainer.precision_plugin
        return plugin.scaler if isinstance(plugin, MixedPrecision) else None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """After balancing, alike for all methods; networks that share nothing are clipped one by one."""
        if not any_gradient(optimizer) or not gradient_clip_val:  # a step without labels; Lightning clips nothing at 0
            return
        if not self.model.shared():
            for task in self.tasks:
                clip(self.model.network(task).parameters(), gradient_clip_val, gradient_clip_algorithm)
        elif self.engine.sharded:
            trained = (p for group in optimizer.param_groups for p in group["params"])
            clip(trained, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_gradients(
                optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
            )

    # ---------------------------------------------------------------- epochs

    def on_train_epoch_end(self) -> None:
        self._to_loggers(self.means.row())
        self.means.reset()
        self.val = {}

    def on_validation_epoch_start(self) -> None:
        self.engine.gather()
        self.evaluations["val"].reset(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:  # a few batches, which may be of one dataset alone
            return
        self.val = {f"val/{name}": value for name, value in self.evaluations["val"].compute().items()}
        # Callbacks see scores and primary metrics, and what they monitor: `self.log` costs half a millisecond a value.
        watched = {
            "val/score",
            *(f"val/{name}/{task.primary}" for name, task in self.tasks.items()),
            *self._monitored(),
        }
        self.log_dict({k: v for k, v in self.val.items() if k in watched}, logger=False, batch_size=1)
        if self.trainer.state.fn == "fit":
            self._to_loggers(self.val)

    def _monitored(self) -> set[str]:
        callbacks = [*self.trainer.checkpoint_callbacks, *self.trainer.early_stopping_callbacks]
        kinds = (ModelCheckpoint, EarlyStopping)
        return {c.monitor for c in callbacks if isinstance(c, kinds) and c.monitor is not None}

    def on_test_epoch_start(self) -> None:
        self.engine.gather()
        self.evaluations["test"].reset(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def on_test_epoch_end(self) -> None:
        self.test = self.evaluations["test"].compute()
        self._to_loggers({f"test/{name}": value for name, value in self.test.items()})

    def _evaluate(self, split: str, batch: Batch) -> None:
        outputs = self.model({dataset: part["inputs"] for dataset, part in batch.items()}, self._hints(batch))
        evaluation = self.evaluations[split]
        for part in batch.values():
            generated = {}
            for name in self._generating & part["targets"].keys():
                wanted = evaluation.wanted(name, part["rows"])
                if wanted.any():
                    inputs = {key: value[wanted] for key, value in part["inputs"].items()}
                    generated[name] = self.model.generate(inputs, name)
            evaluation.update(outputs, part["targets"], rows=part["rows"], generated=generated)

    def _hints(self, batch: Batch) -> dict[str, Tensor] | None:
        """The targets by task, for heads that are told them."""
        if not self._guided:
            return None
        return {name: target for part in batch.values() for name, target in part["targets"].items()}

    def metrics_of(self, task: str) -> dict[str, Metric]:
        """A task's metrics, as computed last in validation."""
        return self.evaluations["val"].metrics[task]

    def _log_step(self) -> None:
        assert self.record is not None
        losses = zip(self.tasks, self.record.losses.tolist(), strict=True)
        row = {f"step/loss/{name}": value for name, value in losses if value == value}
        if self.record.weights is not None:
            weights = self.record.weights.mean(0).tolist()
            row |= {f"step/weight/{n}": v for n, v in zip(self.tasks, weights, strict=True)}
        self._to_loggers(row)

    def _to_loggers(self, row: Mapping[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(row), step=self.trainer.global_step)

    # ---------------------------------------------------------------- set-up and state

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self._make_optimizer, self.model, self.balancer, **self._rates)
        if self._schedule is None:
            return optimizer
        total = total_steps(self.trainer, self._steps_per_epoch)
        scheduler = build_schedule(optimizer, total_steps=total, **self._schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        check_strategy(self.trainer)
        self.engine.step = self.trainer.global_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ranks"] = self.trainer.world_size
        checkpoint["epoch_means"] = self.means.state_dict()
        checkpoint["engine"] = self.engine.state_dict()
        checkpoint["stopped"] = sorted(self.stopped)
        checkpoint["val"] = self.val

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError where another number of ranks made the checkpoint."""
        if checkpoint["ranks"] != self.trainer.world_size:
            raise ValueError(
                f"The checkpoint is of a run on {checkpoint['ranks']} ranks, and this one has "
                f"{self.trainer.world_size}: each step would take another number of examples. Go on with as many "
                "devices, or start anew in another run directory."
            )
        self.means.load_state_dict(checkpoint["epoch_means"])
        self.engine.load_state_dict(checkpoint["engine"])
        self.stopped = set(checkpoint["stopped"])
        self.val = checkpoint["val"]
