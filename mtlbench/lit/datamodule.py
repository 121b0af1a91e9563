"""One loader over all datasets of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from mtlbench.balancing.base import Balancer
from mtlbench.data.masking import Masking
from mtlbench.data.mixing import Mixing, Plan, Union, evaluation_loader, lengths, make_loader
from mtlbench.data.tables import Data
from mtlbench.tasks import Task


class MultiTaskDataModule(LightningDataModule):
    """Draws training batches by a mixing, and passes once over the other splits.

    Args:
        data: the benchmark in memory.
        tasks: what encodes the training targets for the losses.
        make_mixing: from (sizes, batch_size, seed, lengths) to a mixing.
        batch_size: examples drawn from each dataset on each rank, as the mixing takes it.
        ranks: how many train together. What a step draws is cut into so many parts, so that two ranks with half the
            batch size each take the steps of one.
        eval_batch_size: examples of a batch in validation and test.
        seed: of the order of the examples.
        num_workers: loader processes; with data in memory, 0 is the quickest.
    """

    def __init__(
        self,
        data: Data,
        tasks: Sequence[Task],
        make_mixing: Callable[..., Mixing],
        *,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        num_workers: int,
        ranks: int = 1,
    ) -> None:
        super().__init__()
        self.splits = data.splits
        encode = {task.name: task.encode for task in tasks}
        self.train = {name: split.encoded(encode) for name, split in data.splits["train"].items()}
        sizes = {name: len(split) for name, split in data.splits["train"].items()}
        self.mixing = make_mixing(
            sizes=sizes, batch_size=batch_size * ranks, seed=seed, lengths=lengths(data.splits["train"])
        )
        self.eval_batch_size, self.num_workers, self.ranks = eval_batch_size, num_workers, ranks
        self.num_batches = 1  # a step
        self.maskings = [
            Masking(
                task.name,
                dataset=task.dataset,
                tokenizer=data.input_spec[task.dataset].tokenizer,
                probability=task.info.options["probability"],
            )
            for task in tasks
            if task.masks
        ]

    def serve(self, balancer: Balancer) -> None:
        """Gives as many batches a step as the balancer takes.

        Raises:
            ValueError: a step may leave out datasets, and the balancer needs the gradients of all tasks; or an
                epoch has fewer batches than a step.
        """
        if balancer.needs_all_tasks and not self.mixing.every_dataset:
            name, mixing, least = type(balancer).__name__, type(self.mixing).__name__, len(self.mixing.sizes)
            raise ValueError(
                f"{name} compares the gradients of all tasks, and a step of the {mixing} mixing draws from some of the "
                f"{least} datasets only. Say mixing.group_steps={least} (or more): a step then takes so many batches, "
                f"at least one of each dataset, and {name} balances them as one. Or use mixing=joint, or a balancer "
                "that takes steps with some of the tasks, such as equal."
            )

        self.num_batches = Plan(self.mixing, batches=balancer.num_batches).batches

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # On the CPU there is nothing to move, and looking at the targets of 40 tasks one by one costs 0.2 ms a step.
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def train_dataloader(self) -> DataLoader[Any]:
        plan = Plan(self.mixing, batches=self.num_batches)
        union = Union(self.train, rank=self._rank(), ranks=self.ranks)
        return make_loader(union, plan, num_workers=self.num_workers, maskings=self.maskings)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluated("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluated("test")

    def _evaluated(self, split: str) -> DataLoader[Any]:
        trial = self.trainer is not None and bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by a connector
        return evaluation_loader(
            self.splits[split], batch_size=self.eval_batch_size, rank=self._rank(), ranks=self.ranks, trial=trial
        )

    def _rank(self) -> int:
        """This one's number.

        Raises:
            ValueError: another number of ranks trains than `ranks`.
        """
        rank, ranks = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        if ranks != self.ranks:
            raise ValueError(f"The data module was made for ranks={self.ranks}, and {ranks} train. Make them agree.")
        return rank
