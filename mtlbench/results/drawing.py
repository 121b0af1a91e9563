"""How the report draws: matplotlib without pyplot (no display, no global state), as SVG text for a page.

The SVG takes its ink from the page's text colour, so that it reads on light and on dark ground.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

# Told apart on light and on dark ground, and by most colour-blind readers.
COLOURS = ("#3b82f6", "#e07b00", "#12a08a", "#d6457a", "#8b6cf0", "#a3862a", "#22a7d0", "#c2553a", "#6f9e2e")
DASHES = ("-", "--", ":", "-.")
BASELINE = "#8a8a8a"
INK = "#010203"  # stands for the page's text colour until the SVG is written
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def canvas_of(count: int, *, columns: int, height: float, width: float) -> tuple[Canvas, list[Axes]]:
    """A canvas with `count` axes, `columns` a row; unused places stay empty. `height` inches a row."""
    columns = min(columns, count)
    lines = -(-count // columns)
    canvas = Canvas(figsize=(width, height * lines), layout="constrained")
    grid = canvas.subplots(lines, columns, squeeze=False).ravel()
    for ax in grid[count:]:
        ax.remove()
    return canvas, list(grid[:count])


def draw_curve(ax: Axes, curve: pd.DataFrame, colour: str, dash: str, *, label: str) -> None:
    x, mean = curve.index.to_numpy(), curve["mean"].to_numpy()
    std = curve["std"].fillna(0.0).to_numpy()
    ax.plot(x, mean, dash, color=colour, label=label, marker="o" if len(x) == 1 else "")
    ax.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)


def draw_legend(canvas: Canvas, axes: Sequence[Axes]) -> None:
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    canvas.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(len(entries), 6))


def to_svg(canvas: Canvas, name: str) -> str:
    """The canvas as an `<svg>` element to stand in a page: `name` keeps its ids apart and the same every time."""
    buffer = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name}):
        canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # Only ids in <defs> are referred to; those of groups and images would repeat from figure to figure.
    svg = re.sub(r'(<g|<image [^>]*?) id="[^"]*"', r"\1", svg)
    # The page scales the drawing down on narrow screens, never up.
    return re.sub(r'<svg ([^>]*?)width="([\d.]+pt)" height="[\d.]+pt"', r'<svg \1style="max-width: \2"', svg, count=1)
