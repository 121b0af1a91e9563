"""The answer in sentences: which method scores highest, is the difference real, and what is that worth."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mtlbench.results import metrics as M
from mtlbench.results.analysis import Analysis
from mtlbench.results.stats import Comparison, detectable
from mtlbench.results.tables import MISSING, decimals, number, plus_minus

HOW_TESTED = (
    "Scores are compared seed by seed with a paired t-test; the 95 % interval is for that one comparison, while a "
    "verdict also pays for the number of comparisons (Holm's correction, 5 %)."
)
HOW_BEST = "The best is chosen by the same test scores that it is then compared on, which flatters it."


def sentences(analysis: Analysis) -> list[str]:
    """The verdict, most important first."""
    return list(_sentences(analysis))


def difference_text(comparison: Comparison, places: int) -> str:
    """The difference with its interval."""
    text = number(comparison.difference, places, signed=True)
    return text if math.isnan(comparison.low) else f"{text} (95 % interval {interval_text(comparison, places)})"


def interval_text(comparison: Comparison, places: int) -> str:
    """The 95 % interval; an en dash where it is unknown."""
    if math.isnan(comparison.low):
        return MISSING
    low, high = (number(limit, places, signed=True) for limit in (comparison.low, comparison.high))
    return f"{low} to {high}"


def _sentences(analysis: Analysis) -> Iterator[str]:
    if analysis.best is None:
        yield "There is no finished multi-task run, so there is nothing to compare."
        return
    best = analysis.row(analysis.best)
    places = decimals(best.scores)
    mean, std = M.mean_std(best.scores)
    score, seeds = plus_minus(float(mean), float(std), places), f"{len(best.seeds)} seed{'s'[: len(best.seeds) > 1]}"
    if len(analysis.compared) == 1:
        yield f"{best.label} is the only multi-task setting with finished runs: test score {score} over {seeds}."
    else:
        yield f"{best.label} has the highest mean test score, {score} over {seeds}{_lead(analysis)}."
    yield from _against_equal(analysis, places)
    worse = [label for label, other in analysis.against_best.items() if other.verdict == "worse"]
    open_ = [label for label, other in analysis.against_best.items() if other.verdict == "no difference shown"]
    if worse:
        yield f"Shown to score below {best.label}: {', '.join(worse)}."
    if open_:
        yield f"Not shown to differ from {best.label}: {', '.join(open_)}."
    if best.baseline is not None:
        yield _against_single(analysis)
    yield from _strength(analysis)


def _lead(analysis: Analysis) -> str:
    """How the first sentence ends: whether the best setting is really better than equal weighting."""
    assert analysis.best is not None
    if analysis.best not in analysis.against_equal:
        return ": no other scores higher than equal weighting" if analysis.row(analysis.best).equal else ""
    return {
        "better": ", and is shown to be better than equal weighting",
        "worse": " of its own, but is shown to be worse than equal weighting on the seeds that they share",
        "no difference shown": ", but no difference from equal weighting is shown",
        "not tested": "; whether it is really better than equal weighting could not be tested",
    }[analysis.against_equal[analysis.best].verdict]


def _against_equal(analysis: Analysis, places: int) -> Iterator[str]:
    comparisons = {
        label: other for label, other in analysis.against_equal.items() if not analysis.row(label).setting.independent
    }
    best = comparisons.get(analysis.best or "")
    if best is not None:
        seeds = "1 shared seed" if best.pairs == 1 else f"{best.pairs} shared seeds"
        yield f"Its difference from {best.reference} is {difference_text(best, places)} on {seeds}."
    others = {label: other.verdict for label, other in comparisons.items() if label != analysis.best}
    for verdict in ("better", "worse"):
        names = [label for label, found in others.items() if found == verdict]
        if names:
            yield f"Shown to be {verdict} than equal: {', '.join(names)}."
    if len(comparisons) > 1 and all(other.verdict == "no difference shown" for other in comparisons.values()):
        yield f"Of {len(comparisons)} methods none is shown to be better or worse than equal weighting."


def _against_single(analysis: Analysis) -> str:
    rows = [row for row in analysis.compared if not math.isnan(float(row.delta_m.mean()))]
    if not rows:
        return "delta_m is undefined: no metric of the independent runs is above zero."
    lowest = min(rows, key=lambda row: float(row.delta_m.mean()))
    mean, std = M.mean_std(lowest.delta_m)
    gaining = sum(float(row.delta_m.mean()) < 0 for row in rows)
    return (
        f"Against single-task networks {gaining} of {len(rows)} settings gain on average (delta_m below 0); "
        f"{lowest.label} has the lowest delta_m, {plus_minus(float(mean), float(std), 2)} %."
    )


def _strength(analysis: Analysis) -> Iterator[str]:
    pairs = [other.pairs for other in (*analysis.against_equal.values(), *analysis.against_best.values())]
    if not pairs:
        return
    if max(pairs) < 2:
        yield "With fewer than two shared seeds nothing can be tested: run more seeds before believing an order."
    elif min(pairs) < 5:
        few = max(2, min(pairs))
        yield (
            f"Few seeds are weak evidence: with {few} shared ones (the fewest here) only a difference above "
            f"{detectable(few):.1f} times its own standard deviation over seeds can be shown, even before the "
            f"correction for several comparisons. "
            f"“No difference shown” does not mean that there is none."
        )
