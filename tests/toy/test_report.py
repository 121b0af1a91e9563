"""The report of runs in the plane: its tables, its figures, what is not in them."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.image import imread
from rich.console import Console

from mtlbench.cli import main
from mtlbench.results.report import Report, print_report, report
from mtlbench.train import train
from tests.results.conftest import write_run
from tests.results.pages import Page
from tests.toy.conftest import toy


def make(root: Path, *overrides: str) -> None:
    cfg = toy(*overrides, "benchmark.steps=20", "+benchmark.starts.near=[2,-8.3]")
    train(cfg, run_dir=root / "-".join(overrides), overrides=overrides)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = tmp_path_factory.mktemp("runs")
    make(root, "balancer=equal")
    make(root, "balancer=mgda")
    make(root, "balancer=mgda", "benchmark.scale=1")
    with pytest.raises(ValueError, match="GLS needs losses"):
        make(root, "balancer=gls")
    return report([root], out=root / "out")


def test_tables_tell_who_reaches_the_front(reported: Report) -> None:
    page = Page(reported.html.read_text(encoding="utf-8"))
    ends = page.table("method", "reached", "S1", "near")
    assert list(ends) == ["equal", "mgda", "mgda, scale=1"]
    assert ends["mgda"]["reached"] == "1 of 6"
    assert ends["equal"]["S1"] == "no: (−8.48, 7.48)"
    assert ends["equal"]["near"].startswith("1.9")
    steps = next(table for table in page.tables if table[0] == ["method", *reported.toys[0].starts])
    assert steps[1][0] == "equal" and steps[1][1] == "–" and steps[1][-1] == "0"
    assert page.links <= page.anchors
    assert not [load for load in page.loads if not load.startswith(("#", "data:"))]


def test_figures_have_a_panel_for_each_method_and_landscape(reported: Report) -> None:
    text = reported.html.read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    assert text.count("<image") == 3 + 6
    for title in ("mgda, scale=1<", "equal: f1<", "equal: f2<", "Pareto front<"):
        assert title in text
    height, width, _ = imread(reported.html.parent / "toy2d.png").shape
    assert width > 1000 and height > 300


def test_the_csv_holds_every_number_and_failure(reported: Report) -> None:
    table = pd.read_csv(reported.csv)
    ends = table[(table["split"] == "end") & (table["setting"] == "mgda")].pivot(
        index="task", columns="metric", values="value"
    )
    assert set(ends) == {"x1", "x2", "f1", "f2", "reached", "first_step", "degenerate_steps"}
    assert ends.loc["near", ["reached", "first_step"]].tolist() == [1, 0]
    assert pd.isna(ends.loc["S1", "first_step"])
    (failed,) = table[table["status"] == "failed"].to_dict("records")
    assert failed["setting"] == "gls" and "GLS needs losses" in failed["reason"]


def test_the_terminal_shows_the_table_the_verdict_and_the_failure(reported: Report) -> None:
    out = io.StringIO()
    print_report(reported, Console(file=out, width=200))
    text = out.getvalue()
    assert "toy2d: x1 at the end" in text and "1 of 6" in text
    assert "The Pareto front is reached from every start by no method." in text
    assert "Not from S1, S2, S3, S4, S5: equal, mgda, mgda, scale=1." in text
    assert "failed: toy2d gls" in text


def test_beside_other_benchmarks(tmp_path: Path) -> None:
    make(tmp_path, "balancer=equal")
    write_run(tmp_path, "equal", 0, {"left/accuracy": 0.5, "right/accuracy": 0.5})
    found = report([tmp_path], out=tmp_path)
    page = Page(found.html.read_text(encoding="utf-8"))
    assert {"section-0", "toy-toy2d"} <= page.links & page.anchors
    assert "score ↑" in page.table("method", "seeds")["equal"]
    assert set(pd.read_csv(found.csv)["benchmark"]) == {"multidigits", "toy2d"}


def test_none_that_finished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GLS needs losses"):
        make(tmp_path, "balancer=gls")
    found = report([tmp_path], out=tmp_path)
    assert (found.toys, [problem.status for problem in found.problems]) == ((), ["failed"])
    Page(found.html.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "-", "--task", "all"]])
def test_a_run_in_the_plane_has_no_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    make(tmp_path, "balancer=equal")
    name, *more = command
    assert main([name, str(tmp_path / "balancer=equal"), *more]) == 2
    assert "benchmark=toy2d, which trains no network" in capsys.readouterr().err


def test_there_are_no_data_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "toy2d"]) == 2
    assert "toy2d has no data" in capsys.readouterr().err


def test_the_table_of_the_experiment_is_that_of_its_csv() -> None:
    folder = Path(__file__).parents[2] / "experiments" / "toy2d"
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    found = pd.read_csv(folder / "results.csv")
    ends = found[found["split"] == "end"].pivot(index=["method", "task"], columns="metric", values="value")
    assert len(ends) == 40
    for method in ends.index.unique("method"):
        points, steps = [], []
        for end in ends.loc[method].itertuples():
            reached = end.reached == 1
            points.append(
                f"{end.x1:.2f}".replace("-0.00", "0.00") if reached else f"**no** ({end.x1:.2f}, {end.x2:.2f})"
            )
            steps.append(f"{end.first_step:,.0f}" if reached else "")
        at = lines.index(f"| {method} | x1 at the end | {' | '.join(points)} |")
        assert lines[at + 2] == f"| | first step at the front | {' | '.join(steps)} |"
