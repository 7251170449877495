"""`parl bench`: what a job costs on this machine, part by part, and which vectorizer is fastest for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parl_cli import plugins
from parl_cli.commands._flags import parse_flags
from parl_cli.config import BenchCommand, TrainConfig, parse
from parl_cli.errors import ConfigError

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra


def main(args: list[str]) -> int:
    """Run `parl bench`; returns the exit code."""
    flags = parse_flags("bench", args)
    plugins.activate(flags.overrides)
    if flags.help:
        from parl_cli.commands._help import job_help

        print(job_help("bench", flags.overrides, flags.config_dir))
        return 0
    if flags.multirun:
        raise ConfigError("-m: parl bench measures one job at a time; give each key one value")

    from parl_cli.commands._show import show
    from parl_cli.composition.compose import quote_values, session

    overrides = quote_values(flags.overrides, frozenset({"output"}))
    with session(flags.config_dir) as hydra:
        if flags.cfg or flags.info:
            show(hydra, "bench", flags)
            return 0
        config, command = _read(hydra, overrides)

    from parl_cli.jobs import bench_job

    search_path = [] if flags.config_dir is None else ["--config-dir", flags.config_dir]
    bench_job(config, command, [*flags.overrides, *search_path])
    return 0


def _read(hydra: Hydra, overrides: Sequence[str]) -> tuple[TrainConfig, BenchCommand]:
    """The job and what to measure of it, both valid."""
    from parl_cli.composition.compose import compose, plain, presets_named

    job = compose(hydra, "bench", overrides)
    values = plain(job)
    own = {f.name: values.pop(f.name) for f in dataclasses.fields(BenchCommand) if f.name in values}
    command = parse(BenchCommand, own)

    from parl_cli.bench.candidates import chosen_names  # torch, from here on
    from parl_cli.build import validate

    chosen_names(command)
    with presets_named(job):
        return validate(values), command
