"""How fast envs are stepped on this machine: one env alone, a vectorizer, and what it costs to wake a process.

Several vectorizers are measured in turns (`race`), a round of short windows after the other: where the machine's
speed drifts, because of heat or of other work, no vectorizer is favoured by it.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any, TypeVar

import numpy as np
from gymnasium.vector.utils import batch_space

from parl_cli.errors import EnvError, ParlError
from parl_cli.metrics.cpu import CpuMeter
from parl_cli.vectorizers.base import EnvFn, Vectorizer
from parl_cli.vectorizers.description import EnvDescription

Key = TypeVar("Key", bound=Hashable)

_DRAWN = 64  # random actions per env, drawn beforehand and used again and again
_CHUNK_S = 0.002
_ECHO = "import os\nwhile b := os.read(0, 1): os.write(1, b)"


@dataclass(frozen=True)
class StepCost:
    """What one env costs, stepped alone in this process with random actions."""

    make_s: float  # to construct it
    step_s: float  # wall time of a step, with its share of the resets; the median of many short measurements
    cpu_share: float  # of that time, how much it computed; for the rest it waited


@dataclass
class Speed:
    """What a vectorizer did, by round."""

    steps_per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)  # CPU seconds per env step, here and in the processes below

    @property
    def median(self) -> float:
        """Env steps per second, the median over the rounds."""
        return statistics.median(self.steps_per_s)

    def ratio(self, other: Speed) -> float:
        """Times the speed of another that was measured in the same rounds: the median over the rounds."""
        return statistics.median(mine / its for mine, its in zip(self.steps_per_s, other.steps_per_s, strict=True))

    def summary(self) -> dict[str, Any]:
        """The medians, per env step in µs and per second, and every round."""
        return {
            "us_per_step": 1e6 / self.median,
            "steps_per_s": self.median,
            "cpu_us_per_step": 1e6 * statistics.median(self.cpu_s),
            "rounds_steps_per_s": self.steps_per_s,
        }


def step_cost(env_fn: EnvFn, seconds: float) -> StepCost:
    """Step one env for about `seconds`.

    Raises:
        EnvError: the env could not be made, or raised.
    """
    try:
        env_fn().close()  # the first one imports what it needs
        started = perf_counter()
        env = env_fn()
        made = perf_counter()
        try:
            return _step_alone(env, made - started, seconds)
        finally:
            env.close()
    except ParlError:
        raise
    except Exception as error:
        raise EnvError(f"an env raised {type(error).__name__} when it was measured: {error}") from error


def _step_alone(env: Any, make_s: float, seconds: float) -> StepCost:
    description = EnvDescription.of(env)
    agents = description.num_agents
    space = description.action_space if agents is None else batch_space(description.action_space, agents)
    space.seed(0)
    actions = itertools.cycle([space.sample() for _ in range(_DRAWN)])
    step = env.step
    env.reset(seed=0)
    costs: list[float] = []
    shares: list[float] = []
    ends = perf_counter() + seconds
    while (started := perf_counter()) < ends or not costs:
        cpu, count, elapsed = process_time(), 0, 0.0
        while elapsed < _CHUNK_S:
            _, _, terminated, truncated, _ = step(next(actions))
            if (terminated or truncated) if agents is None else (terminated | truncated).all():
                env.reset()
            count += 1
            elapsed = perf_counter() - started
        costs.append(elapsed / count)
        shares.append((process_time() - cpu) / elapsed)
    # the best share: a chunk in which another process had this core says nothing of the env
    return StepCost(make_s, statistics.median(costs), min(1.0, max(shares)))


def wake_up_s(processes: int = 2, times: int = 200) -> float:
    """The least that steps elsewhere cost: seconds from a byte to each of some sleeping processes to their answers.

    Two, because the answer of a single one comes from the core that asks, which is about to sleep: that is cheaper.
    """
    echo = [sys.executable, "-I", "-S", "-c", _ECHO]
    with ExitStack() as stack:
        pipes = []
        for _ in range(processes):
            process = subprocess.Popen(
                echo, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
            stack.enter_context(process)  # closes its pipes, which ends it, and waits for it
            assert process.stdin is not None
            assert process.stdout is not None
            pipes.append((process.stdin, process.stdout))
        taken = []
        for _ in range(times + 1):
            started = perf_counter()
            for to, _answer in pipes:
                to.write(b".")
            for _to, answer in pipes:
                answer.read(1)
            taken.append(perf_counter() - started)
    return statistics.median(taken[1:])  # the first one waited for Python to start


@dataclass(frozen=True)
class Window:
    """What a vectorizer did in a short while."""

    steps: int  # real env steps that came within `seconds`
    seconds: float
    all_steps: int  # with those before and after: what the CPU worked for


class Stepper:
    """Steps a vectorizer with random actions through the runner's face, for a while at a time.

    An env gets its next action as soon as it has answered, so lock-step and asynchronous ones are driven alike.

    Args:
        vectorizer: in same-step mode; it is reset, and stays its owner's to close.
    """

    def __init__(self, vectorizer: Vectorizer) -> None:
        self.vectorizer = vectorizer
        space = vectorizer.action_space
        space.seed(0)
        self._actions = itertools.cycle([space.sample() for _ in range(_DRAWN)])
        vectorizer.begin()

    def run(self, seconds: float) -> Window:
        """Step for about `seconds`; every env at least twice.

        The clock does not see the first step of every env, because workers have rested, nor what is still under way
        when the time is up.
        """
        vectorizer = self.vectorizer
        vectorizer.send(next(self._actions))
        before = 0
        while before < vectorizer.num_envs:
            before += self._turn()
        steps, elapsed, started = 0, 0.0, perf_counter()
        while elapsed < seconds or not steps:
            steps += self._turn()
            elapsed = perf_counter() - started
        after = 0
        while after < vectorizer.num_envs:
            after += len(vectorizer.recv().env_ids)
        return Window(steps, elapsed, before + steps + after)

    def _turn(self) -> int:
        """Receive what is ready and send the next actions; how many real transitions came."""
        step = self.vectorizer.recv()
        real = step.mask if step.mask.ndim == 1 else step.mask.any(axis=1)
        count = int(np.count_nonzero(real))  # a fifth of the time of `sum`
        ids, actions = step.env_ids, next(self._actions)
        if len(ids) == self.vectorizer.num_envs:
            self.vectorizer.send(actions)
        else:
            self.vectorizer.send(actions[ids], ids.copy())
        return count


def race(
    vectorizers: Mapping[Key, Callable[[], Vectorizer]],
    seconds: float,
    rounds: int,
    on_window: Callable[[], None] = lambda: None,
) -> tuple[dict[Key, Speed], dict[Key, str]]:
    """Measure vectorizers in turns.

    Args:
        vectorizers: what makes each; all are alive at once, and closed at the end.
        seconds: of one window.
        rounds: windows for each.
        on_window: called after each window.

    Returns:
        The speeds, and for those that could not be made or broke, why.
    """
    speeds: dict[Key, Speed] = {}
    refused: dict[Key, str] = {}
    with ExitStack() as stack:
        steppers: dict[Key, Stepper] = {}
        for key, make in vectorizers.items():
            try:
                vectorizer = make()
                stack.callback(_close, vectorizer)
                steppers[key] = Stepper(vectorizer)
            except ParlError as error:
                refused[key] = str(error).partition("\n")[0]
        meter = CpuMeter()
        for _ in range(rounds):
            for key, stepper in steppers.items():
                if key in refused:
                    continue
                try:
                    _measure(stepper, seconds, meter, speeds.setdefault(key, Speed()))
                except ParlError as error:
                    refused[key] = str(error).partition("\n")[0]
                on_window()
    return {key: speed for key, speed in speeds.items() if key not in refused}, refused


def _close(vectorizer: Vectorizer) -> None:
    """End it; what an env complains of now changes nothing of what was measured."""
    with suppress(EnvError):
        vectorizer.close()


def _measure(stepper: Stepper, seconds: float, meter: CpuMeter, speed: Speed) -> None:
    before = meter.seconds()
    window = stepper.run(seconds)
    speed.cpu_s.append((meter.seconds() - before) / window.all_steps)
    speed.steps_per_s.append(window.steps / window.seconds)
