"""A run's config as it is used after training: it may name code of mtlbench alone, and downloads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from mtlbench.models.encoders.transformer import pretrained
from mtlbench.results.records import config_path
from mtlbench.saved import ENCODER, TOKENIZER

# Where the functions and classes of each part may come from.
_HOMES = {
    "encoder": ("mtlbench.models.", "mtlbench.data."),
    "sharing": ("mtlbench.models.",),
    "benchmark": ("mtlbench.data.",),
    "mixing": ("mtlbench.data.",),
    "balancer": ("mtlbench.balancing.",),
    "optimizer": ("torch.optim.",),
    "trainer": ("mtlbench.lit.devices", "lightning.pytorch.trainer.", "lightning.pytorch.Trainer"),
}
EVERYTHING = tuple(_HOMES)
NETWORK = ("encoder", "sharing")


def read_config(run_dir: Path) -> DictConfig:
    """The run's config, with its pretrained encoder and its tokenizer read from the run directory.

    Raises:
        ValueError: the directory holds no finished run, or its config cannot be read.
    """
    path = config_path(run_dir)
    try:
        cfg = OmegaConf.load(path)
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(cfg, DictConfig) or "benchmark" not in cfg:
        raise ValueError(f"{path} is no run's configuration: expected a mapping with a benchmark.")
    if "encoder" not in cfg:
        raise ValueError(f"{run_dir} is a run of benchmark={cfg.benchmark.name}, which trains no network.")
    if cfg.encoder.get("_target_") == f"{pretrained.__module__}.{pretrained.__name__}":
        cfg.encoder.model, cfg.encoder.weights = _folder(run_dir, ENCODER), False
        cfg.encoder.trust_remote_code = False
    if cfg.encoder.get("tokenizer") is not None:
        cfg.encoder.tokenizer = {
            "_target_": "mtlbench.data.text.load_tokenizer",
            "name_or_path": _folder(run_dir, TOKENIZER),
        }
    return cfg


def _folder(run_dir: Path, name: str) -> str:
    """A folder that the library would look for on the hub if it were not there."""
    if not (run_dir / name).is_dir():
        raise ValueError(f"{run_dir} holds no {name}/, which a finished run of this version has.")
    return str(run_dir / name)


def check_code(cfg: DictConfig, *, groups: Iterable[str], trust_code: bool) -> None:
    """Refuses a config that would call what is no part of mtlbench: a run may come from somebody else.

    Args:
        cfg: of a run.
        groups: the parts of it that are to be instantiated.
        trust_code: let everything pass.

    Raises:
        ValueError: naming the first foreign target.
    """
    for group in () if trust_code else groups:
        for target in _targets(OmegaConf.to_container(cfg[group], resolve=True)):
            if not _own(target, _HOMES[group]):
                raise ValueError(
                    f"The run's config calls {target} in '{group}', which is no part of mtlbench. Only if you trust "
                    "whoever made that run: --trust-code, or trust_code=True."
                )


def _own(target: str, homes: tuple[str, ...]) -> bool:
    """Whether the name leads to what one of these packages defines itself, not to what it imports."""
    if not target.startswith(homes):
        return False
    try:
        found = get_object(target)
    except (InstantiationException, ImportError, ValueError):
        return False
    return callable(found) and str(found.__module__).startswith(homes)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        if isinstance(node.get("load"), str):  # of a dataset: a function by its name
            yield node["load"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)
