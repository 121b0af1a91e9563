"""The timed systems do the same work, and README shows what the CSV holds."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from rich.console import Console

from tests.bench import steps
from tests.bench.problems import Problem
from tests.bench.systems import SYSTEMS, Autojac, Equal, Ours, System, naive

TINY = ["lenet3-b4", "tfm2-b2", "tfa2-b2"]


def gradient(system: System) -> torch.Tensor:
    """(P,) what a step writes to the trunk."""
    system.backward()
    grads = [parameter.grad for parameter in system.problem.trunk.parameters()]
    return torch.cat([grad.reshape(-1) for grad in grads if grad is not None]).double()


@pytest.mark.parametrize("setting", TINY)
def test_systems_agree(setting: str) -> None:
    pytest.importorskip("quadprog", reason="TorchJD's UPGrad needs it: pip install 'torchjd[quadprog_projector]'")
    rows = naive(Problem(setting))
    torch.testing.assert_close(gradient(Equal(Problem(setting), "equal")), rows.sum(0), rtol=1e-4, atol=1e-6)
    systems = {name: kind(Problem(setting), "upgrad") for name, kind in SYSTEMS.items()}
    directions = {name: gradient(system) for name, system in systems.items()}
    for system in systems.values():
        assert system.gramian is not None
        torch.testing.assert_close(system.gramian.double(), rows @ rows.T, rtol=1e-4, atol=1e-6)
    size = float(directions["ours"].norm())
    assert size > 0
    for direction in directions.values():  # TorchJD's Gramians are regularized with 1e-4
        assert float((direction - directions["ours"]).norm()) <= 1e-3 * size
    for ours, theirs in zip(
        systems["ours"].problem.heads.parameters(), systems["autojac"].problem.heads.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_uncertainty_agrees() -> None:
    ours, theirs = (kind(Problem(TINY[0]), "uncertainty") for kind in (Ours, Autojac))
    torch.testing.assert_close(gradient(ours), gradient(theirs))


def test_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SECONDS", 0)
    pytest.importorskip("quadprog", reason="TorchJD's UPGrad needs it: pip install 'torchjd[quadprog_projector]'")
    chosen = [(TINY[0], method) for method in steps.METHODS]
    found = steps.run(chosen, repetitions=1, console=Console(quiet=True))
    assert (found["value"] > 0).all()
    assert set(found["measure"]) == {"step", "peak", "error"}
    assert (found[found["measure"] == "error"]["value"] <= 1e-5).all()
    cells = steps.table(found)
    assert [row[0].partition(":")[0] for row in cells[:3]] == [
        "LeNet, K 3, B 4",
        "GradNorm",
        "uncertainty",
    ]
    assert cells[1][1:4] == ["-", "-", "-"]  # TorchJD has no GradNorm, and nothing is asked of this setting


def test_a_setting_that_is_none() -> None:
    with pytest.raises(ValueError, match="expected KIND TASKS -b BATCH"):
        Problem("mlp-b3")


def test_readme_shows_the_csv() -> None:
    found = pd.read_csv(steps.CSV)
    assert set(steps.ASKED) <= set(zip(found["setting"], found["method"], strict=True))
    assert f"{steps.BEGIN}\n{steps.markdown(found)}\n{steps.END}" in steps.README.read_text(encoding="utf-8")
