"""What is measured: bare envs in a loop, parl's vectorizers through both of their faces, and other vector envs."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from parl_cli import registry
from parl_cli.config import EnvConfig
from parl_cli.envs.factory import EnvFactory, EpisodeSeeds
from parl_cli.vectorizers.calls import available_cores, split
from parl_cli.vectorizers.speed import Stepper
from tests.helpers.slow_envs import BusyEnv, RandomSleepEnv

EnvFn = Callable[[], gym.Env]

DRAWN = 64  # random actions per env, drawn beforehand
_HEAD_START_S = 0.02  # until loops begin that shall begin together


class Peer(Protocol):
    """Something that steps N envs with random actions."""

    def run(self, seconds: float) -> tuple[int, float, int]:
        """Step for about `seconds`: (steps counted, seconds they took, all steps of this call)."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class Raw:
    """Bare env objects stepped in a Python loop, reset where they ended: the floor for one process.

    Args:
        env_fns: one factory per env.
        limit: steps after which all are reset, for envs whose time limit is a wrapper that was taken off.
    """

    def __init__(self, env_fns: Sequence[EnvFn], limit: int | None = None) -> None:
        self.envs = [env_fn() for env_fn in env_fns]
        self.limit = limit
        self.count = 0
        space = self.envs[0].action_space
        space.seed(0)
        self.actions = [[space.sample() for _ in self.envs] for _ in range(DRAWN)]
        for seed, env in enumerate(self.envs):
            env.reset(seed=seed)

    def step(self) -> None:
        """Step all envs once."""
        self.count += 1
        for env, action in zip(self.envs, self.actions[self.count % DRAWN], strict=True):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        if self.limit and self.count % self.limit == 0:
            for env in self.envs:
                env.reset()

    def run(self, seconds: float) -> tuple[int, float, int]:
        return _timed(self.step, len(self.envs), seconds)

    def close(self) -> None:
        for env in self.envs:
            env.close()


