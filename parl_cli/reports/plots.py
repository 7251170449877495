"""A report's pictures: learning curves by env steps and by wall time, and scores with their intervals.

matplotlib's objects only: no pyplot, nothing global changes. The colours are also those of the HTML page, which
replaces them by its own variables, so that a curve is as legible on a dark screen.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import zlib
from typing import Any

import numpy as np

from parl_cli.metrics import gauges
from parl_cli.reports.analysis import Report, TaskResult
from parl_cli.reports.style import INK, SPINE, bare, missing_glyphs_ignored, steps_text, value_text

# Told apart by people who see few colours too: neighbours differ in lightness, and no red stands beside a green.
COLOURS = ("#2a6fb0", "#d9622b", "#12876f", "#9a4fa3", "#b58900", "#5b6770", "#c2416b", "#3a9ec2")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1.5, 2)))

AXIS_LABELS = {"env_steps": "env steps", "time_s": "wall time"}
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)  # seconds between two marks; then hours
KINDS = (*AXIS_LABELS, "scores")  # of pictures; each task has one of each


def figures(report: Report) -> dict[str, Any]:
    """Every picture by its name: `cartpole-env_steps`, `cartpole-time_s`, `cartpole-scores`."""
    found: dict[str, Any] = {}
    for task in report.tasks:
        for axis in AXIS_LABELS:
            found[figure_name(task, axis)] = curve_figure(task, axis, report.command.metric)
        found[figure_name(task, "scores")] = score_figure(task)
    return found


def figure_name(task: TaskResult, kind: str) -> str:
    """What a picture is called: one of `KINDS`, of a task."""
    plain = re.sub(r"[^\w.=+,-]+", "_", task.name, flags=re.ASCII)
    if plain != task.name:  # `a b` and `a/b` are two tasks
        plain += f"-{zlib.crc32(task.name.encode()):08x}"
    return f"{plain}-{kind}"


def curve_figure(task: TaskResult, axis: str, metric: str) -> Any:
    """The contenders' curves over one axis, each with its interval, and the thresholds as thin lines."""
    from matplotlib.ticker import MultipleLocator

    figure, axes = _figure(5.6, 3.7)
    handles: list[Any] = []
    names: list[str] = []
    for i, result in enumerate(task.results):
        curve = result.curves[axis]
        if not curve.x.size:
            continue
        colour, dash = style(i)
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
        marker = "o" if curve.x.size == 1 else None
        look = {"color": colour, "linestyle": dash, "linewidth": 1.8, "marker": marker}
        handles += axes.plot(curve.x, curve.value, **look)
        names.append(result.name)
    for threshold in task.thresholds:
        axes.axhline(threshold, color=SPINE, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    axes.set_xlabel(AXIS_LABELS[axis], color=INK)
    axes.set_ylabel(metric, color=INK, parse_math=False)
    axes.set_xlim(left=0)
    if axis == "env_steps":
        axes.xaxis.set_major_formatter(steps_text)
    else:
        axes.xaxis.set_major_locator(MultipleLocator(time_step(axes.get_xlim()[1])))
        axes.xaxis.set_major_formatter(lambda seconds, _: gauges.duration(seconds))
    axes.yaxis.set_major_formatter(value_text)
    if handles:  # given one by one: names that begin with `_` are left out otherwise
        legend = axes.legend(handles, names, loc="best", frameon=False, fontsize=9, labelcolor=INK)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def time_step(longest_s: float) -> int:
    """Whole seconds between two marks of an axis so long: as one counts time, and few enough to read."""
    hours = (3600 * 2**n for n in itertools.count())
    return next(step for step in itertools.chain(_TIME_STEPS, hours) if longest_s <= 6 * step)


def score_figure(task: TaskResult) -> Any:
    """IQM, median and mean of each contender with their intervals, and the runs themselves as dots."""
    names = [result.name for result in task.results]
    figure, axes = _figure(5.6, 1.1 + 0.55 * len(names), grid="x")
    axes.use_sticky_edges = False  # a bar would end the axis where it begins, and halve its marks
    for i, result in enumerate(task.results):
        colour, _ = style(i)
        axes.plot(result.scores, np.full(len(result.scores), i + 0.24), "o", color=colour, markersize=3.5, alpha=0.5)
        found = result.estimates["iqm"]
        if math.isfinite(found.low):
            axes.barh(i - 0.08, found.high - found.low, 0.22, left=found.low, color=colour, alpha=0.3)
        axes.plot(found.value, i - 0.08, "|", color=colour, markersize=14, markeredgewidth=2.5)
    axes.set_yticks(range(len(names)), labels=names)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("score: IQM and its interval; dots: runs", color=INK)
    axes.xaxis.set_major_formatter(value_text)
    return figure


def style(index: int) -> tuple[str, Any]:
    """Colour and dashes of the contender at this place."""
    return COLOURS[index % len(COLOURS)], _DASHES[index // len(COLOURS) % len(_DASHES)]


def to_png(figure: Any) -> bytes:
    """The picture on white, 150 dots per inch."""
    return _save(figure, format="png", dpi=150, facecolor="white")


def to_svg(figure: Any, transparent: bool = False) -> bytes:
    """The picture with its text as text; the same bytes each time."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "parl"}):
        background = {"facecolor": "none"} if transparent else {"facecolor": "white"}
        return _save(figure, format="svg", metadata={"Date": None, "Creator": None}, **background)


def _figure(width: float, height: float, grid: str = "y") -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("none")
    bare(axes, grid)
    return figure, axes


def _save(figure: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    with missing_glyphs_ignored():
        figure.savefig(out, **options)
    return out.getvalue()
