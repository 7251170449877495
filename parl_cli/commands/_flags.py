"""The flags that the key=value commands share. Hydra's names, our own parser.

Own, because argparse as Hydra uses it cannot take flags between overrides (`parl train algo=ppo -m seed=1,2`), and
because its help breaks under Python 3.14.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from typing import NoReturn

from parl_cli.errors import ConfigError

_KEY_VALUE = re.compile(r"[\w.+]+=")

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

FLAGS_HELP = """\
flags:
  -m, --multirun           one job for each combination of the values in key=1,2,3
  -c, --cfg job|hydra|all  print the composed config and stop (--resolve: with ${…} filled in; -p KEY: that part)
  -i, --info WHAT          where the config comes from: defaults, defaults-tree, searchpath, config, plugins, all
  -cd, --config-dir DIR    search DIR for configs too (./conf is always searched)
  -h, --help               this page"""


@dataclass
class Flags:
    """The command line, taken apart."""

    overrides: list[str] = field(default_factory=list)
    help: bool = False
    cfg: str | None = None
    resolve: bool = False
    package: str | None = None
    multirun: bool = False
    config_dir: str | None = None
    info: str | None = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def parse_flags(command: str, args: list[str]) -> Flags:
    """Split a command line into flags and overrides, in any order.

    Raises:
        ConfigError: an unknown flag, a bad value, flags that exclude each other.
    """
    parser = _Parser(prog=f"parl {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--info", "-i", choices=INFO, nargs="?", const="all")
    flags = Flags(**vars(parser.parse_intermixed_args(args)))
    if flags.multirun and (flags.cfg or flags.info):
        raise ConfigError("--cfg and --info show one job: leave out -m, and give each key one value")
    if flags.cfg is None and (flags.resolve or flags.package):
        raise ConfigError("--resolve and --package say how --cfg prints: add --cfg job")
    return flags


@dataclass
class ListFlags:
    """The command line of `parl list`, taken apart."""

    words: list[str] = field(default_factory=list)  # topics; after `runs`, folders
    wanted: list[str] = field(default_factory=list)  # of runs: key=value
    help: bool = False
    json: bool = False
    config_dir: str | None = None
    overrides: list[str] = field(default_factory=list)  # plugins=[…]


def parse_list_flags(args: list[str]) -> ListFlags:
    """As `parse_flags`, for `parl list`; `plugins=[a,b]` stands among the topics, and values of runs after `runs`.

    Raises:
        ConfigError: an unknown flag.
    """
    parser = _Parser(prog="parl list", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    flags = ListFlags(**vars(parser.parse_intermixed_args(args)))
    is_value = [bool(_KEY_VALUE.match(word)) for word in flags.words]
    values = [word for word, is_one in zip(flags.words, is_value, strict=True) if is_one]
    flags.words = [word for word, is_one in zip(flags.words, is_value, strict=True) if not is_one]
    flags.overrides = [text for text in values if text.startswith("plugins=")]
    flags.wanted = [text for text in values if not text.startswith("plugins=")]
    if flags.wanted and flags.words[:1] != ["runs"]:
        raise ConfigError(
            f"{flags.wanted[0]}: parl list takes topics and plugins=[…], values after runs only; see parl list --help"
        )
    return flags


@dataclass
class WatchFlags:
    """The command line of `parl watch`, taken apart."""

    folder: str | None = None
    help: bool = False
    once: bool = False
    plain: bool = False


def parse_watch_flags(args: list[str]) -> WatchFlags:
    """As `parse_flags`, for `parl watch`; `run=FOLDER` is as good as FOLDER.

    Raises:
        ConfigError: an unknown flag, or a second folder.
    """
    parser = _Parser(prog="parl watch", add_help=False, allow_abbrev=False)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--plain", action="store_true")
    flags = WatchFlags(**vars(parser.parse_args(args)))
    flags.folder = None if flags.folder is None else flags.folder.removeprefix("run=")
    return flags


def warn(message: str) -> None:
    """Say something on stderr that is no error."""
    print(f"parl: {message}", file=sys.stderr)
