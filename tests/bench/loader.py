"""What the loader costs beside a training step of BERT-mini, and what batches of similar length save.

Two datasets of made-up sentences, proportional mixing. CPU seconds of one thread, so that neighbours on a shared
machine do not count.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel

from mtlbench.data.mixing import Plan, Union, lengths, make_loader
from mtlbench.data.mixing.proportional import Proportional
from mtlbench.data.tables import Ragged, Split

SIZES, BATCH, STEPS, BUCKET, VOCABULARY = {"a": 20_000, "b": 5_000}, 32, 25, 50, 8_000


def sentences(rows: int) -> Split:
    """Sub-words of 3 to 128 a sentence, most of them few: median 20, as in short reviews and questions."""
    sizes = torch.empty(rows).log_normal_(3.0, 0.6).round().long().clamp(3, 128)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    words = torch.randint(VOCABULARY, (int(offsets[-1]),))
    inputs = {
        "input_ids": Ragged(words, offsets=offsets, pad=0),
        "attention_mask": Ragged(torch.ones_like(words), offsets=offsets, pad=0),
    }
    return Split(inputs, targets={"y": torch.randint(2, (rows,))})


def measure(splits: dict[str, Split], *, bucket: int) -> dict[str, float]:
    """Means over the steps: CPU ms of the loader, the epoch's plan included, and of the training; padded positions."""
    mixing = Proportional(
        sizes=SIZES, batch_size=BATCH, seed=0, steps_per_epoch=STEPS, bucket=bucket, lengths=lengths(splits)
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    encoder, head = BertModel(config, add_pooling_layer=False), torch.nn.Linear(256, 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-4)
    loading, training, padding = [], [], []
    start = time.process_time()
    for batch in make_loader(Union(splits), Plan(mixing), num_workers=0):
        loaded = time.process_time()
        (part,) = batch.values()
        step(encoder, head, optimizer, part)
        loading.append(loaded - start)
        start = time.process_time()
        training.append(start - loaded)
        padding.append(1 - part["inputs"]["attention_mask"].float().mean().item())
    return {
        "loader": statistics.mean(loading) * 1e3,
        "training": statistics.mean(training) * 1e3,
        "padding": statistics.mean(padding),
    }


def step(encoder: BertModel, head: torch.nn.Linear, optimizer: torch.optim.Optimizer, part: dict[str, Any]) -> None:
    states = encoder(**part["inputs"]).last_hidden_state[:, 0]
    loss = torch.nn.functional.cross_entropy(head(states), part["targets"]["y"])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    splits = {name: sentences(rows) for name, rows in SIZES.items()}
    table = Table(title=f"Loader beside a step of BERT-mini, batch {BATCH}, CPU ms, means of {STEPS} steps")
    for name in ("batches", "loader", "training", "loader / training", "padding"):
        table.add_column(name, justify="left" if name == "batches" else "right")
    for bucket, name in ((1, "as they come"), (BUCKET, f"of similar length (mixing.bucket={BUCKET})")):
        found = measure(splits, bucket=bucket)
        part = found["loader"] / found["training"]
        table.add_row(
            name, f"{found['loader']:.2f}", f"{found['training']:.0f}", f"{part:.2%}", f"{found['padding']:.0%}"
        )
    Console().print(table)
