"""`make methods`: writes mtlbench/balancing/README.md from the docstrings of the balancers and conf/balancer."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from mtlbench.listing import short
from mtlbench.methods import Method, definitions, methods, summary
from mtlbench.source import KINDS

PAGE = Path(__file__).parents[2] / "mtlbench" / "balancing" / "README.md"
HEAD = """\
# Balancing methods

Written by `make methods` from the docstrings beside this file and the files of `conf/balancer`; change those.

T tasks; l_i is the loss of task i, g_i its gradient by the shared parameters, a row of the Jacobian J; G = J J' is the
Gramian; w are the weights of the tasks, d is the direction that is descended along. A' is A transposed, |a| a length.
Only the tasks with labels in a step take part in it. With `balancer=NAME` an option is set as `balancer.OPTION=VALUE`.
"""
TABLE = """\
| method | kind | paper | weights sum to | properties | backwards |
|---|---|---|---|---|---|
"""
LEGEND = """\
Backwards of a training step: 1; T, one for each task; + J: the whole Jacobian is looked at, T rows as long as the
parameters; at last layer: through that alone; + forward: the losses of the step's data again, after the update.
Of a wrapper, "inner's" are those of the method within. Properties, which the contract tests check:
"""


class Docstring(NamedTuple):
    rule: str  # Markdown: the summary, the maths in a code block, the rest
    options: dict[str, str]
    notes: list[str]
    paper: str


def page() -> str:
    found = methods()
    kinds = "\n".join(f"- **{kind}**: {_lower(summary(kind))}" for kind in KINDS)
    claims = "\n".join(f"- {_words(name)}: {text}" for name, text in definitions().items())
    table = TABLE + "".join(map(_row, found))
    return "\n".join([HEAD, kinds, "", table, LEGEND, claims, "", *map(_section, found)])


def read(docstring: str) -> Docstring:
    """The sections of a Google docstring that users read."""
    rule, options, notes, paper = "", {}, [], ""
    for part in re.split(r"\n(?=(?:Args|Attributes|Raises|Paper|Note):)", docstring):
        title, _, body = part.partition(":")
        if title == "Args":
            entries = re.split(r"\n(?=\w)", textwrap.dedent(body).strip())
            options = {name: _joined(text) for name, _, text in (entry.partition(": ") for entry in entries)}
        elif title == "Note":
            notes.append(_joined(body))
        elif title == "Paper":
            paper = _joined(body)
        elif title not in ("Attributes", "Raises"):
            rule = "\n\n".join(map(_block, part.strip().split("\n\n")))
    return Docstring(rule, options, notes, paper)


def shown(value: Any) -> str:
    """An option as one writes it; an inner method by its name."""
    if isinstance(value, dict) and "_target_" in value:
        return value["_target_"].split(".")[-2]
    return json.dumps(value).strip('"').replace("e-0", "e-")


def _section(method: Method) -> str:
    docstring = read(method.docstring)
    if docstring.options.keys() != method.options.keys():
        raise ValueError(
            f"{method.entry.path} sets {sorted(method.options)}, and the docstring of its class explains under Args "
            f"{sorted(docstring.options)}. Make them the same."
        )
    lines = [f"## {method.entry.name}", "", f"{method.kind}. {method.entry.description}.".replace("..", "."), ""]
    lines += [docstring.rule, ""]
    if method.options:
        lines += [f"- `{name}: {shown(value)}`: {docstring.options[name]}" for name, value in method.options.items()]
        lines += [""]
    if docstring.paper:
        lines += [f"Paper: {_linked(docstring.paper)}", ""]
    lines += [line for note in docstring.notes for line in (f"Note: {note}", "")]
    return "\n".join(lines)


def _row(method: Method) -> str:
    name = method.entry.name
    properties = ", ".join(map(_words, method.properties))
    cells = [f"[{name}](#{name})", method.kind, _linked(short(method.entry.paper)), method.weights_sum, properties]
    return f"| {' | '.join([*cells, method.backwards])} |\n"


def _block(text: str) -> str:
    if text.startswith("    "):
        return f"```text\n{textwrap.dedent(text)}\n```"
    return _joined(text)


def _joined(text: str) -> str:
    """On one line, so that none starts with what Markdown takes for a list."""
    return " ".join(text.split())


def _linked(citation: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", citation)


def _words(claim: str) -> str:
    return claim.lower().replace("_", " ")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
