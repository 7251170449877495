"""What a job costs on this machine, and which vectorizer is fastest for it: the measuring of `parl bench`.

The parts are measured alone and then together:

- *env only*: a vectorizer stepped with random actions through the runner's face, nothing else going on;
- *act only*: what the actor adds to a step, its noise and its bookkeeping included; the envs' own time is left out;
- *learn only*: an update of the algorithm and what the learner does around it, again and again on one rollout;
- *end to end*: rollouts and updates as in training.

What is compared is measured in turns, a round after the other, so that a machine whose speed drifts favours nobody.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import platform
import shlex
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from time import perf_counter
from typing import Any

import torch

from parl_cli import __version__, build, registry
from parl_cli.actors.inline import InlineActors
from parl_cli.config import BenchCommand, TrainConfig, to_plain
from parl_cli.envs.factory import EnvFactory, env_spec
from parl_cli.errors import ConfigError, ParlError, suggest
from parl_cli.metrics.cpu import CpuMeter
from parl_cli.metrics.timing import Stopwatch
from parl_cli.training.learner import Learner
from parl_cli.types import EnvSpec, Metrics, Rollout
from parl_cli.vectorizers.calls import available_cores
from parl_cli.vectorizers.serial import SerialVectorizer
from parl_cli.vectorizers.speed import Speed, StepCost, race, step_cost, wake_up_s

ROUNDS = 5
MIN_GAIN = 1.05  # faster by less is no reason to prefer what is less simple
NUM_GROUPS = (2, 4)
TUNED_NUM_ENVS = (8, 16, 32, 64, 128, 256)
FINALISTS = 8  # of a tuning's candidates, measured end to end


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

    def __str__(self) -> str:
        words = [f"{n} {key.removeprefix('num_').rstrip('s')}{'s' * (n > 1)}" for key, n in self.options.items()]
        return ", ".join([self.name, *words])


@dataclass(frozen=True)
class Parts:
    """What acting and learning cost alone at one number of envs, in seconds per env step."""

    act_s: float
    learn_s: float
    update_steps: int  # env steps of one update


@dataclass
class Result:
    """What one candidate did."""

    candidate: Candidate
    env_only: Speed
    end_to_end: Speed = field(default_factory=Speed)
    shares: Metrics = field(default_factory=dict)  # of the time end to end, as in metrics.jsonl: time/env_share, …

    def to_plain(self) -> dict[str, Any]:
        """As in bench.json."""
        shares = {name.removeprefix("time/").removesuffix("_share"): share for name, share in self.shares.items()}
        measured = bool(self.end_to_end.steps_per_s)
        return {
            "label": str(self.candidate),
            "vectorizer": self.candidate.name,
            **self.candidate.options,
            "num_envs": self.candidate.config.num_envs,
            "env_only": self.env_only.summary(),
            "end_to_end": self.end_to_end.summary() | {"shares": shares} if measured else None,
        }


@dataclass
class Report:
    """Everything that was measured."""

    config: TrainConfig
    command: BenchCommand
    step: StepCost
    wake_up_s: float
    counts_children: bool  # whether CPU seconds are those of the workers too
    parts: dict[int, Parts]  # by num_envs
    results: list[Result]  # the simple ones first
    refused: dict[str, str]  # what could not be measured, and why
    wall_s: float

    @property
    def winner(self) -> Result:
        """The fastest end to end; a less simple one must be clearly faster than what comes before it."""
        first, *others = [result for result in self.results if result.end_to_end.steps_per_s]
        for result in others:
            if beats(result.end_to_end, first.end_to_end):
                first = result
        return first

    def to_plain(self) -> dict[str, Any]:
        """What bench.json holds, as plain values; times are in µs per env step."""
        parts = [
            {"num_envs": n, "act_us": 1e6 * p.act_s, "learn_us": 1e6 * p.learn_s, "update_steps": p.update_steps}
            for n, p in self.parts.items()
        ]
        return {
            "algo": self.config.algo.name,
            "env": self.config.env.id or self.config.env.name,
            "num_envs": self.config.num_envs,
            "seconds": self.command.seconds,
            "wall_s": self.wall_s,
            "machine": machine(self.config),
            "env_step": {"us": 1e6 * self.step.step_s, "cpu_share": self.step.cpu_share},
            "wake_up_us": 1e6 * self.wake_up_s,
            "cpu_of_children_counted": self.counts_children,
            "parts": parts,
            "vectorizers": [result.to_plain() for result in self.results],
            "refused": self.refused,
            "winner": self.winner.to_plain(),
            "config": to_plain(self.config),
        }


def beats(speed: Speed, other: Speed) -> bool:
    """Whether it is clearly faster: by `MIN_GAIN` in the median, and faster in four rounds of five."""
    rounds = list(zip(speed.steps_per_s, other.steps_per_s, strict=True))
    won = sum(mine > its for mine, its in rounds)
    return speed.ratio(other) >= MIN_GAIN and won >= 0.8 * len(rounds)


class Bench:
    """The measuring of one job.

    Args:
        config: from `build.validate`.
        command: how long, and how much.
        progress: is told the stage, and what is measured in it just now.
    """

    def __init__(
        self, config: TrainConfig, command: BenchCommand, progress: Callable[[str, str], None] = lambda stage, now: None
    ) -> None:
        self.config = config
        self.command = command
        self.progress = progress
        self.spec: EnvSpec = env_spec(config.env)
        self.parts: dict[int, Parts] = {}
        self.refused: dict[str, str] = {}

    def run(self) -> Report:
        """Measure.

        Raises:
            ConfigError: no vectorizer can step these envs, or an unknown one was named.
            ParlError: an env or a worker broke.
        """
        started = perf_counter()
        torch.set_num_threads(self.config.num_threads or 1)
        self.progress("one env alone", "")
        step = step_cost(EnvFactory(self.config.env), min(0.3, self.command.seconds))
        wake_s = wake_up_s()
        results: list[Result] = []
        for sized in self._sizes():
            found = list(self._candidates(sized))
            if found:
                self.progress(f"acting and learning alone, num_envs={sized.num_envs}", "")
                self.parts[sized.num_envs] = measure_parts(sized, self.spec, self.command.seconds)
                results += self._env_only(found)
        if not results:
            raise ConfigError(f"nothing to measure: {'; '.join(f'{who}: {why}' for who, why in self.refused.items())}")
        finalists = sorted(results, key=self._predicted_s)[:FINALISTS] if self.command.tune else results
        self._end_to_end(finalists)
        if not any(result.end_to_end.steps_per_s for result in finalists):
            raise ParlError(f"nothing could be measured end to end: {'; '.join(self.refused.values())}")
        return Report(
            self.config,
            self.command,
            step,
            wake_s,
            CpuMeter().counts_children,
            self.parts,
            results,
            self.refused,
            perf_counter() - started,
        )

    # ---- what is compared ----

    def _sizes(self) -> Iterator[TrainConfig]:
        """The job with every number of envs that is tried: its own, and in tuning those that the algorithm takes."""
        sizes = {self.config.num_envs, *(TUNED_NUM_ENVS if self.command.tune else ())}
        for num_envs in sorted(sizes):
            sized = dataclasses.replace(self.config, num_envs=num_envs)
            try:
                registry.load("algo", sized.algo.name).check(sized, self.spec)
            except ConfigError as error:
                self.refused[f"num_envs={num_envs}"] = str(error)
            else:
                yield sized

    def _candidates(self, config: TrainConfig) -> Iterator[Candidate]:
        """Every vectorizer with several numbers of workers and groups, the simple ones first.

        The config's own vectorizer keeps its other options; the rest have their defaults.
        """
        num_actors = getattr(config.actors, "num_actors", 1)
        num_envs = len(one_actor_s(config))
        for name in chosen_names(self.command):
            base = config.vectorizer if config.vectorizer.name == name else registry.load("vectorizer", name).Config()
            for options in variants(base, available_cores() // num_actors, num_envs, self.command.tune):
                candidate = Candidate(dataclasses.replace(config, vectorizer=dataclasses.replace(base, **options)))
                try:
                    registry.load("algo", config.algo.name).check(candidate.config, self.spec)
                    yield Candidate(build.resolve(candidate.config))
                except ConfigError as error:
                    self._refuse(candidate, error)

    def _refuse(self, candidate: Candidate, error: ParlError | str) -> None:
        where = f", num_envs={candidate.config.num_envs}" if self.command.tune else ""
        self.refused[f"{candidate}{where}"] = str(error).partition("\n")[0]

    # ---- measuring ----

    def _env_only(self, found: Sequence[Candidate]) -> list[Result]:
        stage = f"env only, num_envs={found[0].config.num_envs}"
        windows = itertools.count(1)
        self.progress(stage, f"starting {len(found)} vectorizers")
        speeds, failed = race(
            {i: partial(build.make_vectorizer, c.config, one_actor_s(c.config)) for i, c in enumerate(found)},
            self.command.seconds / ROUNDS,
            ROUNDS,
            lambda: self.progress(stage, f"window {next(windows)} of {len(found) * ROUNDS}"),
        )
        for i, why in failed.items():
            self._refuse(found[i], why)
        return [Result(found[i], speed) for i, speed in speeds.items()]

    def _end_to_end(self, results: Sequence[Result]) -> None:
        """Train every candidate a little, in turns, and fill in what it did."""
        stage = f"end to end, {len(results)} ways"
        with ExitStack() as stack:
            trainings: list[tuple[Result, Training]] = []
            for result in results:
                self.progress(stage, f"starting {result.candidate}")
                try:
                    training = Training(result.candidate.config, self.spec)
                except ParlError as error:
                    self._refuse(result.candidate, error)
                    continue
                stack.callback(training.pool.close)
                trainings.append((result, training))
            meter = CpuMeter()
            slowest = max((self._update_s(result) for result, _ in trainings), default=1.0)
            rounds = max(1, min(ROUNDS, int(2 * self.command.seconds / slowest)))
            for number in range(rounds):
                for result, training in trainings:
                    self.progress(stage, f"round {number + 1} of {rounds}, {result.candidate}")
                    if number == 0 and rounds > 1:
                        training.update()  # the first one imports and allocates
                    training.run(max(1, round(self.command.seconds / rounds / self._update_s(result))), meter)
            for result, training in trainings:
                result.end_to_end, result.shares = training.speed, training.typical_shares()

    def _predicted_s(self, result: Result) -> float:
        """Seconds per env step end to end, if the parts add up."""
        parts = self.parts[result.candidate.config.num_envs]
        return 1 / result.env_only.median + parts.act_s + parts.learn_s

    def _update_s(self, result: Result) -> float:
        return self._predicted_s(result) * self.parts[result.candidate.config.num_envs].update_steps


class Training:
    """One candidate's training, a few updates at a time.

    Attributes:
        speed: what was done, by round.
        shares: where the time went in each round.
    """

    def __init__(self, config: TrainConfig, spec: EnvSpec) -> None:
        self.learner = build.make_learner(config, spec)
        self.pool = build.make_pool(config, self.learner.algo.policy, spec)
        self.pool.publish(self.learner.snapshot())
        self.speed = Speed()
        self.shares: list[Metrics] = []

    def run(self, updates: int, meter: CpuMeter) -> None:
        """Train one round."""
        for watch in (self.pool.watch, self.learner.watch):
            watch.take()
        steps, cpu, started = self.learner.env_steps, meter.seconds(), perf_counter()
        for _ in range(updates):
            self.update()
        elapsed, done = perf_counter() - started, self.learner.env_steps - steps
        self.speed.cpu_s.append((meter.seconds() - cpu) / done)
        self.speed.steps_per_s.append(done / elapsed)
        whole = Stopwatch()
        for watch in (self.pool.watch, self.learner.watch):
            whole.merge(watch.take())
        self.shares.append(whole.shares(elapsed))

    def update(self) -> None:
        """One rollout, one update, as in `training.loop`."""
        self.learner.step(self.pool.get(1))
        self.pool.publish(self.learner.snapshot())

    def typical_shares(self) -> Metrics:
        """Where the time went, in the round of median speed."""
        order = sorted(range(len(self.shares)), key=lambda i: self.speed.steps_per_s[i])
        return self.shares[order[len(order) // 2]]


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


def one_actor_s(config: TrainConfig) -> range:
    """The envs that one actor of the job steps, which is what a vectorizer is given."""
    return range(config.num_envs // getattr(config.actors, "num_actors", 1))


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


def machine(config: TrainConfig) -> dict[str, Any]:
    """What the figures depend on besides the job."""
    return {
        "cores": available_cores(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "device": str(build.policy_device(config)),
        "num_threads": config.num_threads,
        "python": platform.python_version(),
        "parl": __version__,
        **{name: version(name) for name in ("torch", "numpy", "gymnasium")},
    }


def measure_parts(config: TrainConfig, spec: EnvSpec, seconds: float) -> Parts:
    """Act only and learn only, each for about `seconds`, with all in this process."""
    config = dataclasses.replace(config, vectorizer=SerialVectorizer.Config(), actors=InlineActors.Config())
    learner = build.make_learner(config, spec)
    pool = build.make_pool(config, learner.algo.policy, spec)
    try:
        rollout = pool.get(1)[0]  # the first one allocates
        pool.watch.take()
        acted, steps, ends = 0.0, 0, perf_counter() + seconds
        while not steps or perf_counter() < ends:
            rollout = pool.get(1)[0]
            acted += pool.watch.take()["act"]
            steps += rollout.num_env_steps
    finally:
        pool.close()
    return Parts(acted / steps, learn_s(learner, rollout, seconds), rollout.num_env_steps)


def learn_s(learner: Learner, rollout: Rollout, seconds: float) -> float:
    """Seconds of an update per env step: the median of several from one state, because each would change the next."""
    before = copy.deepcopy(learner.state_dict())
    learner.step([rollout])  # the first one imports and allocates
    taken: list[float] = []
    while not taken or sum(taken) < seconds:
        learner.load_state_dict(copy.deepcopy(before))
        started = perf_counter()
        learner.step([rollout])
        taken.append(perf_counter() - started)
    return statistics.median(taken) / rollout.num_env_steps
