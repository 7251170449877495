"""Run folders as `parl train` leaves them, written in a moment: for what only reads them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from parl_cli.metrics.jsonl import encode_row


def config(algo: str = "ppo", env: str = "cartpole", seed: int = 1, **changes: Any) -> dict[str, Any]:
    """A resolved config; `changes` by dotted key, with `__` for the dots."""
    values: dict[str, Any] = {
        "name": f"{algo}_{env}",
        "seed": seed,
        "device": "cpu",
        "total_steps": 1000,
        "num_envs": 4,
        "num_threads": 1,
        "plugins": [],
        "env": {
            "name": env,
            "adapter": "gymnasium",
            "id": env,
            "kwargs": {},
            "wrappers": [],
            "max_episode_steps": None,
        },
        "vectorizer": {"name": "serial"},
        "policy": {"name": "mlp", "hidden_sizes": [64, 64]},
        "actors": {"name": "inline"},
        "algo": {"name": algo, "num_steps": 25, "learning_rate": 0.001},
        "checkpoint": {"every_steps": 50_000, "keep": 2, "env": "replay"},
        "eval": {"every_steps": None, "episodes": 10},
        "logger": {"live": True, "plot": True, "every_steps": None},
    }
    for key, value in changes.items():
        *groups, last = key.split("__")
        part = values
        for group in groups:
            part = part[group]
        part[last] = value
    return values


def rows(returns: Sequence[float], every_steps: int = 100, steps_per_s: float = 1000.0) -> list[dict[str, float]]:
    """Metric rows whose mean return takes these values, one after each `every_steps` env steps."""
    return [
        {
            "env_steps": float(every_steps * n),
            "update": float(n),
            "time_s": every_steps * n / steps_per_s,
            "steps_per_s": steps_per_s,
            "episode/return_mean": float(value),
            "episode/return_std": 1.0,
            "episode/return_min": float(value) - 2,
            "episode/return_max": float(value) + 2,
            "episode/length_mean": 20.0,
            "episode/count": 10.0 * n,
            "time/env_share": 0.25,
            "time/learn_share": 0.5,
            "time/other_share": 0.25,
            "memory/rss_mb": 300.0,
        }
        for n, value in enumerate(returns, start=1)
    ]


def write_run(
    folder: Path,
    values: Mapping[str, Any] | None = None,
    metrics: Iterable[Mapping[str, float]] | None = None,
    status: str = "finished",
    started: str = "2026-01-02T03:04:05+0000",
    **info: Any,
) -> Path:
    """A run folder.

    Args:
        folder: made, with its parents.
        values: from `config`.
        metrics: from `rows`; None: ten rows of a return that rises to 10.
        status: what run.json says.
        started: when, in run.json.
        **info: what else it says.

    Returns:
        The folder.
    """
    values = config() if values is None else values
    metrics = rows(range(1, 11)) if metrics is None else list(metrics)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(values), sort_keys=False))
    (folder / "metrics.jsonl").write_bytes(b"".join(encode_row(dict(row)) for row in metrics))
    last = metrics[-1] if metrics else {}
    ended = {"env_steps": int(last.get("env_steps", 0)), "wall_s": last.get("time_s"), "reason": "budget"}
    (folder / "run.json").write_text(
        json.dumps({"status": status, "seed": values["seed"], "started": started} | ended | info)
    )
    return folder


def write_seeds(
    folder: Path, finals: Sequence[float], algo: str = "ppo", env: str = "cartpole", **changes: Any
) -> list[Path]:
    """One run per final return, with the seeds 1, 2, …, that rises to it in ten equal steps."""
    written = []
    for seed, final in enumerate(finals, start=1):
        values = config(algo, env, seed, **changes)
        returns = [final * n / 10 for n in range(1, 11)]
        written.append(write_run(folder / f"{algo}_{env}" / str(seed), values, rows(returns)))
    return written


def backdate(folder: Path, seconds: float) -> None:
    """Make it look as if nothing had been written there for so long."""
    import os

    then = time.time() - seconds
    for file in folder.iterdir():
        os.utime(file, (then, then))
