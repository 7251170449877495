"""learning_curve.png: return over env steps, from a run's metrics.jsonl.

The line is the mean return of the last 100 training episodes, the band their standard deviation (kept inside the
lowest and highest of them), the points are evaluations with the 95 % interval of their mean. matplotlib is imported
only here, and only its objects are used: no pyplot, no backend choice, nothing global changes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parl_cli.metrics import gauges
from parl_cli.metrics.jsonl import read_jsonl
from parl_cli.reports.style import FAINT, INK, bare, missing_glyphs_ignored, steps_text, value_text
from parl_cli.types import Metrics

MAX_POINTS = 2_000  # more than the picture has pixels
_TRAIN, _EVAL = "#2a6fb0", "#d9622b"


def plot_learning_curve(
    metrics_jsonl: str | os.PathLike[str], png_path: str | os.PathLike[str], title: str | None = None
) -> None:
    """Draw a run's learning curve.

    Args:
        metrics_jsonl: the run's metrics; may be empty, torn at its end, or still growing.
        png_path: the picture; replaced in one step if it is there.
        title: of the picture; by default the run's name and folder, from the path of `metrics_jsonl`.

    Raises:
        FileNotFoundError: there is no such metrics file.
        ParlError: a damaged line inside it.
    """
    rows = list(read_jsonl(metrics_jsonl))
    if title is None:
        title = "/".join(Path(metrics_jsonl).resolve().parent.parts[-2:])
    train = [row for row in rows if _has(row, "episode/return_mean")]
    evals = [row for row in rows if _has(row, "eval/return_mean")]

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _style(axes, title, _subtitle(rows, train, evals))
    _draw_training(axes, _thin(train))
    _draw_evaluations(axes, evals)
    if train or evals:
        axes.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)
    else:
        axes.text(
            0.5, 0.5, "no episode has finished yet", transform=axes.transAxes, ha="center", va="center", color=FAINT
        )
    _limits(axes, rows)
    _save(figure, Path(png_path))


def _draw_training(axes: Any, rows: Sequence[Metrics]) -> None:
    if not rows:
        return
    steps, mean = _column(rows, "env_steps"), _column(rows, "episode/return_mean")
    std = np.nan_to_num(_column(rows, "episode/return_std"))
    low = np.fmax(mean - std, _column(rows, "episode/return_min"))
    high = np.fmin(mean + std, _column(rows, "episode/return_max"))
    axes.fill_between(steps, low, high, color=_TRAIN, alpha=0.18, linewidth=0, label="± 1 std of episodes")
    marker = "o" if len(rows) == 1 else None  # a line through one point is invisible
    axes.plot(steps, mean, color=_TRAIN, linewidth=1.8, marker=marker, label="training, mean of last 100 episodes")


def _draw_evaluations(axes: Any, rows: Sequence[Metrics]) -> None:
    if not rows:
        return
    interval = np.nan_to_num(_column(rows, "eval/return_ci95"))
    axes.errorbar(
        _column(rows, "env_steps"), _column(rows, "eval/return_mean"), yerr=interval,
        fmt="o", color=_EVAL, markersize=5, markeredgecolor="white", markeredgewidth=0.8, elinewidth=1.4, capsize=3,
        label="evaluation, mean and 95 % interval", zorder=3,
    )  # fmt: skip


def _style(axes: Any, title: str, subtitle: str) -> None:
    # parse_math: a `$` in a run's name is a character, not TeX
    axes.set_title(_shorten(title), loc="left", fontsize=12, fontweight="bold", color=INK, pad=24, parse_math=False)
    axes.text(
        0, 1.025, subtitle, transform=axes.transAxes, fontsize=9, color=FAINT, va="bottom", parse_math=False
    )  # fmt: skip
    axes.set_xlabel("env steps", color=INK)
    axes.set_ylabel("return (undiscounted reward per episode)", color=INK)
    bare(axes)
    axes.xaxis.set_major_formatter(steps_text)
    axes.yaxis.set_major_formatter(value_text)


def _limits(axes: Any, rows: Sequence[Metrics]) -> None:
    end = max((row["env_steps"] for row in rows if _has(row, "env_steps")), default=0)
    axes.set_xlim(0, max(1, end) * 1.01)


def _subtitle(rows: Sequence[Metrics], train: Sequence[Metrics], evals: Sequence[Metrics]) -> str:
    if not rows:
        return "no rows yet"
    last = rows[-1]
    parts = []
    if train:
        parts.append(f"final return {gauges.figure(train[-1]['episode/return_mean'])}")
    if evals:
        parts.append(f"best evaluation {gauges.figure(max(row['eval/return_mean'] for row in evals))}")
    steps, seconds = last.get("env_steps", math.nan), last.get("time_s", math.nan)
    if math.isfinite(steps):
        parts.append(f"{gauges.count(steps)} env steps")
    if math.isfinite(seconds) and seconds > 0:
        parts.append(gauges.duration(seconds))
        if math.isfinite(steps):
            parts.append(gauges.rate(steps / seconds))
    return "  ·  ".join(parts)


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with missing_glyphs_ignored():
            figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _thin(rows: Sequence[Metrics]) -> Sequence[Metrics]:
    if len(rows) <= MAX_POINTS:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, MAX_POINTS).astype(int)]


def _has(row: Metrics, name: str) -> bool:
    return math.isfinite(row.get(name, math.nan))


def _column(rows: Sequence[Metrics], name: str) -> np.ndarray:
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _shorten(text: str, limit: int = 72) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
