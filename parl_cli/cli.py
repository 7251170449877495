"""The `parl` command: finds the sub-command, and turns whatever ends it into an exit code.

0 done · 1 something broke (a `ParlError`'s text, or a bug's traceback) · 2 bad input, one line · 130 Ctrl-C.
Nothing heavy is imported here: a sub-command's module is loaded when it is the one typed, and torch when a job
starts. `PARL_TRACEBACK=1` shows the traceback of errors that are otherwise a line.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

import parl_cli
from parl_cli.errors import ConfigError, ParlError, suggest

COMMANDS = {
    "train": "train a policy, or several with -m",
    "eval": "play episodes with a trained policy and report the returns",
    "resume": "go on with an interrupted run, or extend a finished one",
    "bench": "measure a job on this machine, and find its fastest vectorizer",
    "report": "compare runs: scores with intervals, learning curves, sample efficiency, speed",
    "watch": "show a running or finished run or sweep, from its files",
    "list": "what there is: algorithms, envs, vectorizers, …, and the runs",
    "completion": "print the shell code for <TAB> completion",
}

_EXAMPLES = """\
examples:
  parl train algo=ppo env=cartpole num_envs=32
  parl train -m env=cartpole seed=1,2,3
  parl eval checkpoint=outputs/ppo_cartpole/latest
  parl bench env=cartpole num_envs=32
  parl report outputs/ppo_cartpole outputs/truly_ppo_cartpole
  parl list envs
  eval "$(parl completion bash)"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `parl` with `argv` (default: the process's own arguments) and return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="replace")  # help has a `…`, which Latin-1 cannot say
    try:
        code = dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except ParlError as error:
        if os.environ.get("PARL_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"parl: error: {_text(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("parl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `parl list | head`: the reader has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def dispatch(args: list[str]) -> int:
    """Run the sub-command that `args` begin with."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"parl {parl_cli.__version__}")
        return 0
    if args[0] in ("-sc", "--shell-completion"):
        # What Hydra's users type: parl -sc install=bash
        return _run("completion", args[1:])
    if args[0] not in COMMANDS:
        raise ConfigError(f"unknown command {args[0]!r}; {suggest(args[0], COMMANDS)}")
    return _run(args[0], args[1:])


def help_text() -> str:
    """What `parl --help` prints."""
    lines = [f"  {name:<12}{line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "parl: a command-line experiment runner for parallel reinforcement learning",
            "",
            "usage: parl <command> [key=value …]",
            "",
            "commands (each has its own --help):",
            *lines,
            "",
            _EXAMPLES,
        ]
    ).rstrip()


def _run(command: str, args: list[str]) -> int:
    return importlib.import_module(f"parl_cli.commands.{command}").main(args)


def _text(error: ParlError) -> str:
    if isinstance(error, ConfigError):
        # Part of the contract: bad input is one line, whatever a library's message inside it looks like.
        return " ".join(str(error).split())
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
