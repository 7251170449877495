"""`parl completion bash`: what <TAB> completes to. Also reached as `parl -sc install=bash`, as in other Hydra apps.

bash calls `parl completion query` with the line so far in COMP_LINE and takes the words it prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from parl_cli.errors import ConfigError, ParlError, suggest

_HELP = """\
parl completion: print the shell code for <TAB> completion

usage: eval "$(parl completion bash)"      # for this shell; put the line into ~/.bashrc to keep it
"""

# `=` must not split words, or key=<TAB> would complete the value alone.
_BASH = """\
_parl_complete() {
    local word="${COMP_LINE:0:$COMP_POINT}"
    word="${word##* }"
    COMPREPLY=($(compgen -W "$(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" parl completion query 2>/dev/null)" \
-- "$word"))
    [[ ${COMPREPLY[0]-} == *[=./] ]] && compopt -o nospace
    return 0
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o default -F _parl_complete parl
"""

_FLAGS = ("--help", "--multirun", "--cfg", "--resolve", "--package", "--info", "--config-dir")
_OWN_FLAGS = {"list": ("--help", "--json", "--config-dir"), "watch": ("--help", "--once", "--plain")}
_AFTER_FLAG = {"--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all")}


def main(args: list[str]) -> int:
    """Run `parl completion`; returns the exit code."""
    what = args[0] if len(args) == 1 else ""
    if what in ("bash", "install=bash"):
        print(_BASH, end="")
    elif what == "uninstall=bash":
        print("complete -r parl; unset -f _parl_complete")
    elif what in ("query", "query=bash"):
        line = os.environ.get("COMP_LINE", "")
        print("\n".join(complete(line[: int(os.environ.get("COMP_POINT", len(line)))])))
    elif what in ("-h", "--help") or not args:
        print(_HELP)
    else:
        shell = " ".join(args).removeprefix("install=")
        raise ConfigError(f"no completion for {shell!r}; {suggest(shell, ['bash'])}")
    return 0


def complete(line: str) -> list[str]:
    """The words that the last word of `line` may become; none where the line makes no sense."""
    words = line.split()[1:]
    word = "" if line.endswith(" ") or not words else words.pop()
    from parl_cli.cli import COMMANDS

    if not words:
        return _starting(word, COMMANDS)
    command, *typed = words
    if word.startswith("-"):
        return _starting(word, _OWN_FLAGS.get(command, _FLAGS))
    if typed and typed[-1] in _AFTER_FLAG:
        return _starting(word, _AFTER_FLAG[typed[-1]])
    if command == "list" and typed[:1] == ["runs"]:
        from parl_cli.commands._runs import known_keys

        return _starting(word, [f"{key}=" for key in known_keys()])
    if command == "list":
        from parl_cli.commands.list import TOPICS

        return _starting(word, TOPICS)
    if command == "completion":
        return _starting(word, ["bash"])
    if command in ("train", "eval", "resume", "bench", "report"):
        try:
            return _overrides(command, typed, word)
        except ParlError:
            return []
    return []


def _overrides(command: str, typed: list[str], word: str) -> list[str]:
    from omegaconf import OmegaConf

    from parl_cli import plugins
    from parl_cli.commands._flags import parse_flags
    from parl_cli.composition import conf_files
    from parl_cli.composition.compose import compose, gather_words, session, without_hydra

    flags = parse_flags(command, typed)
    if command == "report":
        flags.overrides = gather_words(flags.overrides, "runs")
    plugins.activate(flags.overrides)
    groups = conf_files.groups(flags.config_dir) if command in ("train", "bench") else []
    group, equals, value = word.partition("=")
    if equals and group in groups:
        *before, last = value.split(",")  # seed=1,2: each value of a sweep completes on its own
        typed_values = "".join(f"{item}," for item in before)
        return [
            f"{group}={typed_values}{option}" for option in _starting(last, conf_files.options(group, flags.config_dir))
        ]
    if equals:
        return _values(group, value)
    with session(flags.config_dir) as hydra:
        config = compose(hydra, command, flags.overrides, multirun=flags.multirun)
    node: Any = OmegaConf.to_container(without_hydra(config), resolve=False, throw_on_missing=False)
    prefix = word[: word.rfind(".") + 1]
    for part in prefix.split(".")[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    keys = [f"{prefix}{key}{'.' if isinstance(value, dict) else '='}" for key, value in (node or {}).items()]
    return _starting(word, keys if prefix else [*keys, *(f"{name}=" for name in groups)])


def _values(key: str, value: str) -> list[str]:
    known: Iterable[str] = ()
    if key == "device":
        known = ("auto", "cpu", "cuda", "mps")
    elif key in ("checkpoint", "run", "init_from", "output"):
        folder, slash, start = value.rpartition("/")
        base = os.path.expanduser(f"{folder}{slash}") or "."
        entries = sorted(os.scandir(base), key=lambda entry: entry.name) if os.path.isdir(base) else []
        known = [
            f"{folder}{slash}{entry.name}/" for entry in entries if entry.is_dir() and entry.name.startswith(start)
        ]
    return [f"{key}={option}" for option in _starting(value, known)]


def _starting(word: str, known: Iterable[str]) -> list[str]:
    return sorted(name for name in known if name.startswith(word))
