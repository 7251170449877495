"""What acting and learning cost alone."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from dataclasses import dataclass
from time import perf_counter

from parl_cli import build
from parl_cli.actors.inline import InlineActors
from parl_cli.config import TrainConfig
from parl_cli.training.learner import Learner
from parl_cli.types import EnvSpec, Rollout
from parl_cli.vectorizers.serial import SerialVectorizer


@dataclass(frozen=True)
class Parts:
    """What acting and learning cost alone at one number of envs, in seconds per env step."""

    act_s: float
    learn_s: float
    update_steps: int  # env steps of one update


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
