"""What all pictures share: inks, bare axes, numbers on them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INK, FAINT, TICK, SPINE, GRID = "#222222", "#8a8a8a", "#555555", "#bbbbbb", "#e6e6e6"


def bare(axes: Any, grid: str = "y") -> None:
    """Axes with two spines and a faint grid across one direction."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SPINE)
    axes.tick_params(colors=TICK, labelsize=9)


def steps_text(steps: float, _: object = None) -> str:
    """Env steps on an axis: `250k`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(steps) >= limit:
            return f"{steps / limit:g}{unit}"
    return f"{steps:g}"


def value_text(value: float, _: object = None) -> str:
    """A return on an axis: `1,250`."""
    return f"{value:,.6g}"


@contextmanager
def missing_glyphs_ignored() -> Iterator[None]:
    """A run may be named in a script that the bundled font lacks; boxes in the title are no reason to warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield
