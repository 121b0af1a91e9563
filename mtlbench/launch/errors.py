"""What went wrong, in a sentence or two: Hydra's and YAML's exceptions with the nearest right names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import yaml
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mtlbench.confdir import groups
from mtlbench.data.names import nearest

# What composing and checking a config can raise.
CONFIG_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError)


class JobError(CompactHydraException):
    """A run failed. `config` tells whether its configuration was refused before it began."""

    def __init__(self, message: str, *, config: bool = False) -> None:
        super().__init__(message)
        self.config = config


def explain(error: BaseException) -> str:
    """The message that a user should see."""
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"no {group} '{name}'. {nearest(name, sorted(error.options))}"
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        cause = error.__cause__
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key is not None:
            return _unknown_key(cause)
        return " ".join(text for text in (str(error), str(cause).splitlines()[0]) if text)
    if isinstance(error, OverrideParseException):
        said = error.message.splitlines()
        said = [line for line in said if not line.startswith(("Error parsing", "See "))]
        return f"cannot read the override '{error.override}': {' '.join(said)}. Expected key=value or group=option."
    if isinstance(error, yaml.MarkedYAMLError):
        return _yaml(error)
    if str(error).startswith("Unable to configure handler") and isinstance(error.__cause__, OSError):
        return f"cannot write the log: {error.__cause__}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return f"{error.__cause__} ({str(error).splitlines()[-1].strip().replace('full_key', 'config key')})"
    return str(error)


def _unknown_key(cause: OmegaConfBaseException) -> str:
    """A key that the config lacks: the nearest of its siblings; at the top, the nearest of all keys and groups."""
    key = str(cause.full_key)
    if key in groups():
        return f"no key '{key}' in the config: with this benchmark {key} has no meaning."
    parent, _, name = key.rpartition(".")
    node = cause.parent_node
    siblings = [str(name) for name in node if not str(name).startswith("_")] if isinstance(node, DictConfig) else []
    close = difflib.get_close_matches(name, siblings, n=3)
    found = [f"{parent}.{sibling}" if parent else sibling for sibling in close]
    if not parent and not found:
        known = [*_keys(node), *groups()]
        by_last = {known_key.rpartition(".")[2]: known_key for known_key in reversed(known)}
        found = difflib.get_close_matches(key, known, n=3)
        found = found or [by_last[last] for last in difflib.get_close_matches(name, by_last, n=3)]
    if found:
        return f"no key '{key}' in the config. Did you mean {' or '.join(found)}?"
    holds = f"{parent} holds: {', '.join(siblings) or 'no keys'}." if parent else "`--cfg job` shows the keys."
    return f"no key '{key}' in the config. {holds}"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        name: Any
        for name in node:
            if name != "hydra" or prefix:
                yield f"{prefix}{name}"
                yield from _keys(node._get_node(name), f"{prefix}{name}.")


def _yaml(error: yaml.MarkedYAMLError) -> str:
    """File, line and column, the line itself, and what the parser says."""
    mark = error.problem_mark
    if mark is None:
        return f"malformed YAML: {error}"
    where = f"malformed YAML in {mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    try:
        with open(mark.name, encoding="utf-8") as file:
            return f"{where}\n  {file.read().splitlines()[mark.line]}\n  {' ' * mark.column}^"
    except (OSError, IndexError):  # text that is in no file, or an error at the file's end
        return where
