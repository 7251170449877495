"""What acting and learning cost alone."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

from parl_cli import build
from parl_cli.actors.inline import InlineActors
from parl_cli.config import TrainConfig
from parl_cli.types import EnvSpec, Rollout
from parl_cli.vectorizers.serial import SerialVectorizer


@dataclass(frozen=True)
class Parts:
    """What acting and learning cost alone at one number of envs, in seconds per env step."""

    act_s: float
    learn_s: float
    act_cpu_s: float  # what of it was computed: less than the time that passed, where others are at work
    learn_cpu_s: float
    update_steps: int  # env steps of one update


def measure_parts(config: TrainConfig, spec: EnvSpec, seconds: float) -> Parts:
    """Act only and learn only, each for about `seconds`, with all in this process."""
    config = dataclasses.replace(config, vectorizer=SerialVectorizer.Config(), actors=InlineActors.Config())
    learner = build.make_learner(config, spec)
    pool = build.make_pool(config, learner.policy, spec)
    try:
        rollouts = pool.get(1)  # the first one allocates
        pool.watch.take()
        acted, steps, ends = 0.0, 0, perf_counter() + seconds
        started, cpu = perf_counter(), process_time()
        while not steps or perf_counter() < ends:
            rollouts = pool.get(1)
            acted += pool.watch.take()["act"]
            steps += _env_steps(rollouts)
        computed = (process_time() - cpu) / (perf_counter() - started)
    finally:
        pool.close()
    learn_s, learn_cpu_s = learning(learner, rollouts, seconds)
    return Parts(acted / steps, learn_s, computed * acted / steps, learn_cpu_s, _env_steps(rollouts))


def _env_steps(rollouts: Sequence[Rollout]) -> int:
    return sum(rollout.num_env_steps for rollout in rollouts)


def learning(learner: Any, rollouts: Sequence[Rollout], seconds: float) -> tuple[float, float]:
    """Seconds of an update per env step, wall and CPU: medians of several from one state, as each changes the next."""
    before = copy.deepcopy(learner.state_dict())
    learner.step(rollouts)  # the first one imports and allocates
    taken: list[float] = []
    computed: list[float] = []
    while not taken or sum(taken) < seconds:
        learner.load_state_dict(copy.deepcopy(before))
        started, cpu = perf_counter(), process_time()
        learner.step(rollouts)
        computed.append(process_time() - cpu)
        taken.append(perf_counter() - started)
    steps = _env_steps(rollouts)
    return statistics.median(taken) / steps, statistics.median(computed) / steps
