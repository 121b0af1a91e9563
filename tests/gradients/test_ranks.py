"""Several processes with a part of each batch take the same steps as one with the whole of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mtlbench.balancing.base import Balancer, Weighting
from mtlbench.gradients import BalanceRecord, GradientEngine
from mtlbench.gradients.ranks import Ranks
from mtlbench.lit.losses import sums
from tests.contract.balancers import NAMES, build

TASKS = ("a", "b", "c")
STEPS, ROWS = 30, 12
# Of the rows of a batch, each rank's: uneven, as last batches are.
PARTS = {1: (12,), 2: (7, 5), 3: (5, 4, 3)}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.001, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.002),
}


class Batch(NamedTuple):
    x: Tensor  # (B, 6)
    y: Tensor  # (B, T)
    mask: Tensor  # (B, T) where there are labels

    def rows(self, start: int, stop: int) -> Batch:
        return Batch(*(tensor[start:stop] for tensor in self))


def batches(dtype: torch.dtype) -> list[Batch]:
    """Partly labelled; in some steps a task is missing from the first rows, or from all."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(3 * STEPS):
        x, y = (torch.randn(ROWS, size, generator=generator, dtype=torch.float64) for size in (6, len(TASKS)))
        mask = torch.rand(ROWS, len(TASKS), generator=generator) < 0.8
        mask[-1], mask[0] = True, True
        if index % 4 == 1:
            mask[:8, index % 3] = False
        if index % 9 == 5:
            mask[:, index % 3] = False
        made.append(Batch(x.to(dtype), (y + 3).to(dtype), mask))
    return made


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype, *, of_losses: torch.dtype | None = None) -> None:
        super().__init__()
        self.of_losses = of_losses or dtype
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        self.heads = nn.ModuleDict({name: nn.Linear(5, 1) for name in TASKS})
        self.to(dtype)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor | float]]:
        z = self.encoder(batch.x)
        losses: dict[str, Tensor] = {}
        counts: dict[str, Tensor | float] = {}
        for index, name in enumerate(TASKS):
            output = self.heads[name](z).squeeze(-1).to(self.of_losses)  # where sharded, on all ranks
            keep = batch.mask[:, index]
            if keep.any():  # a rank may lack a task
                losses[name] = (output - batch.y[:, index])[keep].square().mean()
                counts[name] = keep.sum()
        return losses, counts


class Trained(NamedTuple):
    weights: Tensor  # (STEPS, N) of model and balancer after each step
    records: list[BalanceRecord]


def trained(
    balancer: Balancer,
    optimizer: str,
    dtype: torch.dtype,
    *,
    rank: int,
    size: int,
    micro: int = 1,
    shard: bool = False,
    **options: Any,
) -> Trained:
    """Thirty steps on this rank's rows, with the encoder's parameters and one head's on all ranks or in shards."""
    # FAMO learns from how little losses change in a step, and gets them in float64, as from `MultiTaskModule`. Of
    # float32 losses, the order of a batch's rows alone moves the weights by up to 4e-6 on one process.
    net = Net(dtype, of_losses=torch.float64 if balancer.needs_after_step else None)
    if shard and size > 1:
        mesh = init_device_mesh("cpu", (size,))
        for module in (net.encoder[0], net.encoder, net.heads["a"]):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    balancer = balancer.to(dtype) if list(balancer.parameters()) else balancer
    engine = GradientEngine(net.encoder, balancer, tasks=TASKS, private=net.heads, **options)
    parameters = [*net.parameters(), *balancer.parameters()]
    update = OPTIMIZERS[optimizer](parameters)
    start = sum(PARTS[size][:rank])
    ranks = Ranks(None, device=torch.device("cpu"))
    data, weights, records = batches(dtype), [], []
    for step in range(STEPS):
        several = [data[step + STEPS * index] for index in range(balancer.num_batches)]
        mine = [batch.rows(start, start + PARTS[size][rank]) for batch in several]
        for part in range(micro):
            cut = [batch.rows(2 * part, ROWS if part + 1 == micro else 2 * part + 2) for batch in mine]
            given = [net.losses(batch) for batch in cut]
            losses, counts = [found[0] for found in given], [found[1] for found in given]
            record = engine.backward(losses, counts=counts, accumulate=part + 1 < micro)
        assert record is not None
        update.step()
        if balancer.needs_after_step:
            with torch.no_grad():
                total, number = sums(*net.losses(mine[0]), tasks=TASKS, ranks=ranks)
            balancer.after_step(record.losses, total / number)
        if step % 10 == 9:
            balancer.end_epoch(record.losses)
        weights.append(torch.cat([_whole(p).flatten() for p in parameters]))
        records.append(record)
    return Trained(torch.stack(weights).clone(), records)


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor().detach() if isinstance(parameter, DTensor) else parameter.detach()


def methods(kind: type[Balancer] = Balancer) -> list[str]:
    return [name for name in NAMES if name != "independent" and isinstance(build(name, 3), kind)]


