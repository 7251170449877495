"""The pieces a run is shown with, as plain text: numbers, durations, a bar of shares, a chart of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_BLOCKS = " ▁▂▃▄▅▆▇█"


def figure(value: float) -> str:
    """A number in at most 8 characters, with about four digits that matter: `87.3`, `0.0087`, `2.5e-06`, `1.24M`."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e15:
        return f"{value:.1e}"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e5, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    if size >= 1e3:
        return f"{value:,.0f}"
    if size >= 10 or value == 0:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.4f}" if size >= 1e-3 else f"{value:.1e}"


def bound(value: float) -> str:
    """One end of a range: like `figure`, but a whole number has no decimals."""
    return f"{value:,.0f}" if math.isfinite(value) and value == int(value) and abs(value) < 1e5 else figure(value)


def count(value: float) -> str:
    """A whole number with thousands separators."""
    return f"{value:,.0f}"


def rate(per_s: float) -> str:
    """Env steps per second: `26.1k steps/s`."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if per_s >= limit:
            return f"{per_s / limit:.1f}{unit} steps/s"
    return f"{per_s:.0f} steps/s"


def duration(seconds: float | None) -> str:
    """`9s`, `1m 05s`, `2h 03m`, `3d 04h`; `?` for None or what is not finite."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = max(0, math.ceil(seconds))
    for size, big, small in ((86400, "d", "h"), (3600, "h", "m"), (60, "m", "s")):
        if whole >= size:
            rest = whole % size // {"h": 3600, "m": 60, "s": 1}[small]
            return f"{whole // size}{big} {rest:02d}{small}"
    return f"{whole}s"


def apportion(shares: Sequence[float], width: int) -> list[int]:
    """Split `width` cells by shares (largest remainders), so that the parts always fill the bar exactly."""
    clean = [share if math.isfinite(share) and share > 0 else 0.0 for share in shares]
    total = sum(clean)
    if total <= 0 or width <= 0:
        return [0] * len(clean)
    exact = [share / total * width for share in clean]
    cells = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: cells[i] - exact[i])
    for i in by_remainder[: width - sum(cells)]:
        cells[i] += 1
    return cells


def chart(values: Sequence[float], width: int, height: int) -> list[str]:
    """A filled chart of block characters, `height` lines of `width` cells, from the lowest value to the highest.

    Values are stretched or averaged to the width. NaN and infinity are left out.
    """
    points = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    if points.size == 0 or width <= 0 or height <= 0:
        return [" " * max(width, 0)] * max(height, 0)
    levels = _heights(_resample(points, width), height)
    lines = []
    for line in reversed(range(height)):
        filled = np.clip(levels - 8 * line, 0, 8)
        lines.append("".join(_BLOCKS[level] for level in filled))
    return lines


def _resample(points: np.ndarray, width: int) -> np.ndarray:
    if points.size <= width:
        return np.interp(np.linspace(0, points.size - 1, width), np.arange(points.size), points)
    edges = np.linspace(0, points.size, width + 1).astype(int)
    return np.array([points[a:b].mean() for a, b in pairwise(edges)])


def _heights(points: np.ndarray, height: int) -> np.ndarray:
    low, high = points.min(), points.max()
    # At least one eighth is filled: an empty column would read as missing. A flat line lies in the middle.
    share = (points - low) / (high - low) if high > low else np.full(points.size, 0.5)
    return np.rint(1 + share * (8 * height - 1)).astype(int)
