"""What is told of the balancers without importing them is what they are; the page of methods is current."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtlbench import source
from mtlbench.balancing.base import Aggregator, Property, Scalarizer, Weighting
from mtlbench.gradients import GradientEngine
from mtlbench.methods import Method, definitions, methods, summary
from mtlbench.source import KINDS
from tests.balancing.page import PAGE, page
from tests.contract.balancers import BUILT

METHODS = {method.entry.name: method for method in methods()}


def test_kinds_and_properties_are_the_classes() -> None:
    assert (Scalarizer.__name__, Weighting.__name__, Aggregator.__name__) == KINDS
    assert definitions() == {claim.name: claim.value for claim in Property}
    assert summary("Weighting") == "Decided by the Gramian of the task gradients."


@pytest.mark.parametrize("name", BUILT)
def test_what_is_told_of_a_balancer_is_what_it_is(name: str) -> None:
    method, balancer = METHODS[name], BUILT[name]
    assert [kind.__name__ for kind in (Scalarizer, Weighting, Aggregator) if isinstance(balancer, kind)] == [
        method.kind
    ]
    claims = {claim.name for claim in balancer.properties}
    if method.weights_sum == "inner's":
        assert method.properties == ("inner's",)
        return
    assert method.weights_sum == balancer.weights_sum
    assert set(method.properties) == claims
    assert method.backwards.endswith(" + forward") == balancer.needs_after_step


@pytest.mark.parametrize("name", [name for name in BUILT if METHODS[name].backwards != "inner's"])
def test_the_engine_takes_as_many_backwards_as_are_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    balancer = copy.deepcopy(BUILT[name])
    size = balancer.num_tasks
    torch.manual_seed(0)
    shared, heads = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), nn.ModuleList(nn.Linear(2, 1) for _ in range(size))
    tasks = [f"task{index}" for index in range(size)]
    engine = GradientEngine(shared, balancer, tasks=tasks, private=heads, route="sequential")
    taken: list[int] = []
    last = shared[1].weight

    def counted(real: Callable[..., Any], outputs: Any, *args: Any, **kwargs: Any) -> Any:
        leaves = args[0] if args else kwargs["inputs"]
        taken.append(1 if leaves is None else sum(leaf is last for leaf in leaves))  # None: all
        return real(outputs, *args, **kwargs)

    def losses() -> dict[str, torch.Tensor]:
        features = shared(torch.randn(8, 4))
        return {task: head(features).square().mean() for task, head in zip(tasks, heads, strict=True)}

    for step in range(2):  # the first one also looks for the last layer
        if step:
            for way in ("grad", "backward"):
                monkeypatch.setattr(torch.autograd, way, partial(counted, getattr(torch.autograd, way)))
        batches = [losses() for _ in range(balancer.num_batches)]
        engine.backward(batches if len(batches) > 1 else batches[0])
    told = METHODS[name].backwards.removesuffix(" + forward")
    expected = {"1": 1, "T": size, "T + J": size, "1 + T at last layer": 1 + size, "3T": 3 * size}
    assert sum(taken) == expected[told]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], Method]:
    """The one balancer of a folder of one's own, which holds its config and modules."""
    monkeypatch.syspath_prepend(str(tmp_path))
    source.read.cache_clear()

    def read(files: dict[str, str]) -> Method:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        (method,) = [method for method in methods(tmp_path) if method.entry.path.is_relative_to(tmp_path)]
        return method

    return read


def test_a_balancer_of_ones_own_is_read_and_not_run(mine: Callable[[dict[str, str]], Method]) -> None:
    module = (
        "raise RuntimeError('imported')\nfrom mtlbench.balancing.base import Property, Weighting\n"
        "class Rule(Weighting):\n    'Mine.'\n    weights_sum = 'T'\n"
        "    properties = frozenset({Property.STATIONARY_ZERO, Property.NON_CONFLICTING})"
    )
    method = mine({"my_rule.py": module, "balancer/mine.yaml": "# What it does\n_target_: my_rule.Rule\nalpha: 1"})
    assert (method.entry.name, method.entry.description) == ("mine", "What it does")
    assert (method.kind, method.weights_sum, method.backwards) == ("Weighting", "T", "T")
    assert method.properties == ("NON_CONFLICTING", "STATIONARY_ZERO")
    assert (method.options, method.docstring) == ({"alpha": 1}, "Mine.")


def test_what_is_inherited_counts(mine: Callable[[dict[str, str]], Method]) -> None:
    method = mine(
        {
            "kin/__init__.py": "from .rules.mgda import Rule",
            "kin/rules/mgda.py": "from ..above import MGDA as Base\nclass Rule(Base):\n    measure: str = 'last_layer'",
            "kin/above.py": "from mtlbench.balancing.mgda import MGDA",
            "balancer/kin.yaml": "_target_: kin.Rule",
        }
    )
    assert (method.kind, method.weights_sum, method.properties) == ("Weighting", "1", METHODS["mgda"].properties)
    assert method.backwards == "1 + T at last layer"


def test_a_file_may_start_from_another(mine: Callable[[dict[str, str]], Method]) -> None:
    method = mine({"balancer/mean.yaml": "# Mean\ndefaults: [equal, _self_]\nreduction: mean"})
    assert (method.kind, method.entry.description, method.options) == ("Scalarizer", "Mean", {"reduction": "mean"})


def test_a_file_of_ones_own_comes_before_ours(mine: Callable[[dict[str, str]], Method]) -> None:
    method = mine({"balancer/pcgrad.yaml": "# Mine\ndefaults: [pcgrad]\n_target_: mtlbench.balancing.equal.Equal"})
    assert (method.entry.name, method.kind, method.entry.description) == ("pcgrad", "Scalarizer", "Mine")
    assert method.options == {}


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ({}, ("?", "?", ("?",), "?")),
        ({"my_rule.py": "class Rule: pass"}, ("?", "?", ("?",), "?")),
        (
            {
                "my_rule.py": "from mtlbench.balancing import base\nclass Rule(base.Aggregator):\n"
                "    properties = base.CLAIMS\n    measure = str()"
            },
            ("Aggregator", "free", ("?",), "?"),
        ),
    ],
)
def test_what_the_text_does_not_show_is_unknown(
    mine: Callable[[dict[str, str]], Method], files: dict[str, str], facts: tuple[object, ...]
) -> None:
    method = mine({**files, "balancer/mine.yaml": "_target_: my_rule.Rule"})
    assert (method.kind, method.weights_sum, method.properties, method.backwards) == facts


def test_malformed_yaml_is_named(mine: Callable[[dict[str, str]], Method]) -> None:
    with pytest.raises(ValueError, match=r"malformed YAML in .*broken\.yaml(.|\n)*line 2"):
        mine({"balancer/broken.yaml": "alpha: 1\n beta: [2"})
    with pytest.raises(ValueError, match=r"broken\.yaml: expected a mapping"):
        mine({"balancer/broken.yaml": "- alpha"})


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "mtlbench/balancing/README.md is old: run `make methods`."


def test_the_page_tells_of_every_method() -> None:
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections] == list(METHODS)
    for section in sections:
        method = METHODS[section.partition("\n")[0]]
        assert "```text\n" in section, f"{method.entry.name}: the class's docstring has no indented rule"
        assert section.count("\n- `") == len(method.options)
        assert ("\nPaper: " in section) == bool(method.entry.paper)
