"""A rank that lacks what others have: a finite number, rows, tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mtlbench.gradients import GradientEngine
from tests.contract.balancers import build
from tests.gradients.test_ranks import TASKS, Net, batches, meet


def fails(rank: int, size: int, folder: str) -> None:
    meet(rank, size, folder)
    net, batch = Net(torch.float64), batches(torch.float64)[0]
    seen = []
    for name in ("equal", "upgrad", "graddrop"):
        engine = GradientEngine(net.encoder, build(name, 3), tasks=TASKS, private=net.heads)
        losses, counts = net.losses(batch)
        broken = {**losses, "b": losses["b"] * (torch.inf if rank == 1 else 1)}
        for scale in (1.0, torch.tensor(2.0)):
            try:
                record = engine.backward(broken, counts=counts, scale=scale)
            except FloatingPointError as error:
                seen.append(str(error).split(".")[0])
            else:
                assert record is not None
                seen.append(record.status)
            losses, counts = net.losses(batch)
            broken = {**losses, "b": losses["b"] * (torch.inf if rank == 1 else 1)}
        if rank == 1:
            losses["b"] = losses["b"] + (0 * losses["b"]).sqrt()  # finite, and its gradient is not
        try:
            engine.backward(losses, counts=counts)
        except FloatingPointError as error:
            seen.append(str(error).split(".")[0])
        else:
            seen.append("solved")
    torch.save(seen, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_all_ranks_raise_or_skip_together(tmp_path: Path) -> None:
    mp.spawn(fails, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert first[:3] == [
        "Non-finite loss of task b at step 0 on rank 1",
        "skipped",
        "solved",  # a Scalarizer's gradients are not looked at
    ]
    loss, gradient = (f"Non-finite {what} of task b at step" for what in ("loss", "gradient"))
    assert first[3:] == 2 * [f"{loss} 0 on rank 1", "skipped", f"{gradient} 1"]


# ---------------------------------------------------------------- a rank without a batch


def at_features(rank: int, *, size: int) -> list[Any]:
    """Two steps of which the last rank, where there are several, has no rows: its modules do not run."""
    net, batch, found = Net(torch.float64), batches(torch.float64)[0], []
    engine = GradientEngine(net.encoder, build("mgda", 3), tasks=TASKS, private=net.heads, measure="features")
    for micro in (1, 2):
        for part in range(micro):
            losses, counts = ({}, {}) if rank == size - 1 > 0 else net.losses(batch.rows(6 * part, 6 * part + 6))
            record = engine.backward(losses, counts=counts, accumulate=part + 1 < micro)
        assert record is not None
        found += [*record[:3], *(p.grad for p in net.parameters())]
    return found


def without_rows(rank: int, size: int, folder: str) -> None:
    meet(rank, size, folder)
    torch.save(at_features(rank, size=size), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_a_rank_without_rows_has_no_features(tmp_path: Path) -> None:
    mp.spawn(without_rows, args=(2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        torch.testing.assert_close(found, at_features(0, size=1), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- sparse gradients of a head


def of_tokens(tokens: Tensor, engine: GradientEngine, shared: nn.Linear, table: nn.Embedding) -> Tensor:
    losses = {"a": shared.weight.square().mean()}
    counts = {"a": 1}
    if len(tokens):
        losses["b"], counts["b"] = shared(table(tokens)).square().mean(), len(tokens)
    engine.backward(losses, counts=counts)
    assert table.weight.grad is not None
    return table.weight.grad


def sparse(rank: int, size: int, folder: str) -> None:
    """A rank lacks some of the tokens, and in the second step all."""
    if size > 1:
        meet(rank, size, folder)
    found = []
    for name in ("equal", "upgrad"):
        torch.manual_seed(0)
        shared, table = nn.Linear(3, 2).double(), nn.Embedding(6, 3, sparse=True).double()
        engine = GradientEngine(shared, build(name, 2), tasks=("a", "b"), private=table)
        for tokens, kept in ((torch.tensor([1, 4, 4, 2]), 3), (torch.tensor([5, 0]), 2)):
            mine = tokens if size == 1 else (tokens[:kept], tokens[kept:])[rank]
            found.append(of_tokens(mine, engine, shared, table))
    torch.save(found, Path(folder) / f"{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


def test_sparse_gradients_of_a_head_stay_sparse(tmp_path: Path) -> None:
    sparse(0, 1, str(tmp_path))
    mp.spawn(sparse, args=(2, str(tmp_path)), nprocs=2)
    alone, *ranks = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for found in ranks:
        for one, other in zip(found, alone, strict=True):
            assert one.is_sparse and other.is_sparse
            torch.testing.assert_close(one.to_dense(), other.to_dense())
