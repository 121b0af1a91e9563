"""What the text of a class says, read without importing it: torch alone would take a second."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

KINDS = ("Scalarizer", "Weighting", "Aggregator")
BASE = "mtlbench.balancing.base"
UNKNOWN = "?"


def classes(target: str) -> Iterator[ast.ClassDef]:
    """A class, given as module.name, and those it inherits from, the nearest first, as far as files are found."""
    module, _, name = target.rpartition(".")
    if name in KINDS:  # however they are imported
        module = BASE
    package, statements = read(module)
    for node in statements:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield node
            for base in node.bases:
                yield from classes(f"{module}.{ast.unparse(base).rpartition('.')[2]}")
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    yield from classes(".".join([*above, *filter(None, [node.module]), alias.name]))


@cache
def read(module: str) -> tuple[list[str], list[ast.stmt]]:
    """The package of a module, in parts, and the module's statements: none where an import would find no file."""
    parts = module.split(".")
    for folder in [Path(__file__).parent.parent, *map(Path, sys.path)]:
        path = folder.joinpath(*parts)
        for file, package in ((path / "__init__.py", parts), (path.with_suffix(".py"), parts[:-1])):
            if module and file.is_file():
                return package, ast.parse(file.read_text(encoding="utf-8")).body
    return [], []


def kind(found: Sequence[ast.ClassDef]) -> str:
    """One of `KINDS`, or `UNKNOWN` where none is among a balancer's classes."""
    return next((cls.name for cls in found if cls.name in KINDS), UNKNOWN)


def assigned(cls: ast.ClassDef) -> dict[str, ast.expr]:
    """What the body of a class assigns, by name."""
    found = {}
    for node in cls.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found[ast.unparse(target)] = node.value
    return found


def value(found: Sequence[ast.ClassDef], name: str) -> ast.expr | None:
    """What the nearest class assigns to a name; None where none does."""
    return next((values[name] for values in map(assigned, found) if name in values), None)


def declared(found: Sequence[ast.ClassDef], name: str) -> Any:
    """The constant that a class attribute is; `UNKNOWN` where the text does not show it."""
    given = value(found, name)
    return given.value if isinstance(given, ast.Constant) else UNKNOWN


def arguments(cls: ast.ClassDef) -> list[str]:
    """The names of its constructor's arguments."""
    (init,) = [node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return [argument.arg for argument in (*init.args.args[1:], *init.args.kwonlyargs)]
