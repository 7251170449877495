"""Run folders, found and read: what `parl report`, `parl list runs` and `parl watch` begin with.

Everything is read from config.yaml, run.json and metrics.jsonl; torch is not needed. A run folder may come from
anywhere, so nothing in it is resolved or imported, and its text is made printable before a terminal sees it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from parl_cli.errors import ConfigError, ParlError, suggest
from parl_cli.metrics.jsonl import decode_row, read_jsonl
from parl_cli.types import Metrics

_MARKS = ("run.json", "metrics.jsonl")  # a folder that holds one of them is a run's
_MAX_BYTES = 2**20  # of config.yaml and run.json
_TAIL_BYTES = 2**16  # a row is about one thousandth of a megabyte

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


class BrokenRunError(ConfigError):
    """A run folder that cannot be read; says what is wrong with which file."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    Attributes:
        path: the folder.
        config: the resolved config by dotted key; lists and empty groups are values.
        info: run.json; empty where there is none.
    """

    path: Path
    config: dict[str, Any]
    info: dict[str, Any]

    @property
    def metrics_file(self) -> Path:
        """Its metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @cached_property
    def rows(self) -> list[Metrics]:
        """All rows of metrics.jsonl.

        Raises:
            BrokenRunError: the file is missing or damaged, or holds no row.
        """
        try:
            rows = list(read_jsonl(self.metrics_file))
        except OSError as error:
            raise BrokenRunError(f"{shown(self.path)}: cannot read metrics.jsonl ({error.strerror})") from None
        except ParlError as error:
            raise BrokenRunError(f"{shown(self.path)}: {str(error).removeprefix(f'{self.metrics_file}: ')}") from None
        if not rows:
            raise BrokenRunError(f"{shown(self.path)}: metrics.jsonl has no row yet")
        return rows

    def series(self, metric: str, over: str) -> tuple[np.ndarray, np.ndarray]:
        """One metric over another (`env_steps`, `time_s`), where both are finite: x that rises, and y.

        Where several rows share an x, the last one counts.
        """
        points = {row[over]: row[metric] for row in self.rows if _finite(row, over) and _finite(row, metric)}
        x = np.array(sorted(points), dtype=np.float64)
        return x, np.array([points[at] for at in x.tolist()], dtype=np.float64)

    def last_row(self) -> Metrics:
        """The last known value of each metric, read from the end of metrics.jsonl; empty where there is none."""
        try:
            with self.metrics_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read().splitlines(keepends=True)[1 if size > _TAIL_BYTES else 0 :]
        except OSError:
            return {}
        known: Metrics = {}
        for row in map(decode_row, lines):
            known |= {name: value for name, value in (row or {}).items() if math.isfinite(value)}
        return known


def find(words: Sequence[str], key: str = "runs") -> list[Path]:
    """The run folders that words name, each once: runs, folders above them (sweeps, `outputs`), or globs of either.

    Args:
        words: what was typed.
        key: how the words are called in messages.

    Raises:
        ConfigError: a word that leads to no run.
    """
    found: dict[Path, None] = {}
    for word in words:
        text = os.path.expanduser(word)
        places = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
        if not places:
            raise ConfigError(f"{key}={word}: nothing is there; name run or sweep folders, or a glob like 'outputs/*'")
        runs = [run for place in places for run in below(Path(place))]
        if not runs:
            raise ConfigError(f"{key}={word}: no run in it (a run folder has a run.json); parl list runs shows some")
        found |= dict.fromkeys(runs)
    return list(found)


def below(place: Path) -> Iterator[Path]:
    """The run folders at or below a place. Links below it are not followed: `latest` is one of its neighbours."""
    place = Path(os.path.realpath(place))
    for folder, folders, files in os.walk(place):
        folders.sort()
        if any(mark in files for mark in _MARKS):
            folders.clear()
            yield Path(folder)


def read(path: Path) -> Run:
    """Read config.yaml and run.json of a run folder; its metrics are read when they are asked for.

    Raises:
        BrokenRunError: config.yaml is missing or no config.
    """
    info: Any = None
    with contextlib.suppress(BrokenRunError, ValueError, RecursionError):  # what it tells is not needed to compare
        info = json.loads(_text(path / "run.json"))
    return Run(path, dict(_flat(_config(path / "config.yaml"))), info if isinstance(info, dict) else {})


def read_all(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs that can be read, and a line for each that cannot."""
    runs, broken = [], []
    for path in paths:
        try:
            runs.append(read(path))
        except BrokenRunError as error:
            broken.append(str(error))
    return runs, broken


def select(runs: Sequence[Run], wanted: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> list[Run]:
    """The runs whose config has these values.

    Args:
        runs: all of them.
        wanted: dotted key → the value, a list of values, or text with `*` and `?`.
        more: keys that are known besides those of the configs, with a function from a run to the value.

    Raises:
        ConfigError: a key that no run has.
    """
    more = more or {}
    for key in wanted:
        known = {name for run in runs for name in run.config} | set(more)
        if runs and key not in known:
            raise ConfigError(f"no run has a key {key}; {suggest(key, known)}")
    return [
        run
        for run in runs
        if all(matches(more[key](run) if key in more else run.config.get(key), value) for key, value in wanted.items())
    ]


def matches(value: Any, wanted: Any) -> bool:
    """Whether a config's value is what a user typed: as a number, or as text with `*` and `?`."""
    if isinstance(wanted, list) and not isinstance(value, list):
        return any(matches(value, one) for one in wanted)
    number, wanted_number = _number(value), _number(wanted)
    if number is not None and wanted_number is not None:
        return number == wanted_number
    return fnmatch.fnmatchcase(plain_text(value), plain_text(wanted).replace("[", "[[]"))


def plain_text(value: Any) -> str:
    """A config's value as it is typed: `null`, `true`, `[64,64]`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(plain_text(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{plain_text(item)}' for key, item in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(path: Path) -> str:
    """A path as the user would type it, from the working directory where it lies below; printable."""
    try:
        text = str(path.relative_to(Path.cwd()))
    except ValueError:
        text = str(path)
    return printable(text)


def printable(text: str) -> str:
    """The text without what moves a terminal's cursor."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _config(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, _Loader)):
            raise BrokenRunError(f"{shown(path.parent)}: config.yaml holds aliases, which parl never writes")
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise BrokenRunError(f"{shown(path.parent)}: config.yaml is no config")
    return values


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES or not path.is_file():
            raise BrokenRunError(f"{shown(path.parent)}: {path.name} is not what parl writes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BrokenRunError(f"{shown(path.parent)}: {path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise BrokenRunError(f"{shown(path.parent)}: cannot read {path.name} ({error})") from None


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = printable(f"{prefix}{key}")
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, printable(value) if isinstance(value, str) else value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _finite(row: Metrics, name: str) -> bool:
    return math.isfinite(row.get(name, math.nan))
