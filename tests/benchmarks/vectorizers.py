"""How fast each vectorizer steps CartPole, beside a bare loop and Gymnasium's own, in one interleaved run.

    python tests/benchmarks/vectorizers.py [--envs 32] [--seconds 1.0] [--rounds 5]

Prints the median steps/s of each and its ratio to the bare loop of the same round, so that a machine whose speed
drifts does not favour one of them. Nothing is asserted: figures depend on the machine, and on what else runs there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from parl_cli import registry
from parl_cli.config import EnvConfig
from parl_cli.envs.factory import EnvFactory, EpisodeSeeds

ENV = EnvConfig(id="CartPole-v1")


class BareLoop:
    """Env objects stepped in a Python loop, reset where they ended: the floor for one process."""

    def __init__(self, num_envs: int) -> None:
        self.envs = [EnvFactory(ENV)() for _ in range(num_envs)]
        for env in self.envs:
            env.reset(seed=0)

    def step(self, actions: np.ndarray) -> None:
        for env, action in zip(self.envs, actions.tolist(), strict=True):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    def close(self) -> None:
        for env in self.envs:
            env.close()


class Runner:
    """A vectorizer as the actor drives it: `send`, then `recv`."""

    def __init__(self, name: str, num_envs: int) -> None:
        self.vectorizer = registry.load("vectorizer", name)(
            [EnvFactory(ENV)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP, episode_seed=EpisodeSeeds(1)
        )
        self.vectorizer.begin()

    def step(self, actions: np.ndarray) -> None:
        self.vectorizer.send(actions)
        self.vectorizer.recv()

    def close(self) -> None:
        self.vectorizer.close()


def gymnasium_env(cls: type, num_envs: int) -> Any:
    """One of Gymnasium's vector envs, as its documentation makes it."""
    envs = cls([partial(gym.make, ENV.id)] * num_envs)
    envs.reset(seed=0)
    return envs


def measure(step: Callable[[np.ndarray], Any], actions: np.ndarray, seconds: float) -> float:
    """Env steps per second over about `seconds`."""
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step(actions[count % len(actions)])
        count += 1
    return count * actions.shape[1] / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    n = options.envs
    peers: dict[str, Any] = {"bare loop": BareLoop(n)}
    peers |= {name: Runner(name, n) for name in registry.names("vectorizer")}
    peers |= {"gymnasium sync": gymnasium_env(SyncVectorEnv, n), "gymnasium async": gymnasium_env(AsyncVectorEnv, n)}
    actions = np.random.default_rng(0).integers(2, size=(1000, n))
    speeds: dict[str, list[float]] = {name: [] for name in peers}
    try:
        for _ in range(options.rounds):
            for name, peer in peers.items():
                speeds[name].append(measure(peer.step, actions, options.seconds))
    finally:
        for peer in peers.values():
            peer.close()

    print(f"{ENV.id} × {n}, median of {options.rounds} rounds")
    for name, values in speeds.items():
        ratio = statistics.median(v / bare for v, bare in zip(values, speeds["bare loop"], strict=True))
        print(f"{name:<18}{statistics.median(values):>12,.0f} steps/s  {ratio:5.2f} × bare")


if __name__ == "__main__":
    main()
