"""What a reader must know before trusting an analysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mtlbench.results import metrics as M
from mtlbench.results.analysis import Analysis

NO_BASELINE = (
    "There are no finished independent (single-task) runs of this benchmark, so delta_m and delta_p are not computed. "
    "Add balancer=independent to the sweep."
)
NO_EQUAL = (
    "There are no finished runs with equal weighting, so cost is given in seconds alone and no method is compared "
    "with equal. Add balancer=equal to the sweep."
)
EXTREME = 100  # percent; a relative gain beyond it is pointed out


def notes(analysis: Analysis) -> list[str]:
    """Unusual references, unknown spreads, results that are no numbers, and deltas to be read with care."""
    rows = analysis.rows
    independents = [row.label for row in rows if row.setting.independent]
    equals = [row.label for row in analysis.compared if row.setting.balancer == "equal"]
    return [
        *_reference_notes(analysis, independents, {row.label: row.baseline for row in rows}, NO_BASELINE),
        *_reference_notes(analysis, equals, {row.label: row.equal for row in rows}, NO_EQUAL),
        *_row_notes(analysis),
        *_delta_notes(analysis),
    ]


def _reference_notes(
    analysis: Analysis, candidates: Sequence[str], references: Mapping[str, str | None], without: str
) -> Iterator[str]:
    if not candidates:
        yield without
        return
    unmatched = [label for label, reference in references.items() if reference is None]
    if unmatched:
        yield f"{' and '.join(candidates)} could each be the reference of {', '.join(unmatched)}; none is taken."
    for label, reference in references.items():
        if reference is not None and analysis.row(reference).setting.scope != analysis.row(label).setting.scope:
            yield f"{label} is measured against {reference}, which differs in more than the method."


def _row_notes(analysis: Analysis) -> Iterator[str]:
    single = [row.label for row in analysis.rows if len(row.seeds) == 1]
    if single:
        yield f"Only one finished seed: {', '.join(single)}. The spread over seeds is unknown (–), nothing is tested."
    for row in analysis.rows:
        finite = np.isfinite(row.values.T).tolist()
        bad = [metric.key for metric, fine in zip(analysis.metrics, finite, strict=True) if not all(fine)]
        if bad:
            yield f"{row.label} has a run without a finite test result for {_some(bad)}."


def _delta_notes(analysis: Analysis) -> Iterator[str]:
    """Where the deltas leave a metric out, and where a small baseline blows one up."""
    metrics = analysis.metrics
    for label, names in analysis.undefined.items():
        yield (
            f"delta_m and delta_p leave out {len(names)} of {len(metrics)} metrics: the mean of {label} is not above "
            f"zero there, so that a relative gain has no meaning: {_some(names)}. The page shows absolute differences."
        )
    extreme: dict[str, None] = {}
    for row in analysis.rows:
        if row.baseline is not None:
            single = analysis.row(row.baseline).values.mean(axis=0)
            gain = M.relative_gain(row.values.mean(axis=0), single, [metric.higher for metric in metrics])
            far = np.abs(gain) > EXTREME
            extreme |= dict.fromkeys(metric.key for metric, is_far in zip(metrics, far, strict=True) if is_far)
    if extreme:
        yield (
            f"Read delta_m and delta_p with care: on {len(extreme)} of {len(metrics)} metrics some setting differs "
            f"from its baseline by more than {EXTREME} %, as happens near zero, and these dominate the mean: "
            f"{_some(list(extreme))}."
        )


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"
