"""The measuring of one job."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter

import torch

from parl_cli import build
from parl_cli.bench.candidates import Candidate, candidates, sizes
from parl_cli.bench.parts import Parts, measure_parts
from parl_cli.bench.report import Report, Result
from parl_cli.config import BenchCommand, TrainConfig
from parl_cli.envs.factory import EnvFactory, env_spec
from parl_cli.errors import ConfigError, ParlError
from parl_cli.metrics.cpu import CpuMeter, core_share
from parl_cli.metrics.timing import Stopwatch
from parl_cli.types import EnvSpec, Metrics
from parl_cli.vectorizers.speed import Speed, race, step_cost, wake_up_s

ROUNDS = 5
FINALISTS = 8  # of a tuning's candidates, measured end to end


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
        self.core_shares: list[float] = []

    def run(self) -> Report:
        """Measure.

        Raises:
            ConfigError: no vectorizer can step these envs, or an unknown one was named.
            ParlError: an env or a worker broke.
        """
        started = perf_counter()
        torch.set_num_threads(self.config.num_threads or 1)
        self._stage("one env alone")
        step = step_cost(EnvFactory(self.config.env), min(0.3, self.command.seconds))
        wake_s = wake_up_s()
        results: list[Result] = []
        for sized in sizes(self.config, self.command, self.spec, self._refuse):
            found = list(candidates(sized, self.command, self.spec, self._refuse))
            if found:
                self._stage(f"acting and learning alone, num_envs={sized.num_envs}")
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
            statistics.mean(self.core_shares),
            perf_counter() - started,
        )

    def _refuse(self, who: str, why: str) -> None:
        self.refused[who] = why.partition("\n")[0]

    def _stage(self, stage: str, now: str = "") -> None:
        self.progress(stage, now)
        self.core_shares.append(core_share())

    def _env_only(self, found: Sequence[Candidate]) -> list[Result]:
        stage = f"env only, num_envs={found[0].config.num_envs}"
        windows = itertools.count(1)
        self._stage(stage, f"starting {len(found)} vectorizers")
        configs = [candidate.config for candidate in found]
        speeds, failed = race(
            {i: partial(build.make_vectorizer, c, build.envs_of_one_actor(c)) for i, c in enumerate(configs)},
            self.command.seconds / ROUNDS,
            ROUNDS,
            lambda: self.progress(stage, f"window {next(windows)} of {len(found) * ROUNDS}"),
        )
        for i, why in failed.items():
            self._refuse(found[i].full_name, why)
        return [Result(found[i], speed) for i, speed in speeds.items()]

    def _end_to_end(self, results: Sequence[Result]) -> None:
        """Train every candidate a little, in turns, and fill in what it did."""
        stage = f"end to end, {len(results)} ways"
        self._stage(stage)
        with ExitStack() as stack:
            trainings = list(self._start(results, stage, stack))
            meter = CpuMeter()
            slowest = max((self._update_s(result) for result, _ in trainings), default=1.0)
            rounds = max(1, min(ROUNDS, int(2 * self.command.seconds / slowest)))
            # actors of their own act on while others are measured: what they have ready then is learned from untimed
            apart = self.config.actors.name != "inline"
            if apart or rounds > 1:
                for result, training in trainings:
                    self.progress(stage, f"first update, {result.candidate}")
                    training.update()  # imports and allocates
            for number in range(rounds):
                for result, training in trainings:
                    self.progress(stage, f"round {number + 1} of {rounds}, {result.candidate}")
                    if apart:
                        training.update()
                    training.run(max(1, round(self.command.seconds / rounds / self._update_s(result))), meter)
            for result, training in trainings:
                result.end_to_end, result.shares = training.speed, training.typical_shares()

    def _start(self, results: Sequence[Result], stage: str, stack: ExitStack) -> Iterator[tuple[Result, Training]]:
        for result in results:
            self.progress(stage, f"starting {result.candidate}")
            try:
                training = Training(result.candidate.config, self.spec)
            except ParlError as error:
                self._refuse(result.candidate.full_name, str(error))
                continue
            stack.callback(training.pool.close)
            yield result, training

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
        self.pool = build.make_pool(config, self.learner.policy, spec)
        self.pool.publish(self.learner.snapshot())
        self.speed = Speed()
        self.shares: list[Metrics] = []

    def run(self, updates: int, meter: CpuMeter) -> None:
        """Train one round."""
        for watch in (self.pool.watch, self.learner.watch):
            watch.take()
        self.pool.metrics()  # what actors did before is not of this round
        steps, cpu, started = self._env_steps(), meter.seconds(), perf_counter()
        for _ in range(updates):
            self.update()
        elapsed, done = perf_counter() - started, self._env_steps() - steps
        self.speed.cpu_s.append((meter.seconds() - cpu) / done)
        self.speed.steps_per_s.append(done / elapsed)
        whole = Stopwatch()
        for watch in (self.pool.watch, self.learner.watch):
            whole.merge(watch.take())
        actors = self.pool.metrics()
        told = actors.get("actors/other_share", 1.0) < 1.0  # by some actor, in so short a time
        self.shares.append(whole.shares(elapsed) | (actors if told else {}))

    def _env_steps(self) -> int:
        """Of all policies."""
        return sum(learner.env_steps for learner in getattr(self.learner, "learners", [self.learner]))

    def update(self) -> None:
        """One rollout, one update, as in `training.loop`."""
        self.learner.step(self.pool.get(1))
        self.pool.publish(self.learner.snapshot())

    def typical_shares(self) -> Metrics:
        """Where the time went, in the round of median speed."""
        order = sorted(range(len(self.shares)), key=lambda i: self.speed.steps_per_s[i])
        return self.shares[order[len(order) // 2]]
