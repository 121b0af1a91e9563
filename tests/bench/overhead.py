"""What the framework adds to a training step: Lightning, data, balancing, logging, against a bare torch loop.

Both train the same model on the same batches with the same optimizer; the model is so small that the rest shows.
CPU seconds of one thread, so that neighbours on a shared machine do not count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from mtlbench.balancing.equal import Equal
from mtlbench.data.mixing import Joint
from mtlbench.data.tables import Data, InputSpec, Split, TaskInfo
from mtlbench.lit.callbacks import Recorder
from mtlbench.lit.datamodule import MultiTaskDataModule
from mtlbench.lit.module import MultiTaskModule
from mtlbench.lit.selection import quiet
from mtlbench.models.encoders.mlp import mlp
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.hard import Hard
from mtlbench.tasks import Regression, Task

TASKS, ROWS, BATCH, ROUNDS = 40, 6400, 32, 9
STEPS = ROWS // BATCH


def problem() -> tuple[Data, list[Task]]:
    """Forty regression tasks on one dataset of vectors."""
    torch.manual_seed(0)
    spec = InputSpec(type="vector", shape=(8,))
    infos = {f"t{i}": TaskInfo(name=f"t{i}", type="regression", dataset="d", num_outputs=1) for i in range(TASKS)}
    splits = {}
    for name, rows in (("train", ROWS), ("val", 64), ("test", 64)):
        targets = {task: torch.randn(rows) for task in infos}
        splits[name] = {"d": Split({"x": torch.randn(rows, 8)}, targets=targets)}
    train = splits["train"]["d"].targets
    tasks: list[Task] = [
        Regression(info, train[name], head_options={"pooling": "first"}) for name, info in infos.items()
    ]  # type: ignore[arg-type]
    return Data(splits=splits, tasks=infos, input_spec={"d": spec}), tasks


def model(tasks: list[Task]) -> MultiTaskModel:
    return MultiTaskModel(Hard, lambda: mlp(spec=InputSpec(type="vector", shape=(8,)), hidden=[4]), tasks, seed=0)


def bare(data: Data, tasks: list[Task]) -> float:
    """CPU ms a step of a loop as one writes it by hand: index a batch, sum the losses, backward, step."""
    network = model(tasks)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    split = data.splits["train"]["d"]
    x, targets = split.inputs["x"], torch.stack([split.targets[t.name] for t in tasks], 1)  # type: ignore[arg-type]
    start = time.process_time()
    for rows in torch.randperm(ROWS).split(BATCH):
        outputs = network({"d": {"x": x[rows]}})  # type: ignore[index]
        batch = targets[rows].unbind(1)
        loss = torch.stack(
            [torch.nn.functional.mse_loss(outputs[t.name], y) for t, y in zip(tasks, batch, strict=True)]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.process_time() - start) / STEPS * 1e3


class Clock(Callback):
    """CPU ms a step from the epoch's first batch to its end, with what is logged there."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start = time.process_time()

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.ms = (time.process_time() - self.start) / STEPS * 1e3


def framework(data: Data, tasks: list[Task], *, tensorboard: bool) -> float:
    """The same through mtlbench."""
    with tempfile.TemporaryDirectory() as folder:
        datamodule = MultiTaskDataModule(
            data, tasks, Joint, batch_size=BATCH, eval_batch_size=64, seed=0, num_workers=0
        )
        module = MultiTaskModule(
            model(tasks), tasks, Equal(num_tasks=TASKS, seed=0), engine={},
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0), schedule=None, head_lr=None,
            layer_lr_decay=1.0, loss_scale="none", splits=data.splits, joint={}, steps_per_epoch=STEPS, seed=0,
            log_every_n_steps=50,
        )  # fmt: skip
        clock = Clock()
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", devices=1, num_sanity_val_steps=0, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
            callbacks=[Recorder(Path(folder)), clock], logger=TensorBoardLogger(folder) if tensorboard else False,
        )  # fmt: skip
        trainer.fit(module, datamodule)
        return clock.ms


def main() -> None:
    torch.set_num_threads(1)
    quiet()
    data, tasks = problem()
    rows: dict[str, list[float]] = {"bare torch loop": [], "mtlbench": [], "mtlbench, TensorBoard every 50 steps": []}
    for _ in range(ROUNDS + 1):  # the first round warms up
        rows["bare torch loop"].append(bare(data, tasks))
        rows["mtlbench"].append(framework(data, tasks, tensorboard=False))
        rows["mtlbench, TensorBoard every 50 steps"].append(framework(data, tasks, tensorboard=True))
    table = Table(title=f"Framework overhead, {TASKS} tasks, CPU ms a step, medians of {ROUNDS} interleaved rounds")
    for name in ("loop", "ms a step", "ms added", "ratio"):
        table.add_column(name, justify="left" if name == "loop" else "right")
    reference = rows["bare torch loop"][1:]
    for name, values in rows.items():
        pairs = list(zip(values[1:], reference, strict=True))
        added = statistics.median(a - b for a, b in pairs)
        ratio = statistics.median(a / b for a, b in pairs)
        table.add_row(name, f"{statistics.median(values[1:]):.2f}", f"{added:+.2f}", f"{ratio:.2f}")
    Console().print(table)
