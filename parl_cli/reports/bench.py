"""What `parl bench` found, for a person: a table, what is missing from it, and why the winner wins.

Everything is made from the plain values of bench.json (`parl_cli.bench.report.Report.to_plain`).
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from parl_cli.metrics import console as shared
from parl_cli.metrics import gauges

Data = Mapping[str, Any]

SHARES = ("env", "act", "learn", "wait", "other")
_QUIET = 0.9  # of a core: with less, figures say more of the other work
_LINE = 200  # where the output is no terminal


class BenchProgress:
    """Says what is being measured: a line that changes on a terminal, else a line per stage.

    Args:
        to: another console than the shared one.
    """

    def __init__(self, to: Console | None = None) -> None:
        self._console = to or shared.console
        out = self._console
        self._live = out.is_terminal and not out.is_dumb_terminal and shared.speaks_unicode(out)
        # few refreshes: they take time from what is measured
        self._status = out.status("", refresh_per_second=3) if self._live else None
        self._stage = ""

    def __enter__(self) -> Callable[[str, str], None]:
        context: AbstractContextManager[Any] = self._status or nullcontext()
        context.__enter__()
        return self._update

    def __exit__(self, *error: Any) -> None:
        if self._status is not None:
            self._status.__exit__(*error)

    def _update(self, stage: str, now: str) -> None:
        if self._status is not None:
            self._status.update(f"{stage}: {now}" if now else stage)
        elif stage != self._stage:
            shared.print_line(f"measuring {stage}", self._console)
        self._stage = stage


def print_report(data: Data, folder: str, command: str, to: Console | None = None) -> None:
    """Print the job, the table, the reason and, as the last line, the command.

    Args:
        data: what bench.json holds.
        folder: where it was written.
        command: what uses the winner.
        to: another console than the shared one.
    """
    out = to or shared.console
    shared.print_start(_essentials(data), title=f"{data['algo']} on {data['env']}, num_envs={data['num_envs']}", to=out)
    if out.is_terminal and shared.speaks_unicode(out):
        out.print(table(data, out))
    else:
        for line in _as_lines(data):
            shared.print_line(line, out)
    if data["winner"]["end_to_end"]["actors"]:
        _say(Text(_of_actors(data["winner"], data), style="dim"), out)
    for who, why in data["refused"].items():
        _say(Text(f"not measured: {who}: {why}", style="dim"), out)
    if not data["cpu_of_children_counted"]:
        _say(Text("CPU times are those of this process: here the system has no clock for its workers"), out)
    if data["core_share"] < _QUIET:
        taken = f"other processes had {1 - data['core_share']:.0%} of the core meanwhile; a quieter machine tells more"
        _say(Text(f"warning: {taken}", style="yellow"), out)
    if data["winner"]["num_envs"] != data["num_envs"]:
        _say(Text("mind that num_envs changes what is learned, not only how fast", style="yellow"), out)
    shared.print_line(f"written to {folder}", out)
    _say(Text(reason(data), style="bold"), out)
    shared.print_line(Text(command, style="cyan"), out)


def _say(text: Text, out: Console) -> None:
    """Print a sentence: folded at words on a terminal; what is to be copied, a path or a command, never is."""
    if out.is_terminal and shared.speaks_unicode(out):
        out.print(text)
    else:
        shared.print_line(text, out)


def reason(data: Data) -> str:
    """Why the winner wins, in one line: `serial wins: a CartPole-v1 step costs 6 µs, a wake-up 20 µs; …`."""
    winner = data["winner"]
    costs = f"a {data['env']} step costs {_us(data['env_step']['us'])}, a wake-up {_us(data['wake_up_us'])}"
    others = [entry for entry in data["vectorizers"] if entry["end_to_end"] and entry != winner]
    if not others:
        return f"{winner['label']} is all that was compared: {costs}"
    best = max(others, key=lambda entry: _ratio(entry, winner, "end_to_end"))
    if winner["vectorizer"] == "serial":
        against = f"{_named(best, data)} has {_ratios(best, winner)}".replace("#", "its speed")
        if _ratio(best, winner, "end_to_end") > 1:
            return f"serial stays: {against}, which is not clear enough; seconds=30 tells more; {costs}"
        return f"serial wins: {costs}; {against}"
    serial = [e for e in others if e["vectorizer"] == "serial" and e["num_envs"] == winner["num_envs"]]
    rival = serial[0] if serial else best
    gains = _ratios(winner, rival).replace("#", _named(rival, data))
    return f"{_named(winner, data)} wins: {gains}; {costs}"


def _named(entry: Data, data: Data) -> str:
    return entry["label"] + (f", {entry['num_envs']} envs" if _several_sizes(data) else "")


def _ratios(entry: Data, other: Data) -> str:
    together, alone = _ratio(entry, other, "end_to_end"), _ratio(entry, other, "env_only")
    return f"{together:.2f} × # end to end, {alone:.2f} × in stepping alone"


def _ratio(entry: Data, other: Data, key: str) -> float:
    """The median over the rounds, which both were measured in."""
    rounds = zip(entry[key]["rounds_steps_per_s"], other[key]["rounds_steps_per_s"], strict=True)
    return statistics.median(mine / its for mine, its in rounds)


def table(data: Data, out: Console) -> Table:
    """One row per vectorizer; where it would be too wide for `out`, a smaller one."""
    full = _full_table(data)
    needed = Measurement.get(out, out.options.update(max_width=_LINE), full).maximum
    return full if needed <= out.width else _small_table(data)


# Heading, which of the two measurements, which of its figures.
_COLUMNS = (
    ("env only\nsteps/s", "env_only", "steps_per_s"),
    ("\nµs/step", "env_only", "us_per_step"),
    ("\nCPU µs", "env_only", "cpu_us_per_step"),
    ("end to end\nsteps/s", "end_to_end", "steps_per_s"),
    ("\nµs/step", "end_to_end", "us_per_step"),
    ("\nCPU µs", "end_to_end", "cpu_us_per_step"),
)


def _full_table(data: Data) -> Table:
    entries = data["vectorizers"]
    keys = [key for key in ("num_workers", "num_groups") if any(key in entry for entry in entries)]
    keys = ["num_envs", *keys] if _several_sizes(data) else keys
    headings = [key.removeprefix("num_") for key in keys] + [heading for heading, _, _ in _COLUMNS]
    grid = _grid("vectorizer", [*headings, *(f"{part}\n%" for part in SHARES)])
    for entry in entries:
        cells = [entry["vectorizer"], *(str(entry.get(key, "")) for key in keys)]
        cells += [_figure(entry[which], figure) for _, which, figure in _COLUMNS]
        _add(grid, data, entry, cells + _shares(entry))
    return grid


def _small_table(data: Data) -> Table:
    """For 80 cells: workers and groups stand behind the name, and the shares share a column."""
    columns = (("env only\nµs/step", "env_only", "us_per_step"), _COLUMNS[3], ("\nµs", *_COLUMNS[4][1:]), _COLUMNS[5])
    sizes = ["\nenvs"] if _several_sizes(data) else []
    headings = [*sizes, *(heading for heading, _, _ in columns), "share of time, %\nenv act learn wait"]
    grid = _grid("vectorizer\nworkers × groups", headings)
    for entry in data["vectorizers"]:
        numbers = [str(entry[key]) for key in ("num_workers", "num_groups") if key in entry]
        cells = [f"{entry['vectorizer']} {' × '.join(numbers)}", *([str(entry["num_envs"])] if sizes else [])]
        cells += [_figure(entry[which], figure) for _, which, figure in columns]
        shares = _shares(entry)
        _add(grid, data, entry, [*cells, f"{shares[0]:>3} {shares[1]:>3} {shares[2]:>5} {shares[3]:>4}"])
    return grid


def _grid(first: str, headings: Sequence[str]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    grid.add_column(first, no_wrap=True)
    for heading in headings:
        grid.add_column(heading, justify="right", no_wrap=True)
    return grid


def _add(grid: Table, data: Data, entry: Data, cells: Sequence[str]) -> None:
    grid.add_row(*map(Text, cells), style="bold green" if entry == data["winner"] else "")


def _several_sizes(data: Data) -> bool:
    return len({entry["num_envs"] for entry in data["vectorizers"]}) > 1


def _shares(entry: Data) -> list[str]:
    together = entry["end_to_end"]
    return [f"{100 * together['shares'][part]:.0f}" if together else "" for part in SHARES]


def _of_actors(entry: Data, data: Data) -> str:
    """Where the time of actors goes that act while the learner, whose shares the table has, learns."""
    shares = ", ".join(f"{part} {share:.0%}" for part, share in entry["end_to_end"]["actors"].items())
    return f"actors of {_named(entry, data)}: {shares}; the shares above are the learner's"


def _figure(speed: Data | None, key: str) -> str:
    if speed is None:
        return ""
    return gauges.rate(speed[key]).removesuffix(" steps/s") if key == "steps_per_s" else gauges.figure(speed[key])


def _essentials(data: Data) -> dict[str, object]:
    machine = data["machine"]
    own: Data = next((part for part in data["parts"] if part["num_envs"] == data["num_envs"]), {})
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "gymnasium"))
    waits = "" if data["env_step"]["cpu_share"] > 0.5 else ", most of it waiting"
    return {
        "machine": f"{machine['cores']} cores, {machine['device']}, num_threads={machine['num_threads']}",
        "versions": versions,
        "one env": f"{_us(data['env_step']['us'])} a step{waits}; a wake-up costs {_us(data['wake_up_us'])}",
        **{f"{part} only": f"{_us(own[f'{part}_us'])} per env step" for part in ("act", "learn") if own},
        "measured in": f"{data['wall_s']:.0f} s",
    }


def _us(value: float) -> str:
    return f"{value / 1e3:.3g} ms" if value >= 1e3 else f"{value:.2g} µs" if value < 100 else f"{value:.0f} µs"


def _as_lines(data: Data) -> list[str]:
    out = Console(file=io.StringIO(), width=_LINE, color_system=None)
    out.print(table(data, out))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines() if line.strip(" ─")]
