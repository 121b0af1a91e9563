"""`mtlbench audit`: what the losses of a configured model reach, on one training batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mtlbench.check import ConfigError, check
from mtlbench.launch.errors import CONFIG_ERRORS, explain
from mtlbench.launch.show import compose

if TYPE_CHECKING:  # it imports torch
    from torch import Tensor

    from mtlbench.audit import Audit


def audit(overrides: Sequence[str], *, config_dir: Path | None = None) -> int:
    """Prints what `mtlbench.audit` sees, and returns the exit status: 1 where something is wrong.

    The model is that of a fresh run, on the CPU; the batch the first of the run's training, or as many as it takes for
    every task to have labels.

    Args:
        overrides: of the run's configuration, as for train.
        config_dir: a folder of one's own configs beside those of mtlbench.
    """
    try:
        cfg = compose(overrides, config_dir=config_dir)
        check(cfg)
        if "datasets" not in cfg.benchmark:
            raise ConfigError(f"benchmark={cfg.benchmark.name} trains no network: there is nothing to audit.")
        found = look(cfg)
    except (*CONFIG_ERRORS, ImportError) as error:  # the last where peft is missing
        print(f"mtlbench audit: {explain(error)}", file=sys.stderr)
        return 2
    from rich.console import Console

    from mtlbench.audit import show

    show(found, Console())
    return 1 if found.errors else 0


def look(cfg: DictConfig) -> Audit:
    """Audits a fresh run's model on the first batches of its training in which every task has labels."""
    import torch

    from mtlbench import audit
    from mtlbench.assembly import set_up
    from mtlbench.data.mixing import batches_of

    _, tasks, datamodule, module = set_up(cfg)
    module.engine.close()  # others are made
    module.train()
    names = [task.name for task in tasks]
    batches: list[Any] = []
    seen: set[str] = set()
    for item in datamodule.train_dataloader():
        batch = batches_of(item)[0]
        with torch.no_grad():
            counts = module.task_losses(batch, 0, 0)[1]
        labelled = {name for name, count in counts.items() if count > 0}
        if not labelled <= seen:
            batches.append(batch)
            seen |= labelled
        if len(seen) == len(names):
            break

    def losses() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for batch in batches:
            values, counts = module.task_losses(batch, 0, 0)
            found |= {name: loss for name, loss in values.items() if counts[name] > 0 and name not in found}
        return found

    model = module.model
    return audit.audit(losses, shared=model.shared(), private=model.private(), model=model, tasks=names)
