"""`parl train`: compose, validate, make the run folder, train; with -m one job after another."""

from __future__ import annotations

from parl_cli import plugins
from parl_cli.commands._flags import parse_flags


def main(args: list[str]) -> int:
    """Run `parl train`; returns the exit code."""
    flags = parse_flags("train", args)
    plugins.activate(flags.overrides)
    if flags.help:
        from parl_cli.commands._help import job_help

        print(job_help("train", flags.overrides, flags.config_dir, flags.multirun))
        return 0

    from parl_cli.commands._job import run_one, run_sweep
    from parl_cli.commands._show import show
    from parl_cli.composition.compose import session

    with session(flags.config_dir) as hydra:
        if flags.cfg or flags.info:
            show(hydra, "train", flags)
        elif flags.multirun:
            run_sweep(hydra, flags.overrides)
        else:
            run_one(hydra, flags.overrides)
    return 0
