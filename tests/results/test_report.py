"""The whole report from synthetic runs: the page, the CSV, the terminal, and the numbers in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtlbench.results.report import report
from mtlbench.results.tables import decimals, number, plus_minus
from tests.results.pages import printed, read_page

MakeRun = Callable[..., Path]
# Three seeds of (left, right) accuracy; chosen so that means and deviations are easy by hand.
RESULTS = {
    "independent": [(0.80, 0.50), (0.80, 0.50), (0.80, 0.50)],
    "equal": [(0.79, 0.50), (0.80, 0.51), (0.81, 0.49)],
    "pcgrad": [(0.87, 0.54), (0.88, 0.55), (0.89, 0.53)],
}


@pytest.fixture
def sweep(make_run: MakeRun, tmp_path: Path) -> Path:
    for method, seeds in RESULTS.items():
        for seed, (left, right) in enumerate(seeds):
            make_run(
                method,
                seed,
                {"left/accuracy": left, "right/accuracy": right},
                extra={"digits/both": left * right},
                step_seconds={"independent": 0.018, "equal": 0.01, "pcgrad": 0.025}[method],
                weights={"left": 1.5, "right": 0.5} if method == "pcgrad" else {"left": 1.0, "right": 1.0},
                hits={"left": np.arange(100) < 100 * left, "right": np.arange(100) < 100 * right},
            )
    return tmp_path / "runs"


def test_numbers_of_the_page_are_those_by_hand(sweep: Path, tmp_path: Path) -> None:
    page, text = read_page(report([sweep], out=tmp_path / "out"))
    table = page.table("left accuracy ↑", "delta_m % ↓")
    assert list(table) == ["independent", "equal", "pcgrad"]
    # pcgrad gains 10 % and 8 % on average; seed by seed (8.75+8)/2, (10+10)/2, (11.25+6)/2.
    assert table["pcgrad"] == {
        "method": "pcgrad",
        "seeds": "3",
        "left accuracy ↑": "0.8800 ± 0.0100",
        "right accuracy ↑": "0.5400 ± 0.0100",
        "score ↑": "0.7100 ± 0.0050",
        "delta_m % ↓": "−9.00 ± 0.88",
        "delta_p % ↑": "9.00 ± 0.88",
        "mean rank ↓": "1.00",
        "step cost": "2.50 ×",
    }
    assert table["equal"]["delta_m % ↓"] == f"0.00 ± {np.std([-0.625, 1, -0.375], ddof=1):.2f}"
    assert table["equal"]["mean rank ↓"] == "2.00"
    assert table["independent"]["delta_m % ↓"] == "0.00 ± 0.00"
    assert table["independent"]["mean rank ↓"] == "–"
    assert table["independent"]["step cost"] == "1.80 ×"
    assert page.table("test metric")["digits/both ↑"]["pcgrad"] == "0.4752 ± 0.0077"
    for figure in ("Scores and their spread", "Training curves", "Task weights over time", "Cost of a step"):
        assert figure in text
    assert "Mind" not in text
    assert "Not in the numbers" not in text


def test_verdict_of_a_constant_gain_is_that_it_cannot_be_tested(sweep: Path, tmp_path: Path) -> None:
    page, text = read_page(report([sweep], out=tmp_path / "out"))
    # pcgrad is 0.06 above equal on each seed: no spread, no t-test.
    row = page.table("difference", "verdict")["pcgrad"]
    assert (row["difference"], row["95 % interval"], row["verdict"]) == ("+0.0600", "–", "not tested")
    assert (
        "pcgrad has the highest mean test score, 0.7100 ± 0.0050 over 3 seeds; "
        "whether it is really better than equal weighting could not be tested." in text
    )
    # Over examples: 8 more of the 100 left ones are right, in each of three seeds.
    assert page.table("left accuracy minus equal")["pcgrad"]["left accuracy minus equal"] == "+0.0800"


def test_verdict_of_a_real_gain(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, (equal, gain) in enumerate([(0.80, 0.050), (0.82, 0.052), (0.81, 0.049), (0.83, 0.051)]):
        make_run("equal", seed, {"a/f1": equal})
        make_run("cagrad", seed, {"a/f1": equal + gain})
        make_run("mgda", seed, {"a/f1": equal + [0.02, -0.01, 0.01, -0.02][seed]})
    made = report([tmp_path / "runs"], out=tmp_path)
    page, text = read_page(made)
    verdicts = {method: row["verdict"] for method, row in page.table("difference", "verdict").items()}
    assert verdicts == {"cagrad": "better", "mgda": "no difference shown"}
    assert "over 4 seeds, and is shown to be better than equal weighting." in text
    assert "Its difference from equal is +0.0505 (95 % interval +0.0484 to +0.0526) on 4 shared seeds." in text
    assert "Shown to score below cagrad: equal, mgda." in text
    assert "with 4 shared ones (the fewest here) only a difference above 1.6 times" in text


def test_verdict_where_equal_is_best_or_nothing_is_shown(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        make_run("equal", seed, {"a/f1": 0.9 + [0.01, -0.01, 0.0][seed]})
        make_run("mgda", seed, {"a/f1": 0.8})
    lead = printed(report([tmp_path / "runs"], out=tmp_path), width=500)
    assert "equal has the highest mean test score, 0.9000 ± 0.0100 over 3 seeds: no other scores higher" in lead
    assert "Shown to be worse than equal: mgda." in lead
    for seed in range(3):
        make_run("cagrad", seed, {"a/f1": 0.91 + [-0.01, 0.01, 0.0][seed]})
    lead = printed(report([tmp_path / "runs"], out=tmp_path), width=500)
    assert "cagrad has the highest mean test score, 0.9100 ± 0.0100 over 3 seeds, but no difference" in lead


def test_csv_is_tidy_and_complete(sweep: Path, tmp_path: Path) -> None:
    table = pd.read_csv(report([sweep], out=tmp_path / "out").csv)
    assert table.groupby(["setting", "seed", "split"]).ngroups == 3 * 3 * 3
    test = table[(table["split"] == "test") & (table["setting"] == "pcgrad")].set_index(["seed", "metric", "task"])
    assert test["value"][1, "accuracy", "left"] == 0.88
    assert test["value"].xs("delta_m", level="metric").tolist() == pytest.approx([-8.375, -10, -8.625])
    assert test["value"].xs("delta_p", level="metric").tolist() == pytest.approx([8.375, 10, 8.625])
    assert not test["higher_is_better"].isna().any()


def test_what_is_printed(sweep: Path, tmp_path: Path) -> None:
    made = report([sweep], out=tmp_path / "out")
    text = printed(made)
    line = next(line for line in text.splitlines() if line.startswith(" pcgrad"))
    assert re.sub(r"\s{2,}", "|", line.strip()) == (
        "pcgrad|3|0.880 ± 0.010|0.540 ± 0.010|0.710 ± 0.005|−9.00 ± 0.88|9.00 ± 0.88|1.00|2.50 ×"
    )
    assert text.rstrip().splitlines()[-2:] == [str(made.csv), str(made.html)]
    frame = made.summary_table(made.analyses[0])
    assert frame.loc["pcgrad", "delta_m % ↓"] == "−9.00 ± 0.88"


def test_runs_that_are_not_in_the_numbers_are_listed_everywhere(make_run: MakeRun, tmp_path: Path) -> None:
    test = {"left/accuracy": 0.9}
    for seed in (0, 1):
        make_run("equal", seed, test)
    make_run("pcgrad", 0, test)
    make_run("gradnorm", 0, test, status="failed", error="Traceback\nValueError: a <bad> label in row 7")
    make_run("gradnorm", 1, {}, status="running")
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "summary.json").write_text("{")
    made = report([tmp_path / "runs", tmp_path / "gone"], out=tmp_path / "out")
    found = {(problem.label, problem.seed, problem.status) for problem in made.problems}
    assert found == {
        ("gradnorm", 0, "failed"),
        ("gradnorm", 1, "running"),
        ("pcgrad", 1, "missing"),
        ("", None, "unreadable"),
        ("", None, "missing"),
    }
    page, text = read_page(made)
    assert "Not in the numbers: 2 missing, 1 failed, 1 running, 1 unreadable" in text
    reasons = [row[4] for head, *body in page.tables if head[:2] == ["status", "benchmark"] for row in body]
    assert "ValueError: a <bad> label in row 7" in reasons
    assert len(reasons) == 5
    terminal = printed(made, width=200)
    assert "failed: multidigits gradnorm seed 0" in terminal
    assert "ValueError: a <bad> label in row 7" in terminal
    listed = pd.read_csv(made.csv).dropna(subset="reason")
    assert sorted(listed["status"]) == ["failed", "missing", "missing", "running", "unreadable"]
    assert page.table("left accuracy ↑")["pcgrad"]["seeds"] == "1 of 2"


def test_one_seed_has_no_spread_and_no_verdict(make_run: MakeRun, tmp_path: Path) -> None:
    for method, value in (("independent", 0.5), ("equal", 0.6), ("pcgrad", 0.7)):
        make_run(method, 0, {"left/accuracy": value})
    page, text = read_page(report([tmp_path / "runs"], out=tmp_path))
    assert page.table("delta_m % ↓")["pcgrad"]["delta_m % ↓"] == "−40.00 ± –"
    assert page.table("difference", "verdict")["pcgrad"]["verdict"] == "not tested"
    assert "Only one finished seed: independent, equal, pcgrad." in text
    assert "With fewer than two shared seeds nothing can be tested" in text


def test_many_tasks_show_mean_and_worst(make_run: MakeRun, tmp_path: Path) -> None:
    tasks = [f"school_{i}" for i in range(139)]
    rng = np.random.default_rng(0)
    for method, level in (("independent", 10.0), ("equal", 9.0), ("pcgrad", 9.5)):
        for seed in (0, 1):
            values = level + rng.uniform(-1, 1, len(tasks))
            test = {f"{task}/rmse": float(value) for task, value in zip(tasks, values, strict=True)}
            weights = dict(zip(tasks, rng.uniform(0.5, 1.5, len(tasks)).tolist(), strict=True))
            make_run(method, seed, test, benchmark="school", higher=False, score=20 - level, weights=weights)
    made = report([tmp_path / "runs"], out=tmp_path)
    page, text = read_page(made)
    (head, *_), *_ = page.tables
    assert head[2:5] == ["rmse ↓, mean of 139", "rmse ↓, worst task", "score ↑"]
    row = made.analyses[0].row("equal")
    table = page.table("rmse ↓, mean of 139")["equal"]
    mean, std = row.values.mean(), row.values.mean(axis=1).std(ddof=1)
    assert table["rmse ↓, mean of 139"] == f"{mean:.2f} ± {std:.2f}"  # two decimals: the column goes up to 10
    assert table["rmse ↓, worst task"].startswith(f"{row.values.max(axis=1).mean():.2f} ± ")
    assert "Gain per task" in text
    assert "139 tasks in all" in text
    assert len(made.html.read_bytes()) < 1_000_000
    assert "school_77" in text  # every metric is in the table that opens


def test_a_baseline_at_or_below_zero_is_named_and_shown_as_a_difference(make_run: MakeRun, tmp_path: Path) -> None:
    for method, left, right in (("independent", -0.1, 0.5), ("equal", 0.2, 0.55)):
        for seed in (0, 1):
            make_run(method, seed, {"left/r2": left, "right/r2": right})
    made = report([tmp_path / "runs"], out=tmp_path)
    page, text = read_page(made)
    assert page.table("delta_m % ↓")["equal"]["delta_m % ↓"] == "−10.00 ± 0.00"
    note = "delta_m and delta_p leave out 1 of 2 metrics: the mean of independent is not above zero there"
    assert note in text
    assert note in printed(made, width=500)
    assert page.table("metric, difference from independent")["left/r2"]["equal"] == "0.3000 ± 0.0000"


def test_gains_over_a_baseline_near_zero_are_pointed_out(make_run: MakeRun, tmp_path: Path) -> None:
    for method, left in (("independent", 0.001), ("equal", 0.2)):
        make_run(method, 0, {"left/r2": left, "right/r2": 0.5})
    _, text = read_page(report([tmp_path / "runs"], out=tmp_path))
    assert "Read delta_m and delta_p with care: on 1 of 2 metrics" in text


def test_without_independent_or_equal_runs_the_report_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run("pcgrad", seed, {"left/accuracy": 0.9})
        make_run("mgda", seed, {"left/accuracy": 0.8})
    made = report([tmp_path / "runs"], out=tmp_path)
    page, text = read_page(made)
    for say in ("no finished independent (single-task) runs", "no finished runs with equal weighting"):
        assert say in text
        assert say in printed(made, width=500)
    head = page.tables[0][0]
    assert not any("delta" in title for title in head)
    assert head[-1] == "step ms"
    assert pd.read_csv(made.csv).query("metric == 'delta_m'")["value"].isna().all()


def test_a_sweep_in_which_everything_failed_still_gets_a_report(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("equal", 0, {}, status="failed", error="ValueError: no data")
    make_run("independent", 0, {"left/accuracy": 0.5})
    made = report([tmp_path / "runs"], out=tmp_path)
    assert "no finished multi-task run" in read_page(made)[1]
    make_run("equal", 0, {}, benchmark="snips", status="failed", error="ValueError: no data")
    made = report([tmp_path / "runs" / "snips-equal-0"], out=tmp_path)
    _, text = read_page(made)
    assert "ValueError: no data" in text
    assert "ValueError: no data" in printed(made)


def test_runs_without_curves_or_configs_are_reported_and_said(make_run: MakeRun, tmp_path: Path) -> None:
    for method in ("equal", "pcgrad"):
        path = make_run(method, 0, {"left/accuracy": 0.5})
        (path / "config.yaml").unlink()
        (path / "metrics.csv").write_text("" if method == "equal" else "step\n1\n")
    _, text = read_page(report([tmp_path / "runs"], out=tmp_path))
    assert "metrics.csv is not a table" in text
    assert "has no column &#39;epoch&#39;" in text
    assert "Training curves" not in text


def test_two_benchmarks_have_a_section_each(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("equal", 0, {"left/accuracy": 0.5})
    make_run("equal", 0, {"intent/accuracy": 0.5}, benchmark="snips")
    page, text = read_page(report([tmp_path / "runs"], out=tmp_path))
    assert {"section-0", "section-1"} <= page.links
    assert text.index('<h2 id="section-0">multidigits</h2>') < text.index('<h2 id="section-1">snips</h2>')


def test_names_are_escaped(make_run: MakeRun, tmp_path: Path) -> None:
    for rate in ("<b>&$x$", "2"):
        make_run("equal", 0, {"left/accuracy": 0.5}, overrides=(f"x={rate}",))
    _, text = read_page(report([tmp_path / "runs"], out=tmp_path))
    assert "equal, x=&lt;b&gt;&amp;$x$" in text
    assert "<b>" not in text


def test_no_run_is_an_error_that_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No run to report.*(?s:.)*typo: there is no such directory"):
        report([tmp_path / "typo"], out=tmp_path)
    with pytest.raises(ValueError, match="no path was given"):
        report([], out=tmp_path)


def test_numbers_as_text() -> None:
    assert number(-0.00001, 2) == "0.00"
    assert number(-1.5, 1, signed=True) == "−1.5"
    assert number(float("nan"), 1) == "–"
    assert plus_minus(1.0, float("nan"), 1) == "1.0 ± –"
    assert [decimals([value, 0.0, float("nan")]) for value in (0.5, 1.0, 5.0, 50.0, 5e6)] == [4, 4, 3, 2, 1]
