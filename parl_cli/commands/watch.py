"""`parl watch`: look on at a run or a sweep, from its files. What is looked at knows nothing of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from parl_cli.commands._flags import parse_watch_flags
from parl_cli.errors import ConfigError
from parl_cli.metrics import gauges
from parl_cli.metrics.console import command_line, console, print_line, print_result, speaks_unicode
from parl_cli.metrics.panel import LivePanel, SteadyLive
from parl_cli.metrics.plain import PlainLines
from parl_cli.reports import load
from parl_cli.reports.load import printable, shown
from parl_cli.reports.status import silence_s, started
from parl_cli.reports.watch import SWEEP_FILE, Board, Watched

OUTPUTS = "outputs"
POLL_S = 0.5
OVERVIEW_EVERY_S = 10.0

HELP = """\
parl watch: show a running or finished run or sweep, from its files

usage: parl watch [run or sweep folder] [--once] [--plain]

Without a folder: the newest run below outputs/, or the sweep that it belongs to. It ends when the run does, or with
Ctrl-C, which the run does not notice.

flags:
  --once      show how it stands, and stop
  --plain     lines instead of a live panel, as where the output is no terminal
  -h, --help  this page

examples:
  parl watch
  parl watch outputs/ppo_cartpole/latest
  parl watch outputs/sweep/sweep-2026-01-02_03-04-05-abc
"""


def main(args: list[str]) -> int:
    """Run `parl watch`; returns the exit code."""
    flags = parse_watch_flags(args)
    if flags.help:
        print(HELP, end="")
        return 0
    folder = latest() if flags.folder is None else chosen(flags.folder)
    live = console.is_terminal and not console.is_dumb_terminal and speaks_unicode(console) and not flags.plain
    try:
        if _is_run(folder):
            _watch_run(folder, live, flags.once)
        else:
            _watch_board(folder, live, flags.once)
    except KeyboardInterrupt:
        print_line("left; what was looked at goes on")
        return 130
    return 0


def chosen(text: str) -> Path:
    """The run folder, or the folder with runs in it, that a user named.

    Raises:
        ConfigError: there is no run.
    """
    folder = Path(os.path.realpath(os.path.expanduser(text)))
    if not folder.is_dir():
        raise ConfigError(f"watch={text}: no such folder; parl list runs shows the runs")
    if (folder / SWEEP_FILE).is_file():
        return folder
    found = load.find([text], key="watch")
    return found[0] if len(found) == 1 else folder


def latest() -> Path:
    """The run or sweep that was begun last; of a run that belongs to a sweep, the sweep.

    Raises:
        ConfigError: there is no run.
    """
    if not os.path.isdir(OUTPUTS):
        raise ConfigError(f"there is no {OUTPUTS}/ here, and so no run; name a folder: parl watch RUN")
    runs, broken = load.read_all(list(load.below(Path(OUTPUTS))))
    begun = [(started(run), run.path) for run in runs]
    # the ledger of a sweep is written whenever one of its jobs begins or ends
    begun += [(file.stat().st_mtime, file.parent.resolve()) for file in Path(OUTPUTS).glob(f"**/{SWEEP_FILE}")]
    if not begun:
        load.find([OUTPUTS], key="watch")  # says so if there is none
        raise ConfigError(f"watch={OUTPUTS}: no run can be read: {broken[0]}")
    newest = max(begun)[1]
    return next((folder for folder in newest.parents if (folder / SWEEP_FILE).is_file()), newest)


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() or (folder / "metrics.jsonl").is_file()


def _watch_run(folder: Path, live: bool, once: bool) -> None:
    watched = Watched(folder)
    watched.poll()
    name, total_steps = str(watched.run.config.get("name", "")), watched.tracker.total_steps
    panel = LivePanel(total_steps, name, hint="Ctrl-C leaves") if live else PlainLines(total_steps, name)
    panel.tracker = watched.tracker
    with panel:
        while watched.status == "running" and not once:
            time.sleep(POLL_S)
            watched.poll()
            panel.tracker = watched.tracker
            if isinstance(panel, PlainLines):
                for row in watched.new:
                    panel.tell(row)
    how = watched.status
    summary: dict[str, object] = {**watched.tracker.summary(), "run folder": shown(folder)}
    if "error" in watched.run.info:
        summary["error"] = printable(str(watched.run.info["error"]))
    go_on = command_line(["parl", "resume", f"run={shown(folder)}"])
    ended_early = how in ("silent", "interrupted", "failed")
    print_result(summary, title=how, commands={"go on": go_on} if ended_early else {})
    if how == "silent":
        since = gauges.duration(silence_s(watched.run))
        print_line(f"nothing was written for {since}, and no process of this machine trains it: it was probably killed")


def _watch_board(folder: Path, live: bool, once: bool) -> None:
    board = Board(folder)
    board.poll()
    if live:
        with SteadyLive(
            get_renderable=lambda: board.render("Ctrl-C leaves"), auto_refresh=False, console=console
        ) as screen:
            while board.is_going_on and not once:
                screen.refresh()
                time.sleep(POLL_S)
                board.poll()
            screen.transient = True
        console.print(board.render())
    else:
        _print_lines(board, once)
    for line in board.broken:
        print_line(f"broken: {line}")


def _print_lines(board: Board, once: bool) -> None:
    """A line for each change of a run's state, and the whole now and then."""
    told: dict[Path, str] = {}
    overview_at = time.monotonic()
    while True:
        for path, one in board.watched.items():
            if told.get(path) != one.status:
                told[path] = one.status
                print_line(board.line(path))
        if once or not board.is_going_on:
            break
        if time.monotonic() - overview_at > OVERVIEW_EVERY_S:
            overview_at = time.monotonic()
            print_line(board.overview())
        time.sleep(POLL_S)
        board.poll()
    print_line(board.overview())
