"""Paths over the landscapes of the two-dimensional problem, a panel for each method."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke
from scipy.stats import rankdata

from mtlbench.results.drawing import COLOURS, STYLE, canvas_of, draw_legend, to_svg
from mtlbench.results.figures import Figure
from mtlbench.results.toy import Toy, read_trajectories
from mtlbench.toy.problem import TASKS, Array, losses_and_gradients, pareto_front

EDGE = 11.0  # of the square that is drawn
WIDTH, PANEL = 9.5, 2.55  # inches
HALO = [withStroke(linewidth=2.6, foreground="white", alpha=0.7)]


def figures(toy: Toy) -> list[Figure]:
    """The paths over the mean of the losses, and over each loss."""
    with mpl.rc_context(STYLE):
        return [
            Figure(
                "Paths over the mean of the two losses",
                "Darker is lower. Ring: a start. Dot: where its path ends; a cross: short of the Pareto front (black). "
                "Star: the least sum of the losses.",
                to_svg(_mean(toy), f"{toy.benchmark}/mean"),
            ),
            Figure(
                "Paths over each of the two losses",
                "The same paths over the first loss (left) and the second (right) of each method. Darker is lower.",
                to_svg(_each(toy), f"{toy.benchmark}/each"),
            ),
        ]


def to_png(toy: Toy) -> bytes:
    """The paths over the mean of the losses."""
    buffer = BytesIO()
    with mpl.rc_context(STYLE):
        _mean(toy).savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _mean(toy: Toy) -> Canvas:
    canvas, axes = canvas_of(len(toy.runs), columns=4, height=PANEL, width=WIDTH)
    for ax, label in zip(axes, toy.runs, strict=True):
        _draw(ax, toy, label, show="mean")
        ax.set_title(label)
    draw_legend(canvas, axes)
    return canvas


def _each(toy: Toy) -> Canvas:
    panels = [(label, task) for label in toy.runs for task in TASKS]
    canvas, axes = canvas_of(len(panels), columns=4, height=PANEL, width=WIDTH)
    for ax, (label, task) in zip(axes, panels, strict=True):
        _draw(ax, toy, label, show=task)
        ax.set_title(f"{label}: {task}")
    draw_legend(canvas, axes)
    return canvas


def _draw(ax: Axes, toy: Toy, label: str, *, show: str) -> None:
    run = toy.runs[label]
    _draw_landscape(ax, show=show, scale=run.number("scale"))
    for start, path in read_trajectories(run).groupby("start"):
        told = toy.of(label, str(start))
        assert told is not None
        _draw_path(ax, path, str(start), COLOURS[toy.starts.index(str(start)) % len(COLOURS)], reached=told["reached"])
    ax.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=(-10, 0, 10), yticks=(-10, 0, 10), aspect="equal")
    ax.grid(False)
    place = ax.get_subplotspec()
    assert place is not None
    ax.tick_params(labelleft=place.is_first_col())


def _draw_path(ax: Axes, path: pd.DataFrame, start: str, colour: str, *, reached: bool) -> None:
    x1, x2 = path["x1"].to_numpy(), path["x2"].to_numpy()
    ax.plot(x1, x2, color=colour, linewidth=1.5, label=start, path_effects=HALO, zorder=3)
    ax.plot(x1[0], x2[0], "o", markersize=5.5, markerfacecolor="white", markeredgecolor=colour, zorder=4)
    shape, size = ("o", 6.5) if reached else ("X", 9)
    ax.plot(
        x1[-1], x2[-1], shape, color=colour, markersize=size, markeredgecolor="white", markeredgewidth=0.8, zorder=6
    )


def _draw_landscape(ax: Axes, *, show: str, scale: float) -> None:
    ranks, front, best = _landscape(show, scale)
    extent = (-EDGE, EDGE, -EDGE, EDGE)
    ax.imshow(ranks, origin="lower", extent=extent, cmap="bone", interpolation="none", vmin=-0.9, vmax=1.0)
    levels = np.linspace(0, 1, 11)[1:-1]
    ax.contour(ranks, extent=extent, levels=levels, colors="white", linewidths=0.5, linestyles="-", alpha=0.55)
    ax.plot(*front.T, color="black", linewidth=3, solid_capstyle="round", label="Pareto front", zorder=2)
    ax.plot(*best, "*", color="#ffd23f", markeredgecolor="black", markeredgewidth=0.6, markersize=14, zorder=5)


@lru_cache
def _landscape(show: str, scale: float) -> tuple[Array, Array, Array]:
    """(N, N) the part of the square that is lower, the front's points, and the one with the least sum of losses.

    Ranks, not heights: the valleys are fifty times as deep as what leads there is high.
    """
    side = np.linspace(-EDGE, EDGE, 181)
    losses, _ = losses_and_gradients(np.stack(np.meshgrid(side, side), -1), scale=scale)
    heights = losses.mean(-1) if show == "mean" else losses[..., TASKS.index(show)]
    ranks = rankdata(heights).reshape(heights.shape) / heights.size
    front = pareto_front()
    sums = losses_and_gradients(front, scale=scale)[0].sum(1)
    return ranks, front, front[sums.argmin()]
