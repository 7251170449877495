"""bench.png: what an env step costs with each vectorizer, and on what the time goes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Data = Mapping[str, Any]

_COLOURS = {"env": "#2a6fb0", "act": "#4fb3bf", "learn": "#5a9e5d", "wait": "#e0b040", "other": "#b5b5b5"}
_INK, _FAINT = "#222222", "#8a8a8a"
_MOST_BARS = 24


def plot_bench(data: Data, png_path: str | os.PathLike[str]) -> None:
    """Draw one bar per vectorizer that was measured end to end, the fastest at the top.

    Args:
        data: what bench.json holds.
        png_path: the picture; replaced if it is there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = [entry for entry in data["vectorizers"] if entry["end_to_end"]]
    entries = sorted(entries, key=lambda entry: entry["end_to_end"]["us_per_step"])[:_MOST_BARS]
    figure = Figure(figsize=(8, 1.9 + 0.38 * len(entries)), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw(axes, entries)
    _style(axes, data, entries)
    path = Path(png_path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _draw(axes: Any, entries: Sequence[Data]) -> None:
    whole = [entry["end_to_end"]["us_per_step"] for entry in entries]
    left = [0.0] * len(entries)
    for part, colour in _COLOURS.items():
        widths = [us * entry["end_to_end"]["shares"].get(part, 0.0) for us, entry in zip(whole, entries, strict=True)]
        axes.barh(range(len(entries)), widths, left=left, height=0.62, color=colour, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, (us, entry) in enumerate(zip(whole, entries, strict=True)):
        text = f" {entry['end_to_end']['steps_per_s']:,.0f} steps/s"
        axes.text(us, row, text, va="center", fontsize=9, color=_INK)


def _style(axes: Any, data: Data, entries: Sequence[Data]) -> None:
    several = len({entry["num_envs"] for entry in entries}) > 1
    labels = [entry["label"] + (f", {entry['num_envs']} envs" if several else "") for entry in entries]
    axes.set_yticks(range(len(entries)), labels, fontsize=9)
    for label, entry in zip(axes.get_yticklabels(), entries, strict=True):
        label.set_fontweight("bold" if entry == data["winner"] else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * max(entry["end_to_end"]["us_per_step"] for entry in entries))
    axes.set_xlabel("µs per env step, end to end", color=_INK)
    title = f"{data['algo']} on {data['env']}" + ("" if several else f" × {data['num_envs']}")
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK, pad=24, parse_math=False)
    machine = data["machine"]
    subtitle = f"{machine['cores']} cores  ·  {machine['device']}  ·  torch {machine['torch']}"
    axes.annotate(subtitle, (0, 1), (0, 8), "axes fraction", "offset points", fontsize=9, color=_FAINT)
    axes.figure.legend(loc="outside lower center", ncols=len(_COLOURS), fontsize=9, frameon=False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors="#555555", labelsize=9)
