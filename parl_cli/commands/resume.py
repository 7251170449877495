"""`parl resume`: go on with an interrupted run or sweep, or extend a finished run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from parl_cli.commands._command import run_command
from parl_cli.config import ResumeCommand


def main(args: list[str]) -> int:
    """Run `parl resume`; returns the exit code."""
    return run_command("resume", ResumeCommand, args, _resume, frozenset({"run"}))


def _resume(command: ResumeCommand) -> None:
    from parl_cli.jobs import resume_run  # torch, from here on
    from parl_cli.sweeps.ledger import is_sweep
    from parl_cli.sweeps.run import resume_sweep
    from parl_cli.training.checkpoint import latest_run

    if command.run == "latest":
        command = dataclasses.replace(command, run=str(latest_run(Path("outputs"), "run")))
    if is_sweep(command.run):
        resume_sweep(command)
    else:
        resume_run(command)
