"""What the timed steps train: a shared trunk, a head for each of K tasks, and one batch of random numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

VOCABULARY, LENGTH, WIDTH = 30_522, 64, 256


class Block(nn.Module):
    """A block of BERT-mini: 4 heads, normalised after each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.norm, self.last_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (4, WIDTH // 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attention = (query @ key.transpose(2, 3) * (WIDTH // 4) ** -0.5).softmax(-1)
        x = self.norm(x + self.out((attention @ value).transpose(1, 2).flatten(2)))
        normed: Tensor = self.last_norm(x + self.feed(x))
        return normed


class Transformer(nn.Module):
    """BERT-mini: 4 blocks of width 256; the first token's features (B, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm, self.blocks = nn.LayerNorm(WIDTH), nn.Sequential(*(Block() for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        positions = self.positions(torch.arange(x.shape[1]).expand_as(x))
        features: Tensor = self.blocks(self.norm(self.tokens(x) + positions))[:, 0]
        return features


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(720, 50), nn.ReLU(),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()
    )


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(64, 128, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(),
    )  # fmt: skip


def tokens(batch: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, LENGTH))


class Kind(NamedTuple):
    """What a setting's letters stand for.

    Attributes:
        own: each task has a batch of its own.
        joined: a system that can may run the trunk once on all of them.
    """

    title: str
    trunk: Callable[[], nn.Module]
    head: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    classes: int
    own: bool = False
    joined: bool = False


KINDS = {
    "lenet": Kind(
        "LeNet",
        lenet,
        lambda: nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10)),
        lambda batch: torch.randn(batch, 1, 36, 36),
        10,
    ),
    "mlp": Kind("MLP", mlp, lambda: nn.Linear(512, 2), lambda batch: torch.randn(batch, 1024), 2),
    "conv": Kind("conv trunk", convolutions, lambda: nn.Linear(256, 2), lambda batch: torch.randn(batch, 3, 32, 32), 2),
    "tf": Kind("BERT-mini, one input", Transformer, lambda: nn.Linear(WIDTH, 3), tokens, 3),
    "tfm": Kind(
        "BERT-mini, own batches joined", Transformer, lambda: nn.Linear(WIDTH, 3), tokens, 3, own=True, joined=True
    ),
    "tfa": Kind("BERT-mini, own batches apart", Transformer, lambda: nn.Linear(WIDTH, 3), tokens, 3, own=True),
}


def parse(setting: str) -> tuple[Kind, int, int]:
    """Kind, tasks and batch of a setting such as mlp10-b32.

    Raises:
        ValueError: it is not of that form.
    """
    found = re.fullmatch(r"([a-z]+)([1-9]\d*)-b([1-9]\d*)", setting)
    if found is None or found[1] not in KINDS:
        raise ValueError(
            f"{setting!r}: expected KIND TASKS -b BATCH such as mlp10-b32, KIND one of {', '.join(KINDS)}."
        )
    return KINDS[found[1]], int(found[2]), int(found[3])


class Problem(nn.Module):
    """The same numbers for everyone who makes one of the same setting.

    Raises:
        ValueError: no such setting.
    """

    def __init__(self, setting: str) -> None:
        super().__init__()
        kind, tasks, batch = parse(setting)
        torch.manual_seed(0)
        self.tasks, self.own, self.joined = [f"t{index}" for index in range(tasks)], kind.own, kind.joined
        self.trunk = kind.trunk()
        self.heads = nn.ModuleDict({task: kind.head() for task in self.tasks})
        self.inputs = [kind.inputs(batch) for _ in (self.tasks if kind.own else [0])]
        self.targets = {task: torch.randint(kind.classes, (batch,)) for task in self.tasks}

    def features(self) -> list[Tensor]:
        """(B, D) of each batch: one for all tasks, or one for each."""
        return [self.trunk(x) for x in self.inputs]

    def losses(self, features: list[Tensor]) -> dict[str, Tensor]:
        of_tasks = features if self.own else features * len(self.tasks)
        return {
            task: nn.functional.cross_entropy(self.heads[task](z), self.targets[task])
            for task, z in zip(self.tasks, of_tasks, strict=True)
        }

    def optimizer(self, more: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
        return torch.optim.Adam([*self.parameters(), *more], lr=1e-4)
