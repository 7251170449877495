"""`parl train algo=appo env=cartpole` beside Sample Factory on the same work, end to end, in interleaved rounds.

    python tests/benchmarks/asynchronous.py [--steps 300000] [--rounds 3] [--num-steps 32] [--install]

CartPole-v1 as a Python env, 32 of them, two 64×64 tanh networks, rollouts of `--num-steps` steps, 4 epochs of 4
minibatches; Sample Factory (Petrenko et al. 2020, arXiv:2006.11751) asynchronous with one rollout worker and double
buffering, the fastest of the ways tried in one run each. Steps/s are of the steady state: env steps learned from after
the first quarter of the budget, over the time between. Wall time is the whole command. The return is the mean of the
last 100 training episodes. Nothing is asserted.

Sample Factory is looked for in the Python of `--peer`. `--install` makes a virtual environment for it in a temporary
folder, because it needs an older Gymnasium than parl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PEER = ("sample-factory==2.1.1", "gymnasium<1.0", "numpy<2", "torch>=2.6,<2.14")
WORK = {"num_envs": 32, "epochs": 4, "minibatches": 4}

# Run by the peer's Python: what the learner has done, and the mean return, whenever it says so.
PEER_SCRIPT = """
import json, sys, time
import gymnasium, numpy
from sample_factory.algo.utils.misc import LEARNER_ENV_STEPS
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner

def make(name, cfg=None, env_config=None, render_mode=None):
    return gymnasium.make("CartPole-v1")

def note(runner, message, policy):
    returns = runner.policy_avg_stats.get("reward", [[]])[0]
    rows.append((time.time(), message[LEARNER_ENV_STEPS], float(numpy.mean(returns)) if len(returns) else None))

if __name__ == "__main__":
    rows, out = [], sys.argv.pop(1)
    register_env("cartpole", make)
    parser, _ = parse_sf_args(sys.argv[1:])
    _, runner = make_runner(parse_full_cfg(parser, sys.argv[1:]))
    runner.policy_msg_handlers[LEARNER_ENV_STEPS].append(note)
    status = runner.init() or runner.run()
    json.dump(rows, open(out, "w"))
    sys.exit(int(status))
"""


@dataclass(frozen=True)
class Run:
    """What one training did."""

    steps_per_s: float  # of the steady state
    wall_s: float
    mean_return: float


def steady(rows: list[tuple[float, int, float]], wall_s: float) -> Run:
    """A run from (seconds, env steps, mean return) of its updates."""
    begin = next(row for row in rows if row[1] >= rows[-1][1] / 4)
    return Run((rows[-1][1] - begin[1]) / (rows[-1][0] - begin[0]), wall_s, rows[-1][2])


def parl(folder: Path, overrides: Sequence[str]) -> Run:
    """Train with what this Python has of parl."""
    wall_s = timed([sys.executable, "-m", "parl_cli", "train", *overrides, "hydra.run.dir=run"], folder)
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    kept = [
        (row["time_s"], row["env_steps"], row["episode/return_mean"]) for row in rows if "episode/return_mean" in row
    ]
    return steady(kept, wall_s)


def same_work(steps: int, num_steps: int, seed: int) -> list[str]:
    """The job of parl that Sample Factory is given too."""
    return [
        *("algo=appo", "env=cartpole", f"total_steps={steps}", f"seed={seed}", f"num_envs={WORK['num_envs']}"),
        *(f"algo.num_steps={num_steps}", f"algo.num_epochs={WORK['epochs']}"),
        f"algo.num_minibatches={WORK['minibatches']}",
    ]


def sample_factory(python: str, folder: Path, steps: int, num_steps: int, seed: int) -> Run:
    """Train with the peer, with the learning rate, discount and clips of parl's preset where it has them."""
    (folder / "peer.py").write_text(textwrap.dedent(PEER_SCRIPT), encoding="utf-8")
    batch = WORK["num_envs"] * num_steps // WORK["minibatches"]
    command = [python, "peer.py", "rows.json", "--env=cartpole", "--experiment=run", "--train_dir=out", "--device=cpu"]
    command += [f"--train_for_env_steps={steps}", f"--rollout={num_steps}", f"--batch_size={batch}", f"--seed={seed}"]
    command += [f"--num_batches_per_epoch={WORK['minibatches']}", f"--num_epochs={WORK['epochs']}"]
    command += ["--async_rl=True", "--num_workers=1", f"--num_envs_per_worker={WORK['num_envs']}"]
    command += ["--worker_num_splits=2", "--use_rnn=False", "--nonlinearity=tanh", "--shuffle_minibatches=True"]
    command += ["--actor_critic_share_weights=False", "--normalize_input=False", "--normalize_returns=False"]
    command += ["--learning_rate=1e-3", "--gamma=0.98", "--ppo_clip_ratio=0.2", "--max_grad_norm=0.5"]
    command += ["--exploration_loss_coeff=0.0", "--encoder_mlp_layers", "64", "64"]
    wall_s = timed(command, folder)
    return steady(json.loads((folder / "rows.json").read_text(encoding="utf-8")), wall_s)


def timed(command: list[str], folder: Path) -> float:
    """Seconds that a command takes; RuntimeError with what it said where it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return time.perf_counter() - began


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300_000, help="env steps of a run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--num-steps", type=int, default=32, help="T of a rollout (default: %(default)s, the preset's)")
    parser.add_argument("--peer", metavar="PYTHON", help="Python that has Sample Factory")
    parser.add_argument("--install", action="store_true", help="make one")
    parser.add_argument("overrides", nargs="*", help="of parl's job")
    options = parser.parse_intermixed_args()
    if options.install == (options.peer is not None):
        parser.error("give one of --peer PYTHON and --install")
    with tempfile.TemporaryDirectory(prefix="parl-benchmark-") as name:
        python = options.peer or install(Path(name) / "venv")
        ways: dict[str, Callable[[Path, int], Run]] = {
            "parl": lambda folder, seed: parl(
                folder, [*same_work(options.steps, options.num_steps, seed), *options.overrides]
            ),
            "Sample Factory": lambda folder, seed: sample_factory(
                python, folder, options.steps, options.num_steps, seed
            ),
        }
        runs: dict[str, list[Run]] = {way: [] for way in ways}
        for number in range(options.rounds):
            for way, train in ways.items():
                folder = Path(name) / f"{way}-{number}"
                folder.mkdir()
                runs[way].append(train(folder, number + 1))
    print(table(runs))
    return 0


def table(runs: dict[str, list[Run]]) -> str:
    """Medians over rounds, and the median of the rounds' ratios."""
    lines = ["| what | steps/s | wall time | return, by round |", "| --- | --- | --- | --- |"]
    for way, each in runs.items():
        rate, wall = (statistics.median(getattr(run, name) for run in each) for name in ("steps_per_s", "wall_s"))
        returns = ", ".join(f"{run.mean_return:.0f}" for run in each)
        lines.append(f"| {way} | {rate:,.0f} | {wall:.1f} s | {returns} |")
    ours, theirs = runs.values()
    ratio = statistics.median(a.steps_per_s / b.steps_per_s for a, b in zip(ours, theirs, strict=True))
    return "\n".join([*lines, "", f"ratio: {ratio:.2f}; asked: at least 4"])


def install(folder: Path) -> str:
    """A Python with Sample Factory in a new virtual environment."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEER]
    subprocess.run(command, check=True)
    return python


if __name__ == "__main__":
    sys.exit(main())
