"""Actor pools over probe envs, without a run around them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from parl_cli.actors.asynchronous import AsyncActors
from parl_cli.actors.base import Actor
from parl_cli.actors.process import ProcessActors, ProcessActorsConfig
from parl_cli.actors.thread import ThreadActors, ThreadActorsConfig
from parl_cli.config import TrainConfig
from parl_cli.envs.toy import CountingEnv
from parl_cli.types import EnvSpec, Rollout
from parl_cli.vectorizers.serial import SerialVectorizer
from tests.helpers.counting import counting_env, numbered_seed
from tests.helpers.stubs import make_policy, make_vectorizer, train_config

POOLS = {"process": (ProcessActors, ProcessActorsConfig), "thread": (ThreadActors, ThreadActorsConfig)}
NUM_STEPS = 7


@dataclass(frozen=True)
class Recipe:
    """As `parl_cli.build.ActorRecipe`, of envs that no config names."""

    config: TrainConfig
    make_env: Callable[[int], gym.Env] = counting_env  # from the env's id in the whole run
    vectorizer: type = SerialVectorizer
    options: dict[str, Any] = field(default_factory=dict)
    policy_class: type | None = None
    device: Any = None

    @property
    def spec(self) -> EnvSpec:
        """Of an env that never fails."""
        env = CountingEnv()
        return EnvSpec("probe", env.observation_space, env.action_space)

    @property
    def env_ids(self) -> range:
        """All envs of the run."""
        return range(self.config.num_envs)

    def policy(self) -> Any:
        """Always the same."""
        return make_policy(self.spec) if self.policy_class is None else make_policy(self.spec, self.policy_class)

    def actor(self, policy: Any, envs: range) -> Actor:
        """An actor whose envs know what they are called in the whole run."""
        vectorizer = make_vectorizer(
            [functools.partial(self.make_env, env) for env in envs],
            self.vectorizer,
            functools.partial(numbered_seed, envs.start),
            **self.options,
        )
        return Actor(vectorizer, policy, num_steps=NUM_STEPS, noise_key=7, env_ids=envs)


@contextlib.contextmanager
def pool_of(
    kind: str, *, num_envs: int = 4, recipe: dict[str, Any] | None = None, **options: Any
) -> Iterator[AsyncActors]:
    """A pool that is closed in the end."""
    cls, config = POOLS[kind]
    actors = config(**({"num_actors": 2} | options))
    whole = train_config(num_envs=num_envs, actors=actors)
    algo = whole.algo.__class__(num_steps=NUM_STEPS, num_minibatches=1)
    made = Recipe(train_config(num_envs=num_envs, actors=actors, algo=algo), **(recipe or {}))
    pool = cls.make(made, made.policy())
    try:
        yield pool
    finally:
        pool.close()


def learn(pool: AsyncActors, policy: Any, updates: int, first: int = 0) -> list[Rollout]:
    """The training loop without learning: publish, get, publish …; the rollouts."""
    from parl_cli.types import Snapshot

    pool.publish(Snapshot(first, 0, policy.state_dict()))
    rollouts = []
    for version in range(first, first + updates):
        rollouts += pool.get(1)
        pool.publish(Snapshot(version + 1, 0, policy.state_dict()))
    return rollouts


def pids(pool: AsyncActors) -> list[int]:
    """Of its actors, in their order."""
    return [actor.process.pid for actor in pool._actors]