def run(case: Case, *, rank: int, size: int) -> Trained:
    name, optimizer, dtype, options = case
    return trained(build(name, 3), optimizer, getattr(torch, dtype), rank=rank, size=size, **options)


Case = tuple[str, str, str, dict[str, Any]]
QUICK: list[Case] = [
    *((name, "adam", "float64", {}) for name in methods()),
    *((name, "sgd", "float64", {"micro": 2}) for name in ("gls", "upgrad", "gradvac", "moco", "modo")),
    *((name, "sgd", "float64", {"normalize": "match_equal"}) for name in ("equal", "upgrad", "graddrop", "modo")),
    *((name, "sgd", "float64", {"heads": "weighted"}) for name in ("nash_mtl", "gradnorm")),
    *(
        ("imtl", "sgd", "float64", {"measure": place, "micro": micro})
        for place in ("last_layer", "features")
        for micro in (1, 2)
    ),
    *((name, "adam", "float64", {"shard": True}) for name in ("equal", "uncertainty", "upgrad", "graddrop", "modo")),
]
THOROUGH: list[Case] = [
    *((name, "sgd", dtype, {}) for name in methods() for dtype in ("float64", "float32")),
    *((name, "adam", "float32", {}) for name in methods()),
    *((name, "sgd", "float64", {"micro": 2, "normalize": "match_equal"}) for name in methods()),
    *((name, "sgd", "float64", {"heads": "weighted"}) for name in methods(Weighting)),
    *(
        (name, "sgd", "float64", {"measure": place, "micro": micro})
        for name in ("mgda", "pcgrad")
        for place in ("last_layer", "features")
        for micro in (1, 2)
    ),
    *((name, "adam", dtype, {"shard": True}) for name in methods() for dtype in ("float64", "float32")),
    *((name, "sgd", "float64", {"shard": True, "micro": 2}) for name in methods()),
]


def meet(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)


def work(rank: int, size: int, folder: str, cases: list[Case]) -> None:
    """One rank's process: all cases, one after the other."""
    meet(rank, size, folder)
    torch.save([tuple(run(case, rank=rank, size=size)) for case in cases], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def check(cases: list[Case], size: int, folder: Path) -> None:
    mp.spawn(work, args=(size, str(folder), cases), nprocs=size)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
    wrong = []
    for index, case in enumerate(cases):
        alone = run(case, rank=0, size=1)
        weights, records = (list(parts) for parts in zip(*(found[index] for found in ranks), strict=True))
        tolerance = 1e-12 if case[2] == "float64" else 1e-6
        gap = float((weights[0] - alone.weights).abs().max())
        if gap > tolerance or any(not torch.equal(weights[0], other) for other in weights[1:]):
            wrong.append((case, gap))
        for here, expected in zip(records[0], alone.records, strict=True):
            torch.testing.assert_close(tuple(here)[:3], tuple(expected)[:3], rtol=1e-2, atol=1e-2, equal_nan=True)
            assert here.status == expected.status
    assert not wrong


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_equal_one_process(size: int, tmp_path: Path) -> None:
    """To 1e-12 in float64 after every one of 30 steps, and all ranks to the bit."""
    check(QUICK, size, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_equal_one_process_with_every_method_and_option(size: int, tmp_path: Path) -> None:
    """To 1e-6 in float32."""
    check(THOROUGH, size, tmp_path)


# ---------------------------------------------------------------- what one rank sends


def traffic(rank: int, size: int, folder: str) -> None:
    meet(rank, size, folder)
    sent: Counter[str] = Counter()

    def count(name: str, numbers: Callable[..., float]) -> None:
        call = getattr(dist, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            sent[name] += int(numbers(*args))
            return call(*args, **kwargs)

        setattr(dist, name, counted)

    # What a ring sends, in numbers of one rank.
    others = (size - 1) / size
    count("all_reduce", lambda tensor, *_: 2 * others * tensor.numel())
    count("reduce_scatter_single", lambda mine, parts, *_: others * parts.numel())
    count("all_gather_single", lambda parts, mine, *_: others * parts.numel())
    torch.manual_seed(0)
    encoder = nn.Linear(300, 100)
    heads = nn.ModuleDict({name: nn.Linear(100, 1) for name in TASKS})
    engine = GradientEngine(encoder, build("upgrad", 3), tasks=TASKS, private=heads)
    z = encoder(torch.randn(4, 300))
    engine.backward({name: head(z).square().mean() for name, head in heads.items()})
    torch.save(sum(sent.values()), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_a_weighting_sends_each_row_once(tmp_path: Path) -> None:
    """(K + 1) P numbers, not 2 K P, beside the heads' gradients and some dozens."""
    mp.spawn(traffic, args=(2, str(tmp_path)), nprocs=2)
    shared, private = 300 * 100 + 100, 3 * (100 + 1)
    for rank in range(2):
        sent = torch.load(tmp_path / f"{rank}.pt")
        assert sent <= (len(TASKS) + 1) * shared / 2 + private + 100
