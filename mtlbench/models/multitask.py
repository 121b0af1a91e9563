"""The model: encoder, sharing and heads composed. A plain module, without Lightning."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtlbench.models.encoders.base import Encoder
from mtlbench.models.sharing.base import Sharing
from mtlbench.models.sharing.independent import Independent
from mtlbench.tasks import Task


class MultiTaskModel(nn.Module):
    """Features from the sharing module, one head for each task.

    Args:
        make_sharing: from (make_encoder, task names) to the sharing module.
        make_encoder: from nothing to a fresh encoder.
        tasks: the tasks, in order.
        seed: initialises every part from (seed, its name), so that a part does not depend on the others.
    """

    def __init__(
        self,
        make_sharing: Callable[[Callable[[str], Encoder], Sequence[str]], Sharing],
        make_encoder: Callable[[], Encoder],
        tasks: Sequence[Task],
        *,
        seed: int,
    ) -> None:
        super().__init__()
        self.datasets: dict[str, list[str]] = {}
        for task in tasks:
            self.datasets.setdefault(task.dataset, []).append(task.name)

        def seeded_encoder(name: str) -> Encoder:
            with seeded(seed, f"encoder/{name}"):
                return make_encoder()

        self.sharing = make_sharing(seeded_encoder, [task.name for task in tasks])
        self.heads = nn.ModuleDict()
        for task in tasks:
            with seeded(seed, f"head/{task.name}"):
                self.heads[task.name] = task.head(self.sharing.features)

    def forward(
        self, inputs: Mapping[str, dict[str, Tensor]], tasks: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Outputs of the heads.

        Args:
            inputs: by dataset, the inputs of a batch.
            tasks: only these tasks; None for all that the datasets label.
        """
        outputs: dict[str, Tensor] = {}
        for dataset, tensors in inputs.items():
            wanted = [name for name in self.datasets[dataset] if tasks is None or name in tasks]
            if wanted:
                states = self.sharing(tensors, wanted)
                outputs |= {name: self.heads[name](states[name]) for name in wanted}
        return outputs

    def shared(self) -> list[nn.Module | nn.Parameter]:
        """What several tasks train together."""
        return self.sharing.shared()

    def private(self) -> list[nn.Parameter]:
        """The parameters that single tasks train."""
        shared = {
            id(p) for part in self.shared() for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())
        }
        return [p for p in self.parameters() if id(p) not in shared]

    def network(self, task: str) -> nn.Module:
        """The encoder and head that only this task trains.

        Raises:
            TypeError: tasks share parameters.
        """
        if not isinstance(self.sharing, Independent):
            raise TypeError(f"{type(self.sharing).__name__} sharing has no network that is one task's alone.")
        return nn.ModuleList([self.sharing.encoders[task], self.heads[task]])


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Draws torch's random numbers from (seed, name) inside, and leaves the generator as it was.

    Modules initialise themselves on the CPU, so its generator alone counts.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
        yield
