"""The comparison of solvers still runs: names are of balancers there are, and both get the same problem."""

from __future__ import annotations

import pytest

from mtlbench.methods import methods
from tests.bench import solvers


def test_what_is_compared_is_there() -> None:
    weightings = {method.entry.name for method in methods() if method.kind == "Weighting"}
    assert solvers.THEIRS.keys() <= weightings
    assert solvers.RESIDUALS.keys() <= weightings


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("name", ["mgda", "upgrad", "nash_mtl", "sdmgrad"])
def test_cells(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "SECONDS", 1e-9)  # one timed call
    time, other, residual, their_residual = solvers.compare(name, 3, near_singular=False)
    assert int(time.replace(",", "")) > 0
    assert (residual == "-") == (name == "sdmgrad")
    assert residual == "-" or float(residual) <= 1e-8
    if name == "mgda":  # the others' packages may be missing
        assert int(other.replace(",", "")) > 0
        assert float(their_residual) >= 1e-6
