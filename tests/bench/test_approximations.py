"""What is measured of the approximations, and that the table shown is that of the CSV."""

from __future__ import annotations

import pandas as pd

from tests.bench import approximations
from tests.conftest import TINY


def test_errors_of_a_few_steps() -> None:
    found = approximations.run(("upgrad",), steps=6, overrides=tuple(TINY))
    errors = found.pivot(index="approximation", columns="quantile", values="value")
    assert set(errors.index) == {
        *approximations.OPTIONS,
        "refresh, age 1",
        "refresh, age 4",
    }  # no step has more before it
    assert (errors > 0).all(axis=None)
    assert errors.loc["products=bfloat16", 0.95] < 0.05
    header, *rows = approximations.table(found)
    assert header == ["approximation", "upgrad"]
    assert len(rows) == len(errors)


def test_the_scores_are_those_of_the_csv() -> None:
    found = pd.read_csv(approximations.README.with_name("results.csv"))
    found = (
        found[found["metric"].isin(["score", "delta_m"])].groupby(["setting", "metric"])["value"].agg(["mean", "std"])
    )
    rows = []
    for setting in found.index.unique("setting"):
        name = setting.replace("engine.refresh=1", "exact") if setting.endswith("refresh=1") else setting
        cells = [name.replace(", engine.", " ").replace(", ", " ")]
        for metric, digits in (("score", 3), ("delta_m", 2)):
            mean, std = found.loc[(setting, metric)]
            cells.append(f"{mean:.{digits}f} ± {std:.{digits}f}")
        rows.append(f"| {' | '.join(cells)} |")
    assert len(rows) == 12
    shown = approximations.README.read_text(encoding="utf-8").splitlines()
    assert set(rows) <= set(shown), set(rows) - set(shown)


def test_the_table_is_that_of_the_csv() -> None:
    text = approximations.README.read_text(encoding="utf-8")
    shown = approximations.markdown(pd.read_csv(approximations.CSV))
    assert f"{approximations.BEGIN}\n{shown}\n{approximations.END}" in text
