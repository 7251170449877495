"""The choice between the live panel and plain lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from rich.console import Console

from parl_cli.metrics import console as shared
from parl_cli.metrics.panel import LivePanel
from parl_cli.metrics.plain import PlainLines
from parl_cli.types import Metrics

Progress: TypeAlias = LivePanel | PlainLines


def make_progress(
    total_steps: int, name: str = "", *, live: bool = True, history: Iterable[Metrics] = (), to: Console | None = None
) -> Progress:
    """The way to show a run: a live panel on a terminal that can move its cursor and draw blocks, else plain lines.

    Args:
        total_steps: the budget in env steps, as rounded up.
        name: the run's name.
        live: `logger.live`; False asks for plain lines on a terminal too.
        history: the rows before a resume (`read_jsonl`), for the chart and the best evaluation.
        to: another console than the shared one.
    """
    out = to or shared.console
    able = out.is_terminal and not out.is_dumb_terminal and shared.speaks_unicode(out)
    kind = LivePanel if live and able else PlainLines
    return kind(total_steps, name, history=history, to=to)