class RawPerCore:
    """A `Raw` in a process per core, each with its share of the envs, and no word between them: what cores can do.

    No vectorizer can be faster that steps Python envs in lock-step, whatever a loop alone is on the same machine.

    Args:
        env_fns: one factory per env.
        limit: see `Raw`.
    """

    def __init__(self, env_fns: Sequence[EnvFn], limit: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        for part in split(len(env_fns), available_cores()):
            ours, theirs = context.Pipe()
            args = (theirs, env_fns[part.start : part.stop], limit)
            context.Process(target=_serve_raw, args=args, daemon=True).start()
            theirs.close()
            self.pipes.append(ours)

    def run(self, seconds: float) -> tuple[int, float, int]:
        for pipe in self.pipes:
            pipe.send((time.time() + _HEAD_START_S, seconds))
        steps, elapsed, all_steps = zip(*map(_answer, self.pipes), strict=True)
        return sum(steps), max(elapsed), sum(all_steps)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()


def _answer(pipe: Connection) -> tuple[int, float, int]:
    if not pipe.poll(60):
        raise TimeoutError("a loop did not answer within 60 s")
    return pipe.recv()


def _serve_raw(pipe: Connection, env_fns: Sequence[EnvFn], limit: int | None) -> None:
    """Step some envs whenever, and for as long as, the other end says; until it is closed."""
    raw = Raw(env_fns, limit)
    with contextlib.suppress(EOFError):
        while True:
            starts, seconds = pipe.recv()
            time.sleep(max(0.0, starts - time.time()))
            pipe.send(raw.run(seconds))
    raw.close()


class Runner:
    """A vectorizer as the actor drives it: every episode seeded, `send` and `recv`."""

    def __init__(self, vectorizer: Any) -> None:
        self.vectorizer = vectorizer
        self.stepper = Stepper(vectorizer)

    def run(self, seconds: float) -> tuple[int, float, int]:
        window = self.stepper.run(seconds)
        return window.steps, window.seconds, window.all_steps

    def close(self) -> None:
        self.vectorizer.close()


class Gymnasium:
    """Any vector env through Gymnasium's face: `step`, resets unseeded as Gymnasium's own.

    The step on which an env is reset (next-step autoreset) is none of its steps, and not counted, here as elsewhere.
    """

    def __init__(self, envs: Any) -> None:
        self.envs = envs
        envs.action_space.seed(0)
        self.actions = [envs.action_space.sample() for _ in range(DRAWN)]
        self.count = 0
        self.ends: list[tuple[Any, Any]] = []  # terminated and truncated of every step; they are arrays of their own
        envs.reset(seed=0)

    def step(self) -> None:
        """Step all envs once."""
        self.count += 1
        _, _, terminated, truncated, _ = self.envs.step(self.actions[self.count % DRAWN])
        self.ends.append((terminated, truncated))

    def run(self, seconds: float) -> tuple[int, float, int]:
        self.ends.clear()
        steps, elapsed, all_steps = _timed(self.step, self.envs.num_envs, seconds)
        if self.envs.metadata["autoreset_mode"] is not AutoresetMode.NEXT_STEP:
            return steps, elapsed, all_steps
        # the first call is not timed; the resets of the last are not done, but those of the first are
        resets = sum(int((terminated | truncated).sum()) for terminated, truncated in self.ends[:-1])
        return steps - resets, elapsed, all_steps - resets

    def close(self) -> None:
        self.envs.close()


def _timed(step: Callable[[], None], num_envs: int, seconds: float) -> tuple[int, float, int]:
    step()  # what rests needs a step to wake up
    count, started, elapsed = 0, time.perf_counter(), 0.0
    while elapsed < seconds:
        step()
        count += 1
        elapsed = time.perf_counter() - started
    return count * num_envs, elapsed, (count + 1) * num_envs


# ---- envs: top-level functions, so that worker processes can import them ----


def bare(env_id: str) -> gym.Env:
    """The env's own object, with no wrapper around it."""
    return gym.make(env_id).unwrapped


def pong() -> gym.Env:
    """Pong as it is trained on: 84 × 84 grey, 4 frames skipped, 4 frames stacked."""
    import ale_py

    gym.register_envs(ale_py)
    env = gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    return gym.wrappers.FrameStackObservation(gym.wrappers.AtariPreprocessing(env, noop_max=30), 4)


def busy() -> gym.Env:
    """100 µs of Python per step."""
    return BusyEnv(100e-6)


def random_sleep() -> gym.Env:
    """2 ms of sleep per step, exponentially distributed."""
    return RandomSleepEnv(2e-3)


def as_configured(env_id: str) -> EnvFn:
    """As a run of parl makes the env."""
    return EnvFactory(EnvConfig(id=env_id))


# ---- ways to step them ----


def runner(name: str, env_fns: Sequence[EnvFn], **options: Any) -> Runner:
    """One of parl's vectorizers, as training uses it."""
    cls = registry.load("vectorizer", name)
    return Runner(cls(env_fns, autoreset_mode=AutoresetMode.SAME_STEP, episode_seed=EpisodeSeeds(1), **options))


def face(name: str, env_fns: Sequence[EnvFn], **options: Any) -> Gymnasium:
    """One of parl's vectorizers, in place of Gymnasium's."""
    return Gymnasium(registry.load("vectorizer", name)(env_fns, **options))


def sync(env_fns: Sequence[EnvFn]) -> Gymnasium:
    """Gymnasium's SyncVectorEnv."""
    return Gymnasium(SyncVectorEnv(env_fns))


def asynchronous(env_fns: Sequence[EnvFn]) -> Gymnasium:
    """Gymnasium's AsyncVectorEnv: a process per env."""
    return Gymnasium(AsyncVectorEnv(env_fns))


def own_batch(env_id: str, num_envs: int, **options: Any) -> Gymnasium:
    """The library's own vector env, with nothing around it."""
    return Gymnasium(gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **options))


def gymnasium_made(env_id: str) -> EnvFn:
    """As Gymnasium's documentation makes an env."""
    return partial(gym.make, env_id)
