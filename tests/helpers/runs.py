"""Small runs in this process or another, stopped on purpose, and what must be equal between two of them."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parl_cli.algos.ppo import PPOConfig
from parl_cli.config import TrainConfig, to_plain
from parl_cli.experiment import Experiment
from parl_cli.metrics.jsonl import read_jsonl
from parl_cli.policies.actor_critic import ActorCriticConfig
from parl_cli.training import checkpoint
from parl_cli.training.run_dir import RunDir
from tests.helpers.cli import environment
from tests.helpers.forks import Fork
from tests.helpers.stubs import train_config

ROLLOUT = 64  # env steps of an update: 4 envs × 16 steps
CLI_TINY = (
    "num_envs=4",
    "algo.num_steps=16",
    "algo.num_epochs=2",
    "algo.num_minibatches=2",
    "algo.normalize_reward=true",
    "policy.hidden_sizes=[8]",
    "policy.normalize_obs=true",
    "logger=none",
    "tuned=null",
    "device=cpu",
)


def normalising_config(env_id: str = "CartPole-v1", updates: int = 16, **changes: Any) -> TrainConfig:
    """A small config in which everything that a checkpoint must hold is in use."""
    algo = PPOConfig(num_steps=16, num_minibatches=2, num_epochs=2, normalize_reward=True)
    policy = ActorCriticConfig(hidden_sizes=[8], normalize_obs=True)
    return train_config(env_id, **({"algo": algo, "policy": policy, "total_steps": updates * ROLLOUT} | changes))


def train(config: TrainConfig, folder: Path, stop_at: int | None = None) -> str:
    """Train in a new run folder; Ctrl-C comes during update `stop_at`. Why it ended."""
    with Experiment(config, RunDir.create(folder, to_plain(config), [])) as experiment:
        return experiment.train_until(config.total_steps, ctrl_c_at(stop_at))


def go_on(config: TrainConfig, folder: Path, stop_at: int | None = None, replay: bool = True) -> str:
    """Train on from the run's last checkpoint."""
    with Experiment(config, RunDir.open(str(folder))) as experiment:
        experiment.restore(checkpoint.load(checkpoint.last(folder)), replay=replay)
        return experiment.train_until(config.total_steps, ctrl_c_at(stop_at))


def ctrl_c_at(update: int | None) -> Callable[[dict[str, float]], None]:
    """A display that presses Ctrl-C when it is shown the row of `update`."""

    def display(row: dict[str, float]) -> None:
        if row["update"] == update:
            signal.raise_signal(signal.SIGINT)

    return display


def policy_hash(run: Path) -> str:
    """SHA-256 of the weights in the run's last checkpoint."""
    return hashlib.sha256((checkpoint.last(run) / "policy.safetensors").read_bytes()).hexdigest()


def steady_rows(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without what the clock and the machine write into them."""
    unsteady = ("time_s", "steps_per_s", "time/", "memory/")
    rows = read_jsonl(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(unsteady)} for row in rows]


def reseal(folder: Path) -> None:
    """Make a tampered checkpoint's manifest fit its files, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in checkpoint.FILES:
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(folder, manifest)


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the right digest of itself."""
    manifest.pop("sha256", None)
    manifest["sha256"] = checkpoint.manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file's values in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with its bytes: equal before and after means that nothing was written."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


class Parl:
    """A real `parl` process that is going to be stopped; a context manager that leaves none behind."""

    def __init__(self, *args: str, cwd: Path) -> None:
        self.process = Fork(args, cwd, environment(), own_session=True)

    def __enter__(self) -> Parl:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(30)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 150) -> None:
        """Wait until something holds; an error if the process ends before, or time is up."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"parl ended with {self.process.returncode}: {self.process.communicate(30)}")
            if time.monotonic() > deadline:
                raise AssertionError(f"nothing happened in {timeout_s} s")
            time.sleep(0.002)

    def wait_for_rows(self, run: Path, count: int) -> None:
        """Wait until metrics.jsonl has that many lines."""
        file = run / "metrics.jsonl"
        self.wait_for(lambda: file.exists() and file.read_bytes().count(b"\n") >= count)

    def end(self, timeout_s: float = 150) -> tuple[int, str, str]:
        """Exit code, stdout, stderr, once it has ended."""
        out, err = self.process.communicate(timeout_s)
        return self.process.returncode, out, err
