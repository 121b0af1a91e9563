"""Checks a job's config against what the same choice of groups gives without overrides of single values."""

from __future__ import annotations

import functools
from typing import Any, Literal

from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mtlbench.check import check, check_types


def check_job(cfg: DictConfig, *, context: HydraConf) -> None:
    """Refuses values of the wrong type, out of range, and combinations that make no sense.

    Args:
        cfg: a job's config, without Hydra's own node.
        context: Hydra's own node.

    Raises:
        ConfigError: naming the key, what was expected and what came.
    """
    groups = {group.partition("@")[0] for group in context.runtime.choices}
    of_groups = [line for line in overrides(context, of="task") if _key(line) in groups]
    loader = GlobalHydra.instance().config_loader()
    defaults = _defaults(loader, str(context.job.config_name), (*of_groups, *overrides(context, of="hydra")))
    check_types(OmegaConf.to_container(cfg, resolve=False), defaults)
    check(cfg)


def without_hydra(config: DictConfig) -> DictConfig:
    """What the job is given: the config without Hydra's own node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def overrides(context: HydraConf, *, of: Literal["task", "hydra"]) -> list[str]:
    """The overrides as they were given: a value that interpolates stays as it was written."""
    node: Any = context.overrides
    lines: Any = OmegaConf.to_container(node[of], resolve=False)
    return list(lines)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


@functools.lru_cache(maxsize=64)  # the jobs of a sweep share a few
def _defaults(loader: ConfigLoader, config_name: str, given: tuple[str, ...]) -> Any:
    config = loader.load_configuration(config_name, overrides=list(given), run_mode=RunMode.RUN)
    return OmegaConf.to_container(without_hydra(config), resolve=False)
