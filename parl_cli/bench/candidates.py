"""What is compared: vectorizers, numbers of workers and groups, and in a tuning numbers of envs."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parl_cli import build, registry
from parl_cli.config import BenchCommand, TrainConfig
from parl_cli.errors import ConfigError, suggest
from parl_cli.per_policy import parts
from parl_cli.types import EnvSpec
from parl_cli.vectorizers.calls import available_cores

NUM_GROUPS = (2, 4)
TUNED_NUM_ENVS = (8, 16, 32, 64, 128, 256)

Refuse = Callable[[str, str], None]  # is told who cannot be measured, and why


@dataclass(frozen=True)
class Candidate:
    """One way to step the job's envs."""

    config: TrainConfig  # resolved

    @property
    def name(self) -> str:
        """The vectorizer's."""
        return str(self.config.vectorizer.name)

    @property
    def options(self) -> dict[str, int]:
        """Those of its options that are varied."""
        found = {key: getattr(self.config.vectorizer, key, None) for key in ("num_workers", "num_groups")}
        return {key: value for key, value in found.items() if value is not None}

    @property
    def full_name(self) -> str:
        """With the number of envs."""
        return f"{self}, num_envs={self.config.num_envs}"

    def __str__(self) -> str:
        words = [f"{n} {key.removeprefix('num_').rstrip('s')}{'s' * (n > 1)}" for key, n in self.options.items()]
        return ", ".join([self.name, *words])


def sizes(config: TrainConfig, command: BenchCommand, spec: EnvSpec, refuse: Refuse) -> Iterator[TrainConfig]:
    """The job with every number of envs that is tried: its own, and in a tuning those that fit it."""
    for num_envs in sorted({config.num_envs, *(TUNED_NUM_ENVS if command.tune else ())}):
        sized = dataclasses.replace(config, num_envs=num_envs)
        try:
            build.check_parts(parts(sized), spec)
            registry.load("actors", sized.actors.name).check(sized)
        except ConfigError as error:
            refuse(f"num_envs={num_envs}", str(error))
        else:
            yield sized


def candidates(config: TrainConfig, command: BenchCommand, spec: EnvSpec, refuse: Refuse) -> Iterator[Candidate]:
    """Every vectorizer with several numbers of workers and groups, the simple ones first.

    The config's own vectorizer keeps its other options; the rest have their defaults.
    """
    num_envs, cores = len(build.envs_of_one_actor(config)), available_cores() // getattr(config.actors, "num_actors", 1)
    for name in chosen_names(command):
        base = config.vectorizer if config.vectorizer.name == name else registry.load("vectorizer", name).Config()
        for options in variants(base, cores, num_envs, command.tune):
            candidate = Candidate(dataclasses.replace(config, vectorizer=dataclasses.replace(base, **options)))
            try:
                build.check_parts(parts(candidate.config), spec)
                candidate = Candidate(build.resolve(candidate.config))
            except ConfigError as error:
                refuse(candidate.full_name, str(error))
            else:
                yield candidate


def chosen_names(command: BenchCommand) -> list[str]:
    """The vectorizers to compare.

    Raises:
        ConfigError: an unknown one was named.
    """
    known = [name for name in registry.names("vectorizer") if name != "auto"]
    for name in command.vectorizers or ():
        if name not in known:
            raise ConfigError(f"vectorizers=[{name}]: no such vectorizer; {suggest(name, known)}")
    return command.vectorizers or known


def variants(vectorizer: Any, cores: int, num_envs: int, tune: bool) -> list[dict[str, int]]:
    """The numbers of workers and groups to try, for a vectorizer whose config has such options."""
    tried = {"num_workers": spread(max(1, min(cores, num_envs)), 7 if tune else 4), "num_groups": NUM_GROUPS}
    keys = [f.name for f in dataclasses.fields(vectorizer) if f.name in tried]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(tried[key] for key in keys))]


def spread(most: int, count: int) -> list[int]:
    """At most `count` whole numbers from 1 to `most`, each about the same factor above the one before."""
    return sorted({round(most ** (i / (count - 1))) for i in range(count)})


def winning_command(winner: Candidate, config: TrainConfig, overrides: Sequence[str]) -> str:
    """The `parl train` command of the job as the user typed it, with what won.

    Args:
        winner: what won.
        config: the job.
        overrides: what was typed after `parl bench`.
    """
    own = {f.name for f in dataclasses.fields(BenchCommand)}
    same = config.vectorizer.name == winner.name  # then the vectorizer's other options were the user's too
    varied = {f"vectorizer.{key}" for key in winner.options}
    if winner.config.num_envs != config.num_envs:
        varied.add("num_envs")
    words = []
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~")
        if key in own or key == "vectorizer" or key in varied or (key.startswith("vectorizer.") and not same):
            continue
        words.append(text)
    words += [f"num_envs={winner.config.num_envs}"] * ("num_envs" in varied)
    words += [f"vectorizer={winner.name}", *(f"vectorizer.{key}={value}" for key, value in winner.options.items())]
    return shlex.join(["parl", "train", *words])
