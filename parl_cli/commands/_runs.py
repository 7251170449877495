"""`parl list runs`: the run folders, newest first, chosen by where they lie and by their configs' values."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from parl_cli.commands._flags import warn
from parl_cli.errors import ConfigError
from parl_cli.metrics import gauges
from parl_cli.metrics.console import console, print_line
from parl_cli.reports import load
from parl_cli.reports.load import Run
from parl_cli.reports.status import started, status
from parl_cli.reports.watch import STYLES

OUTPUTS = "outputs"
_NUMBERS = ("seed", "steps", "return", "time")  # flush right

_MORE: dict[str, Callable[[Run], Any]] = {"status": status}  # keys to choose by besides those of the configs


def find(places: Sequence[str], wanted: Sequence[str]) -> list[Run]:
    """The runs below the places (none: ./outputs) that have the wanted values, newest first. Says which are broken.

    Args:
        places: run folders, folders above them, or globs.
        wanted: `key=value`; a value may be a list, `a,b`, and hold `*` and `?`.

    Raises:
        ConfigError: a place without runs, or a key that no run has.
    """
    if not places and not os.path.isdir(OUTPUTS):
        return []
    values: dict[str, Any] = {}
    for text in wanted:
        key, _, value = text.partition("=")
        values[key] = value if value.startswith("[") else value.split(",")
    try:
        paths = load.find(places or [OUTPUTS], key="list runs")
    except ConfigError:
        if places:
            raise
        return []
    runs, broken = load.read_all(paths)
    for line in broken:
        warn(f"broken: {line}")
    return sorted(load.select(runs, values, _MORE), key=started, reverse=True)


def record(run: Run) -> dict[str, Any]:
    """What `parl list runs --json` tells of a run."""
    row = _latest(run)
    return {
        "status": status(run),
        "algo": run.config.get("algo.name"),
        "env": run.config.get("env.name"),
        "seed": run.config.get("seed"),
        "env_steps": row.get("env_steps"),
        "total_steps": run.config.get("total_steps"),
        "return_mean": row.get("return_mean"),
        "time_s": row.get("time_s"),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(started(run))),
        "folder": load.shown(run.path),
    }


def row(run: Run) -> dict[str, str]:
    """The same for a person."""
    found = record(run)
    steps, total = found["env_steps"], found["total_steps"]
    share = f" {steps / total:.0%}" if _is_number(steps) and _is_number(total) and steps < total else ""
    return {
        "status": found["status"],
        "algo": load.plain_text(found["algo"]),
        "env": load.plain_text(found["env"]),
        "seed": load.plain_text(found["seed"]),
        "steps": f"{gauges.count(steps)}{share}" if _is_number(steps) else "",
        "return": gauges.figure(found["return_mean"]) if _is_number(found["return_mean"]) else "",
        "time": gauges.duration(found["time_s"]) if _is_number(found["time_s"]) else "",
        "folder": found["folder"],
    }


def print_runs(runs: Sequence[Run]) -> None:
    """A line for each run; where the folders do not fit beside the rest, they stand below it: to be copied whole."""
    if not runs:
        print_line("runs: none")
        return
    rows = [{name: name for name in row(runs[0])}, *map(row, runs)]
    *names, folder = rows[0]
    widths = {name: max(cell_len(cells[name]) for cells in rows) for name in names}
    room = console.width if console.is_terminal else math.inf
    beside = sum(widths.values()) + 2 * len(names) + max(cell_len(cells[folder]) for cells in rows) <= room
    for i, cells in enumerate(rows):
        line = Text(style="dim" if i == 0 else "")
        for name in names:
            space = " " * (widths[name] - cell_len(cells[name]))
            text = space + cells[name] if name in _NUMBERS else cells[name] + space
            line.append(f"{text}  ", style=STYLES.get(cells[name], "") if name == "status" else "")
        if beside:
            print_line(line.append(cells[folder]))
        else:
            print_line(line)
            print_line(Text(f"  {cells[folder]}", style="dim"))


def known_keys() -> list[str]:
    """Keys to choose by, of a few runs below ./outputs: completion has no time for all."""
    runs, _ = load.read_all(list(itertools.islice(load.below(Path(OUTPUTS)), 20)))
    return sorted({*_MORE, *(key for run in runs for key in run.config)})


def count() -> int:
    """How many run folders lie below ./outputs."""
    return sum(1 for _ in load.below(Path(OUTPUTS)))


def _latest(run: Run) -> Mapping[str, Any]:
    """Steps, time and return: what run.json says of a run that has ended, else the end of its metrics."""
    last = run.last_row()
    known = {**last, "return_mean": last.get("episode/return_mean")}
    if run.info.get("status") == "running":
        return known
    ended = {**run.info, "time_s": run.info.get("wall_s")}
    return known | {name: value for name, value in ended.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
