"""The one console that everything prints through, and what is printed before and after a run.

All output, log lines included, goes through `console`, because a live panel only survives lines it knows of. Where
the output is no terminal, tables become plain lines that are never wrapped, so that a path can be copied from a log.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence: whoever read is gone, but a run may be hours old. Rich would end the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for `print`, and for the flush at exit


console = _Console(highlight=False)

MAX_WIDTH = 124  # wider than this, a panel's labels and figures drift apart

_ASCII = str.maketrans(
    {"×": "x", "±": "+/-", "↑": "+", "→": "=", "↓": "-", "·": "-", "…": "...", "µ": "u", "–": "-", "≥": ">="}
)
_LEVELS = {logging.WARNING: ("warning: ", "yellow"), logging.ERROR: ("error: ", "bold red")}


class ConsoleHandler(logging.Handler):
    """Log records as lines on the shared console; warnings and errors say what they are."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record above the live panel."""
        try:
            level = min(logging.ERROR, record.levelno // 10 * 10)
            prefix, style = _LEVELS.get(level, ("", ""))
            print_line(Text.assemble((prefix, style), self.format(record)))
        except Exception:
            self.handleError(record)


def speaks_unicode(out: Console) -> bool:
    """Whether the output takes any character: a pipe on Windows, or LANG=C, may not."""
    return out.encoding.lower().startswith("utf")


def short_path(path: Path) -> str:
    """A path as the user would type it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def command_line(words: Sequence[str], plugins: Sequence[str] = ()) -> str:
    """A command as it can be copied, with the plug-ins that it needs."""
    return shlex.join([*words, f"plugins=[{','.join(plugins)}]"] if plugins else words)


def writable(text: str, out: Console) -> str:
    """The text with what the output cannot take replaced: a `±` must never end a run."""
    return text if speaks_unicode(out) else text.translate(_ASCII).encode(out.encoding, "replace").decode(out.encoding)


def print_line(text: str | Text, to: Console | None = None) -> None:
    """Print one line as it is: no wrapping, no markup, no colouring of numbers; see `writable`."""
    out = to or console
    if not speaks_unicode(out):
        text = writable(str(text), out)
    out.print(text, soft_wrap=True, markup=False, highlight=False)


def print_start(summary: Mapping[str, object], title: str = "", to: Console | None = None) -> None:
    """Print the resolved essentials of a run: envs, workers, sizes, updates, device, threads, run folder.

    Args:
        summary: label → value, in the order to show; whole numbers get thousands separators.
        title: what is being run, e.g. `ppo on cartpole`.
        to: another console than the shared one.
    """
    out = to or console
    if title:
        print_line(Text(title, style="bold"), out)
    for line in _lines(summary, _label_width(summary)):
        print_line(line, out)
    print_line("", out)


def print_result(
    summary: Mapping[str, object],
    *,
    title: str = "finished",
    commands: Mapping[str, str] | None = None,
    to: Console | None = None,
) -> None:
    """Print how a run ended, and what to type next.

    Args:
        summary: label → value, e.g. `Tracker.summary()` and the run folder.
        title: `finished`, `stopped by Ctrl-C`, ….
        commands: what it does → the command. They stand outside the frame, unwrapped, to be copied whole.
        to: another console than the shared one.
    """
    out = to or console
    commands = commands or {}
    width = max(_label_width(summary), _label_width(commands))
    if out.is_terminal and speaks_unicode(out):
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=width, style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, value in summary.items():
            grid.add_row(label, Text(_show(value)))
        frame = Panel(
            grid,
            title=Text(title, style="bold"),
            title_align="left",
            border_style="green" if title == "finished" else "yellow",
            box=box.ROUNDED,
            width=min(out.width, MAX_WIDTH),
            padding=(0, 1),
        )
        out.print(frame)
    else:
        for line in [Text(title), *_lines(summary, width)]:
            print_line(line, out)
    for line in _lines(commands, width, value_style="cyan"):
        print_line(line, out)


def _label_width(summary: Mapping[str, object]) -> int:
    return max((len(label) for label in summary), default=0)


def _lines(summary: Mapping[str, object], width: int, value_style: str = "") -> list[Text]:
    return [
        Text.assemble("  ", (f"{label:<{width}}", "dim"), "  ", (_show(value), value_style))
        for label, value in summary.items()
    ]


def _show(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
