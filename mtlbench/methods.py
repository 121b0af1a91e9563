"""What a balancer's YAML file and class say of it, read from their text: importing torch alone would take a second."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtlbench import source
from mtlbench.confdir import Entry, entries
from mtlbench.source import UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Method:
    """One file of conf/balancer.

    Attributes:
        entry: its name, description and paper.
        kind: one of `source.KINDS`.
        weights_sum: T, 1 or free.
        properties: names of `Property`.
        backwards: how many a training step takes.
        options: what the YAML sets, without `_target_`.
        docstring: the class's; empty where its file is not found.

    What is set in a constructor does not count, and what the text does not show is `UNKNOWN`. A wrapper (an option is a
    `_partial_: true` node) takes weights' sum and backwards from the balancer within.
    """

    entry: Entry
    kind: str
    weights_sum: str
    properties: tuple[str, ...]
    backwards: str
    options: dict[str, Any]
    docstring: str


def methods(config_dir: Path | None = None) -> list[Method]:
    """The balancers, and those of a config folder of one's own.

    Raises:
        ValueError: a file that is no YAML mapping.
        FileNotFoundError: no such folder.
    """
    found = entries("balancer", config_dir)
    nodes = {entry.name: _load(entry.path) for entry in found}
    return [_method(entry, _with_defaults(entry.name, nodes)) for entry in found]


def definitions() -> dict[str, str]:
    """What each `Property` claims, by name."""
    values = source.assigned(next(source.classes(f"{source.BASE}.Property")))
    return {name: ast.literal_eval(value) for name, value in values.items()}


def summary(kind: str) -> str:
    """What balancers of a kind look at: the first line of its docstring."""
    return (ast.get_docstring(next(source.classes(f"{source.BASE}.{kind}"))) or "").partition("\n")[0]


def _load(path: Path) -> dict[str, Any]:
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"malformed YAML in {path}: {error}") from error
    if not isinstance(node, dict):
        raise ValueError(f"{path}: expected a mapping with _target_ and options, got {node!r}")
    return node


def _with_defaults(name: str, nodes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A file over those that its defaults list starts from, which is never itself."""
    others = {other: node for other, node in nodes.items() if other != name}
    merged: dict[str, Any] = {}
    for base in nodes[name].get("defaults", []):
        if isinstance(base, str) and base in others:
            merged |= _with_defaults(base, others)
    return merged | {key: value for key, value in nodes[name].items() if key != "defaults"}


def _method(entry: Entry, node: dict[str, Any]) -> Method:
    options = {key: value for key, value in node.items() if key != "_target_"}
    classes = list(source.classes(str(node.get("_target_", ""))))
    kind = source.kind(classes)
    wraps = any(isinstance(value, dict) and value.get("_partial_") for value in options.values())
    return Method(
        entry=entry,
        kind=kind,
        weights_sum="inner's" if wraps else str(source.declared(classes, "weights_sum")),
        properties=("inner's",) if wraps else _properties(classes),
        backwards="inner's" if wraps else _backwards(kind, classes),
        options=options,
        docstring=(ast.get_docstring(classes[0]) or "") if classes else "",
    )


def _backwards(kind: str, classes: Sequence[ast.ClassDef]) -> str:
    batches, after, measure = (
        source.declared(classes, name) for name in ("num_batches", "needs_after_step", "measure")
    )
    if UNKNOWN in (kind, batches, after, measure):
        return UNKNOWN
    count = {"Scalarizer": "1", "Weighting": "T", "Aggregator": "T + J"}[kind]
    if kind == "Weighting" and measure != "parameters":
        count = f"1 + T at {measure.replace('_', ' ')}"
    return (str(batches) if batches > 1 else "") + count + (" + forward" if after else "")


def _properties(classes: Sequence[ast.ClassDef]) -> tuple[str, ...]:
    value = source.value(classes, "properties")
    text = "" if value is None else ast.unparse(value)
    if not re.fullmatch(r"frozenset\((\{(Property\.\w+(, )?)+\})?\)", text):
        return (UNKNOWN,)
    return tuple(sorted(re.findall(r"Property\.(\w+)", text)))
