"""`parl eval`: play episodes with a trained policy and report the returns."""

from __future__ import annotations

from parl_cli.commands._command import run_command
from parl_cli.config import EvalCommand


def main(args: list[str]) -> int:
    """Run `parl eval`; returns the exit code."""
    return run_command("eval", EvalCommand, args, _evaluate, frozenset({"checkpoint", "output"}))


def _evaluate(command: EvalCommand) -> None:
    from parl_cli.jobs import evaluate_run  # torch, from here on

    evaluate_run(command)
