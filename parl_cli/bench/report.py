"""What was measured, and who wins."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from parl_cli import __version__, build
from parl_cli.bench.candidates import Candidate
from parl_cli.bench.parts import Parts
from parl_cli.config import BenchCommand, TrainConfig, to_plain
from parl_cli.types import Metrics
from parl_cli.vectorizers.calls import available_cores
from parl_cli.vectorizers.speed import Speed, StepCost

MIN_GAIN = 1.05  # faster by less is no reason to prefer what is less simple
MIN_GAIN_OF_FEW = 1.2  # the same where updates are so slow that one or two rounds must do


@dataclass
class Result:
    """What one candidate did."""

    candidate: Candidate
    env_only: Speed
    end_to_end: Speed = field(default_factory=Speed)
    shares: Metrics = field(default_factory=dict)  # of the time end to end, as in metrics.jsonl: time/…, actors/…

    def to_plain(self) -> dict[str, Any]:
        """As in bench.json."""
        shares, actors = _shares_of("time", self.shares), _shares_of("actors", self.shares)
        measured = bool(self.end_to_end.steps_per_s)
        return {
            "label": str(self.candidate),
            "vectorizer": self.candidate.name,
            **self.candidate.options,
            "num_envs": self.candidate.config.num_envs,
            "env_only": self.env_only.summary(),
            "end_to_end": self.end_to_end.summary() | {"shares": shares, "actors": actors} if measured else None,
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
    core_share: float  # of a core, how much this process got while it asked for all of it
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
            {
                "num_envs": n,
                "act_us": 1e6 * p.act_s,
                "learn_us": 1e6 * p.learn_s,
                "act_cpu_us": 1e6 * p.act_cpu_s,
                "learn_cpu_us": 1e6 * p.learn_cpu_s,
                "update_steps": p.update_steps,
            }
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
            "core_share": self.core_share,
            "cpu_of_children_counted": self.counts_children,
            "parts": parts,
            "vectorizers": [result.to_plain() for result in self.results],
            "refused": self.refused,
            "winner": self.winner.to_plain(),
            "config": to_plain(self.config),
        }


def _shares_of(role: str, metrics: Metrics) -> dict[str, float]:
    pairs = ((name.removesuffix("_share"), share) for name, share in metrics.items() if name.endswith("_share"))
    return {name.removeprefix(f"{role}/"): share for name, share in pairs if name.startswith(f"{role}/")}


def beats(speed: Speed, other: Speed) -> bool:
    """Whether it is clearly faster: by `MIN_GAIN` in the median, and faster in four rounds of five."""
    rounds = list(zip(speed.steps_per_s, other.steps_per_s, strict=True))
    won = sum(mine > its for mine, its in rounds)
    needed = MIN_GAIN if len(rounds) >= 3 else MIN_GAIN_OF_FEW
    return speed.ratio(other) >= needed and won >= 0.8 * len(rounds)


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
