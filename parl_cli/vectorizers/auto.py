"""`vectorizer=auto`: the vectorizer that is fastest for these envs on this machine, chosen before a run begins.

Only those are candidates that give the same traces: serial, thread, subprocess and hybrid. First one env is stepped
alone and a process is woken: where even perfect workers would gain nothing, that is all. Else short interleaved windows
decide, and leaving serial must pay: processes cost memory, and random actions without learning are the best case for
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gymnasium.vector import AutoresetMode

from parl_cli import registry
from parl_cli.config import option
from parl_cli.errors import EnvError
from parl_cli.vectorizers.base import EnvFn, Vectorizer
from parl_cli.vectorizers.calls import available_cores
from parl_cli.vectorizers.plans import EpisodeSeed
from parl_cli.vectorizers.speed import Speed, StepCost, race, step_cost, wake_up_s

MIN_GAIN = 1.1  # times the speed of serial, or it stays serial
WAITS = 0.5  # an env that computes less than this share of a step waits for something else
MAX_WAITING_THREADS = 32

_PROBE_S = 0.15
_WINDOW_S = 0.04
_ROUNDS = 4
_MAKE_S = 0.5  # that the envs of one candidate may take to be made


@dataclass(frozen=True)
class Choice:
    """A vectorizer, its options, and why, in one line."""

    name: str
    reason: str
    options: dict[str, Any] = field(default_factory=dict)


class AutoVectorizer(Vectorizer):
    """The fastest of serial, thread, subprocess and hybrid: calling it measures, and makes that one instead."""

    @dataclass(frozen=True)
    class Config:
        """`vectorizer=auto`."""

        name: str = option("auto", "serial, thread, subprocess or hybrid: measured for a second or two before a run")

    def __new__(  # type: ignore[misc]
        cls,
        env_fns: Sequence[EnvFn],
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        episode_seed: EpisodeSeed | None = None,
    ) -> Vectorizer:
        """Choose and make; see `choose`."""
        choice = choose(env_fns, episode_seed)
        chosen = registry.load("vectorizer", choice.name)
        return chosen(env_fns, autoreset_mode=autoreset_mode, episode_seed=episode_seed, **choice.options)


def choose(env_fns: Sequence[EnvFn], episode_seed: EpisodeSeed | None = None, *, cores: int | None = None) -> Choice:
    """Measure and choose; about a second or two, more where envs take long to make or to step.

    Args:
        env_fns: one factory per env; envs are made, and closed again.
        episode_seed: as the vectorizers take it.
        cores: how many there are for these envs; None: all that this process may use.
    """
    cores, num_envs = cores or available_cores(), len(env_fns)
    try:
        step = step_cost(env_fns[0], _PROBE_S)
    except EnvError as error:
        # the run will tell it better, if it happens there too
        return Choice("serial", f"not measured: {error}")
    wake_s = wake_up_s()
    plain = plain_answer(step, wake_s, num_envs, cores)
    if plain is not None:
        return Choice("serial", plain)
    workers = candidates(step, num_envs, cores)
    sample = sample_size(step, num_envs)
    speeds, refused = race(
        {name: partial(_make, name, env_fns[:sample], episode_seed, workers[name]) for name in workers},
        _WINDOW_S,
        _ROUNDS if sample * step.step_s <= _WINDOW_S else 2,
    )
    costs = describe(step, wake_s) + (f", {sample} of {num_envs} envs measured" if sample < num_envs else "")
    return decide(speeds, refused, workers, costs)


def plain_answer(step: StepCost, wake_s: float, num_envs: int, cores: int) -> str | None:
    """Why serial is the answer without measuring more; None where it is not plain.

    The bound is what perfect workers would do: they share the steps evenly, and cost no more than one wake-up.
    """
    if num_envs == 1:
        return "there is one env, and nothing to share out"
    waits = step.cpu_share < WAITS
    if cores == 1 and not waits:
        return "there is one core"
    workers = num_envs if waits else min(cores, num_envs)
    at_best = step.step_s * math.ceil(num_envs / workers) + wake_s
    if num_envs * step.step_s >= MIN_GAIN * at_best:
        return None
    return f"{describe(step, wake_s)}, so {workers} workers gain nothing with {num_envs} envs"


def candidates(step: StepCost, num_envs: int, cores: int) -> dict[str, int]:
    """What is measured, with its number of workers: one per core, but more threads for envs that wait."""
    workers = min(cores, num_envs)
    if step.cpu_share < WAITS:
        return {"serial": 1, "thread": min(num_envs, max(workers, MAX_WAITING_THREADS)), "subprocess": workers}
    return {"serial": 1, "thread": workers, "subprocess": workers, "hybrid": workers}


def sample_size(step: StepCost, num_envs: int) -> int:
    """How many of the envs are measured: all, unless they are slow to make or to step; four at least."""
    fast_enough = min(_MAKE_S / max(step.make_s, 1e-9), _WINDOW_S / step.step_s)
    return min(num_envs, max(4, int(fast_enough)))


def decide(speeds: Mapping[str, Speed], refused: Mapping[str, str], workers: Mapping[str, int], costs: str) -> Choice:
    """The fastest, if it is faster than serial by `MIN_GAIN`.

    Args:
        speeds: what was measured, by name.
        refused: what could not be, and why.
        workers: the number of workers of each.
        costs: `describe`'s words.
    """
    missing = "".join(f"; {name} cannot: {why}" for name, why in refused.items())
    if "serial" not in speeds or len(speeds) == 1:
        return Choice("serial", f"nothing to compare{missing}")
    gains = {name: speed.ratio(speeds["serial"]) for name, speed in speeds.items() if name != "serial"}
    best = max(gains, key=lambda name: gains[name])
    if gains[best] < MIN_GAIN:
        short = f"{best} with {workers[best]} workers has {gains[best]:.2f} × its speed"
        return Choice("serial", f"{short} ({costs}){missing}")
    reason = f"{workers[best]} workers have {gains[best]:.2f} × the speed of serial ({costs}){missing}"
    return Choice(best, reason, {"num_workers": workers[best]})


def describe(step: StepCost, wake_s: float) -> str:
    """What the answer follows from, in words."""
    waiting = ", most of it waiting" if step.cpu_share < WAITS else ""
    return f"a step costs {duration(step.step_s)}{waiting}, a wake-up {duration(wake_s)}"


def duration(seconds: float) -> str:
    """`6.1 µs`, `350 µs`, `1.2 ms`, `2.5 s`."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.{1 if seconds < 1e-5 else 0}f} µs"


def _make(name: str, env_fns: Sequence[EnvFn], episode_seed: EpisodeSeed | None, workers: int) -> Vectorizer:
    options = {} if name == "serial" else {"num_workers": workers}
    make = registry.load("vectorizer", name)
    return make(env_fns, autoreset_mode=AutoresetMode.SAME_STEP, episode_seed=episode_seed, **options)
