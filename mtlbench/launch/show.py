"""`mtlbench data show`: a benchmark's data, read as a run would read them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mtlbench.check import check
from mtlbench.confdir import conf_dir
from mtlbench.launch.errors import CONFIG_ERRORS, explain


def show(benchmark: str, overrides: Sequence[str], *, config_dir: Path | None = None) -> int:
    """Prints what `mtlbench.data.describe` says of a benchmark, and returns the exit status.

    Args:
        benchmark: the name of its YAML file.
        overrides: of the run's configuration, such as encoder=pretrained, whose tokenizer then counts sub-words.
        config_dir: a folder of one's own configs beside those of mtlbench.
    """
    try:
        cfg = compose([f"benchmark={benchmark}", *overrides], config_dir=config_dir)
        check(cfg)
        if "datasets" not in cfg.benchmark:
            raise ValueError(f"{benchmark} has no data: it is a problem that is made by code.")

        from rich.console import Console

        from mtlbench.assembly import load_data, load_sources
        from mtlbench.data.build import read_tables
        from mtlbench.data.describe import describe
        from mtlbench.data.names import choose, masked_datasets

        datasets = load_sources(cfg)
        nodes = choose(cfg.benchmark.tasks, None if cfg.tasks is None else list(cfg.tasks))
        wanted = list(dict.fromkeys(node.dataset for node in nodes.values()))
        tables = read_tables(
            datasets,
            wanted=wanted,
            data_dir=cfg.data.dir,
            overlaps=cfg.data.overlaps,
            unlabelled=masked_datasets(cfg.benchmark.tasks),
        )
        data = load_data(cfg, tables=tables)
        console = Console()
        for shown in describe(tables, data, datasets=datasets):
            console.print(shown)
            console.print()
    except CONFIG_ERRORS as error:
        print(f"mtlbench data show: {explain(error)}", file=sys.stderr)
        return 2
    return 0


def compose(overrides: Sequence[str], *, config_dir: Path | None) -> DictConfig:
    """The configuration of a run with these overrides."""
    own = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir.resolve()}]"]
    GlobalHydra.instance().clear()  # of an earlier command in this process
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="data"):
        return hydra.compose("train", [*overrides, *own])
