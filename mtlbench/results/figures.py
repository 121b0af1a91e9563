"""The report's figures: what is drawn of an analysis, and the words below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mtlbench.results import metrics as M
from mtlbench.results.analysis import MANY, Analysis, Row
from mtlbench.results.curves import combine, mean_and_std
from mtlbench.results.drawing import BASELINE, COLOURS, DASHES, INK, STYLE, canvas_of, draw_curve, draw_legend, to_svg
from mtlbench.results.tables import arrow

Curves = dict[str, list[pd.DataFrame]]


@dataclass(frozen=True)
class Figure:
    """One drawing with what it shows in words."""

    title: str
    caption: str
    svg: str


def figures(analysis: Analysis, curves: Curves) -> list[Figure]:
    """All figures for which there are data."""
    with mpl.rc_context(STYLE):
        drawn = [
            _spread(analysis),
            _gains(analysis),
            _training(analysis, curves),
            _weights(analysis, curves),
            _cost(analysis),
        ]
    return [figure for figure in drawn if figure is not None]


def _spread(analysis: Analysis) -> Figure | None:
    rows = analysis.rows
    shown: list[tuple[str, Callable[[Row], M.Floats], str]] = [("test score ↑", lambda row: row.scores, "better →")]
    if analysis.baselines:
        shown.append(("delta_m, % ↓", lambda row: row.delta_m, "← better"))
    canvas, axes = canvas_of(len(shown), columns=len(shown), height=0.7 + 0.32 * len(rows), width=9.5)
    for ax, (title, read, better) in zip(axes, shown, strict=True):
        for y, row in enumerate(rows):
            values, colour = read(row), _line(analysis, row.label)[0]
            mean, std = M.mean_std(values)
            ax.errorbar(mean, y, xerr=np.nan_to_num(std), fmt="o", color=colour, capsize=3, markersize=7)
            ax.scatter(values, np.full(len(values), y + 0.22), s=9, color=colour, alpha=0.7)
        ax.set_yticks(range(len(rows)), [row.label for row in rows] if ax is axes[0] else [""] * len(rows))
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_title(f"{title}   ({better})")
        if title.startswith("delta_m"):
            ax.axvline(0, color=INK, linewidth=1, linestyle=":")
    caption = "Large dot and whisker: mean ± standard deviation over seeds. Small dots: single seeds."
    if analysis.baselines:
        caption += " Dotted line: the mean of the independent runs; left of it is better than single-task."
    return Figure("Scores and their spread over seeds", caption, to_svg(canvas, _salt(analysis, "spread")))


def _gains(analysis: Analysis) -> Figure | None:
    """With many tasks: each task's relative gain as one thin cell of a heatmap."""
    rows = [row for row in analysis.compared if row.baseline is not None]
    columns = [i for i, metric in enumerate(analysis.metrics) if metric.primary]
    if len(columns) <= MANY or not rows:
        return None
    higher = [analysis.metrics[i].higher for i in columns]
    gains = []
    for row in rows:
        assert row.baseline is not None
        single = analysis.row(row.baseline).values[:, columns].mean(axis=0)
        gains.append(M.relative_gain(row.values[:, columns].mean(axis=0), single, higher))
    table = np.stack(gains)
    known = np.isfinite(table).any(axis=0)
    if not known.any():
        return None
    order = np.argsort(np.nanmean(table[:, known], axis=0))
    table = table[:, known][:, order]
    limit = max(float(np.nanpercentile(np.abs(table), 95)), 1e-9)
    canvas, (ax,) = canvas_of(1, columns=1, height=0.9 + 0.3 * len(rows), width=9.5)
    image = ax.imshow(table, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.grid(False)
    ax.set_yticks(range(len(rows)), [row.label for row in rows])
    ax.set_xlabel(f"{table.shape[1]} tasks, from the least to the most helped")
    bar = canvas.colorbar(image, ax=ax, extend="both", pad=0.01)
    bar.set_label("gain, %")
    caption = "Gain of each task's primary metric over the independent runs. Blue: better than single-task; red: worse."
    return Figure("Gain per task", caption, to_svg(canvas, _salt(analysis, "gains")))


def _training(analysis: Analysis, curves: Curves) -> Figure | None:
    shown: list[tuple[str, Curves]] = [("val/score ↑", _pick(curves, ["val/score"], "mean"))]
    for (name, higher), columns in analysis.primaries().items():
        keys = [f"val/{analysis.metrics[i].key}" for i in columns]
        if len(analysis.section.tasks) <= MANY:
            shown += [(f"{key} {arrow(higher)}", _pick(curves, [key], "mean")) for key in keys]
        else:
            shown.append((f"val {name} {arrow(higher)}, mean of {len(keys)} tasks", _pick(curves, keys, "mean")))
            worst = _pick(curves, keys, "min" if higher else "max")
            shown.append((f"val {name} {arrow(higher)}, worst task", worst))
    shown = [(title, drawn) for title, drawn in shown if any(drawn.values())]
    if not shown:
        return None
    canvas, axes = canvas_of(len(shown), columns=3, height=2.5, width=9.5)
    for ax, (title, drawn) in zip(axes, shown, strict=False):
        for label, tables in drawn.items():
            curve = mean_and_std(tables, "value")
            if not curve.empty:
                draw_curve(ax, curve, *_line(analysis, label), label=label)
        ax.set_title(title)
        ax.set_xlabel("epoch")
    draw_legend(canvas, axes)
    caption = (
        "Mean over seeds on the validation split; the band is ± one standard deviation. A curve goes as far as all "
        "seeds of its setting went."
    )
    return Figure("Training curves", caption, to_svg(canvas, _salt(analysis, "training")))


def _weights(analysis: Analysis, curves: Curves) -> Figure | None:
    tasks = [task.name for task in analysis.section.tasks]
    moving: dict[str, dict[str, pd.DataFrame]] = {}
    constant = []
    for row in analysis.compared:
        drawn = {task: mean_and_std(curves[row.label], f"weight/{task}") for task in tasks}
        drawn = {task: curve for task, curve in drawn.items() if not curve.empty}
        if not drawn:
            continue
        means = np.concatenate([curve["mean"].to_numpy() for curve in drawn.values()])
        if np.ptp(means) <= 1e-9 * np.abs(means).max():
            constant.append(f"{row.label} ({means[0]:.3g})")
        else:
            moving[row.label] = drawn
    if not moving:
        return None
    canvas, axes = canvas_of(len(moving), columns=3, height=2.5, width=9.5)
    for ax, (label, drawn) in zip(axes, moving.items(), strict=False):
        if len(tasks) <= MANY:
            for i, (task, curve) in enumerate(drawn.items()):
                draw_curve(ax, curve, COLOURS[i % len(COLOURS)], "-", label=task)
        else:
            _draw_range(ax, pd.DataFrame({task: curve["mean"] for task, curve in drawn.items()}))
        ax.set_title(label)
        ax.set_xlabel("epoch")
    draw_legend(canvas, axes)
    caption = (
        "Weight that the method gave each task, mean of an epoch; line and band: mean ± standard deviation over seeds."
    )
    if len(tasks) > MANY:
        caption = (
            f"Weights over the {len(tasks)} tasks, mean over seeds: the median task, the middle half and the extremes."
        )
    if constant:
        caption += f" Not drawn, since all weights are the same all the time: {', '.join(constant)}."
    return Figure("Task weights over time", caption, to_svg(canvas, _salt(analysis, "weights")))


def _cost(analysis: Analysis) -> Figure | None:
    relative = any(np.isfinite(row.cost) for row in analysis.rows)
    rows = [row for row in analysis.rows if np.isfinite(row.cost if relative else row.step_seconds)]
    if not rows:
        return None
    canvas, (ax,) = canvas_of(1, columns=1, height=0.7 + 0.3 * len(rows), width=9.5)
    lengths = [row.cost if relative else 1000 * row.step_seconds for row in rows]
    ax.barh(range(len(rows)), lengths, color=[_line(analysis, row.label)[0] for row in rows], height=0.62)
    for y, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        milliseconds = f"{1000 * row.step_seconds:.3g} ms"
        ax.annotate(
            f"{length:.2f} ×  ({milliseconds})" if relative else milliseconds,
            (length, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    ax.set_yticks(range(len(rows)), [row.label for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(0, 1.25 * max(lengths))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("time of a training step, relative to equal" if relative else "time of a training step, ms")
    caption = "Median wall-clock time of a training step (backward, balancing and update included), median over seeds."
    return Figure("Cost of a step", caption, to_svg(canvas, _salt(analysis, "cost")))


def _pick(curves: Curves, columns: Sequence[str], how: str) -> Curves:
    return {label: combine(tables, columns, how) for label, tables in curves.items()}


def _draw_range(ax: Axes, weights: pd.DataFrame) -> None:
    """Epochs by tasks, as extremes, middle half and median over tasks."""
    low, q1, middle, q3, high = np.nanquantile(weights.to_numpy(), (0, 0.25, 0.5, 0.75, 1), axis=1)
    x = weights.index.to_numpy()
    ax.fill_between(x, low, high, color=COLOURS[0], alpha=0.15, linewidth=0, label="all tasks")
    ax.fill_between(x, q1, q3, color=COLOURS[0], alpha=0.35, linewidth=0, label="middle half")
    ax.plot(x, middle, color=COLOURS[0], label="median task")


def _line(analysis: Analysis, label: str) -> tuple[str, str]:
    """Colour and dash of a setting, the same in every figure."""
    if analysis.row(label).setting.independent:
        return BASELINE, "--"
    i = [row.label for row in analysis.compared].index(label)
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]


def _salt(analysis: Analysis, figure: str) -> str:
    """What makes a drawing's ids its own on a page with several sections."""
    return "/".join([figure, analysis.section.benchmark, *(metric.key for metric in analysis.metrics)])
