"""`mtlbench list`: what it prints, of our configs and of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mtlbench import source
from mtlbench.cli import main
from mtlbench.confdir import KINDS, entries
from mtlbench.listing import short

List = Callable[..., tuple[int, str, str]]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> List:
    """Calls the command in an empty folder; exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    source.read.cache_clear()
    return lambda *arguments: (main(["list", *arguments]), *capsys.readouterr())


def test_names_and_descriptions(listed: List, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = listed()
    assert status == 0
    for group in KINDS.values():
        for entry in entries(group):
            assert entry.description, f"conf/{group}/{entry.name}.yaml lacks a first line that describes it"
            assert entry.name in out
    (line,) = [line for line in out.splitlines() if "transformer_bpe" in line]
    assert "arXiv:1508.07909" in line


def test_balancers_with_what_they_claim(listed: List) -> None:
    status, out, _ = listed("balancers")
    assert status == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    losses, gramians = out.split("\nWeighting: ")
    jacobians = gramians.split("\nAggregator: ")[1]
    for part, *cells in (
        (losses, "famo", "1", "1 + forward", "LSI", "PE"),
        (gramians, "nash_mtl", "free", "T", "NC", "PE", "SZ", "Nash-MTL:"),
        (gramians, "modo", "1", "3T", "PE"),
        (jacobians, "db_mtl", "free", "T + J", "LSI", "PE"),
        (jacobians, "NC", "no task gradient has a negative product"),
    ):
        assert re.search(r"^ *" + r" +".join(map(re.escape, cells)), part, flags=re.MULTILINE), cells
    assert re.search(r"Navon et al\. 2022,\s+arXiv:2202\.01017", gramians)


def test_balancers_of_ones_own(listed: List, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my" / "balancer").mkdir(parents=True)
    (tmp_path / "my" / "balancer" / "rule.yaml").write_text("# My rule\n_target_: my_rule.Rule\n")
    (tmp_path / "my" / "my_rule.py").write_text("class Rule(Weighting):\n    weights_sum = 'T'\n")
    status, out, _ = listed("balancers", "--config-dir", "my")
    assert status == 0
    assert re.search(r"PYTHONPATH(.|\n)*rule +\? +\? +\? +My rule", out)
    monkeypatch.syspath_prepend(str(tmp_path / "my"))
    source.read.cache_clear()
    status, out, _ = listed("--config-dir", "my")
    assert re.search(r"rule +T +T +My rule", out)
    assert "PYTHONPATH" not in out


def test_wrong_configs_of_ones_own(listed: List, tmp_path: Path) -> None:
    assert listed("--config-dir", "nowhere")[::2] == (2, "mtlbench list: no config folder nowhere\n")
    (tmp_path / "my" / "balancer").mkdir(parents=True)
    (tmp_path / "my" / "balancer" / "rule.yaml").write_text("alpha: [")
    status, _, err = listed("balancers", "--config-dir", "my")
    assert (status, "malformed YAML in my/balancer/rule.yaml" in err) == (2, True)


def test_citations_are_shortened() -> None:
    assert short("Chen, Badrinarayanan, Lee, Rabinovich 2018, arXiv:1711.02257") == "Chen et al. 2018, arXiv:1711.02257"
    assert short("Sener, Koltun 2018, arXiv:1810.04650") == "Sener, Koltun 2018, arXiv:1810.04650"
    assert short("El Mhamdi, Van Noord, Li 2017, X (Y) 1(2)") == "El Mhamdi et al. 2017, X (Y) 1(2)"
