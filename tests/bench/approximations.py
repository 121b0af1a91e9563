"""How far the named approximations of the engine are from exact balancing, at every step of a real training.

The training is benchmark=multidigits5 (five tasks, one encoder) with the exact weights. At each of its steps each
approximation gives its weights for the same losses, and the error is the distance of the two directions of the shared
parameters, each at length 1: | J'w / |J'w| - J'w* / |J'w*| |, J the (T, P) gradients of the step, w* the exact weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra.utils import instantiate
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from mtlbench.assembly import set_up
from mtlbench.data.mixing import batches_of
from mtlbench.gradients import GradientEngine, partition
from tests.bench.steps import revision
from tests.conftest import config
from tests.contract.balancers import build

ROOT = Path(__file__).parents[2]
README = ROOT / "experiments" / "approximations" / "README.md"
CSV = README.with_name("errors.csv")
BEGIN, END = "<!-- errors.csv -->", "<!-- end -->"
METHODS = ("upgrad", "mgda", "nash_mtl", "pcgrad", "cagrad")
STEPS = 160  # five epochs
OPTIONS: Mapping[str, dict[str, Any]] = {
    "products=bfloat16": {"products": "bfloat16"},
    "measure=features": {"measure": "features"},
    "measure=last_layer": {"measure": "last_layer"},
}
AGES = (1, 4, 16)  # of weights, in steps: refresh=n uses weights of up to n - 1
QUANTILES = (0.5, 0.95)


class Follower:
    """A training of multidigits5 with one method, and what each approximation would have done at its steps."""

    def __init__(self, method: str, *overrides: str) -> None:
        cfg = config("benchmark=multidigits5", f"balancer={method}", "threads=1", *overrides, tiny=False)
        _, tasks, self.data, self.module = set_up(cfg)
        self.module.engine.close()  # others are made
        self.names = [task.name for task in tasks]
        self.optimizer = instantiate(cfg.optimizer, _partial_=True)(self.module.parameters())
        self.method = method
        self.shared = partition.parameters(self.module.model.shared())
        self.past: deque[Tensor] = deque(maxlen=max(AGES))

    def _weights(self, losses: Callable[[], dict[str, Tensor]], **options: Any) -> Tensor:
        """(T,) weights of the step, and `.grad`. The engine is of this step alone, for it watches every forward."""
        model, balancer = self.module.model, build(self.method, len(self.names))
        engine = GradientEngine(model.shared(), balancer, tasks=self.names, private=model.private(), **options)
        record = engine.backward(losses())
        engine.close()
        assert record is not None
        assert record.weights is not None
        return record.weights[0].double()

    def steps(self) -> Iterator[dict[str, float]]:
        """The errors of each step, which is then made."""
        self.module.train()
        while True:
            for item in self.data.train_dataloader():
                (batch,) = batches_of(item)

                def losses(batch: Any = batch) -> dict[str, Tensor]:
                    found: dict[str, Tensor] = self.module.task_losses(batch, 0, 0)[0]
                    return found

                yield self._step(losses)

    def _step(self, losses: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
        given = losses()
        rows = [torch.autograd.grad(given[name], self.shared, retain_graph=True) for name in self.names]
        jacobian = torch.stack([torch.cat([grad.reshape(-1) for grad in row]) for row in rows]).double()
        tried = {name: self._weights(losses, **options) for name, options in OPTIONS.items()}
        tried |= {f"refresh, age {age}": self.past[-age] for age in AGES if age <= len(self.past)}
        exact = self._weights(losses)
        self.past.append(exact)
        self.optimizer.step()
        wanted = normalize(exact @ jacobian, dim=0)
        return {name: float((normalize(weights @ jacobian, dim=0) - wanted).norm()) for name, weights in tried.items()}


def run(methods: tuple[str, ...] = METHODS, *, steps: int = STEPS, overrides: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row for each method, approximation and quantile over the steps: column `value`."""
    found = []
    for method in methods:
        taken = islice(Follower(method, *overrides).steps(), steps)
        errors = pd.DataFrame(track(taken, total=steps, description=method, transient=True))
        for name in errors.columns:
            known = errors[name].dropna()  # weights of an age are known from that step on
            found += [(method, name, quantile, known.quantile(quantile)) for quantile in QUANTILES]
    return pd.DataFrame(found, columns=["method", "approximation", "quantile", "value"])


def table(found: pd.DataFrame) -> list[list[str]]:
    """Header and rows: a row for each approximation, a column for each method, median and last quantile."""
    wide = found.pivot(index="approximation", columns=["method", "quantile"], values="value")
    methods = list(dict.fromkeys(found["method"]))
    rows = [["approximation", *methods]]
    for name in dict.fromkeys(found["approximation"]):
        rows.append([name, *(" / ".join(f"{wide.loc[name, (m, q)]:.1g}" for q in QUANTILES) for m in methods)])
    return rows


def markdown(found: pd.DataFrame) -> str:
    """The table as it stands in the README."""
    header, *rows = table(found)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Prints the table, and writes it with the CSV."""
    torch.set_num_threads(1)
    made = run().assign(steps=STEPS, torch=torch.__version__, mtlbench=revision())
    CSV.write_text(made.to_csv(index=False, float_format="%.4g"))
    found = pd.read_csv(CSV)
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{markdown(found)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    header, *rows = table(found)
    shown = Table(title="Error of the direction at length 1, median / 95 % of the steps")
    for name in header:
        shown.add_column(name, justify="left" if name == header[0] else "right")
    for cells in rows:
        shown.add_row(*cells)
    console = Console()
    console.print(shown)
    console.print(f"Written: {CSV.relative_to(ROOT)} and the table beside it.")
