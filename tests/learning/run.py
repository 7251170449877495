"""Train env × algorithm × seed from the command line's defaults, evaluate, and keep a table of what came out.

    python tests/learning/run.py                      # everything listed in TARGETS
    python tests/learning/run.py ppo/pendulum --seeds 3

Each seed is `parl train algo=… env=… seed=…`, with nothing else typed, then `parl eval` of its last checkpoint over
100 deterministic episodes. `random/…` tasks play 100 episodes of random actions, for comparison. One row per (env,
algorithm, seed, commit) is added to results.csv; seeds that have a row are not run again (`--again`: unless it is of
this commit), so the command can be stopped and repeated. RESULTS.md is written anew from the newest row of each seed.
What `thresholds` and `lag` share with it stands at the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROWS = HERE / "results.csv"
TABLE = HERE / "RESULTS.md"
FIELDS = ["task", "seed", "commit", "return", "return_std", "steps", "wall_s", "steps_per_s", "machine"]


@dataclass(frozen=True)
class Target:
    """What is asked of a task, and what the anchors of the field published for it."""

    seeds: int
    asked: float | None  # None: no figure
    published: str
    of: str = "mean"  # which figure of the seeds it is asked of: see FIGURES

    def reached(self, returns: list[float]) -> bool:
        """Whether the seeds' returns come to what is asked."""
        return self.asked is None or FIGURES[self.of](returns) >= self.asked

    def __str__(self) -> str:
        """The table's cell."""
        if self.asked is None:
            return "–"
        return f"{self.asked:g}" if self.of == "mean" else f"{self.asked:g} ({self.of} of {self.seeds})"


FIGURES: dict[str, Callable[[list[float]], float]] = {"mean": statistics.mean, "median": statistics.median, "each": min}
TARGETS = {
    "ppo/cartpole": Target(5, 475, "500 (RL Zoo PPO, 100k)", of="each"),
    "ppo/acrobot": Target(3, -82, "−73.5 (RL Zoo PPO, 1M), −86.4 (CleanRL PPO, 500k)"),
    "ppo/pendulum": Target(3, -175, "−172.2 (RL Zoo PPO, 100k)"),
    "ppo/mountain_car": Target(5, -115, "−110.4 (RL Zoo PPO, 1M), −200 (CleanRL PPO, 500k)", of="median"),
    "ppo/mountain_car_continuous": Target(3, 88, "88.3 (RL Zoo PPO, 20k)"),
    "ppo/lunar_lander": Target(3, 240, "242.1 (RL Zoo PPO, 1M)"),
    "ppo/half_cheetah": Target(3, 4500, "5784 (Tianshou PPO), 5819 (RL Zoo PPO), 1443 (CleanRL PPO), all 1M"),
    "ppo/walker2d": Target(3, 3300, "3589 (Tianshou PPO, 1M)"),
    "ppo/hopper": Target(3, 2500, "2609 (Tianshou PPO, 1M)"),
    "ppo/swimmer": Target(3, 110, "281.6 (RL Zoo PPO, 1M)"),
    "ppo/inverted_double_pendulum": Target(3, 9000, "9231 (Tianshou PPO, 1M)"),
    "ppo/inverted_pendulum": Target(3, None, "1000 (Tianshou PPO, 1M)"),
    "ppo/lunar_lander_continuous": Target(3, None, "270.9 (RL Zoo PPO, 1M)"),
    "ppo/pusher": Target(3, None, "no figure"),
    "random/pusher": Target(1, None, "no figure"),
    "ppo/humanoid": Target(3, None, "787 (Tianshou PPO, 1M)"),
    "random/humanoid": Target(1, None, "no figure"),
    "ppo/bipedal_walker": Target(3, 280, "287.9 (RL Zoo PPO, 5M)"),
    "truly_ppo/cartpole": Target(5, None, "no figure"),
    "truly_ppo/lunar_lander": Target(3, None, "no figure"),
    "appo/cartpole": Target(5, 475, "no figure", of="each"),
    "impala/cartpole": Target(5, 475, "no figure", of="each"),
    "a2c/cartpole": Target(5, 475, "500 (RL Zoo A2C, 500k)", of="each"),
    "a3c/cartpole": Target(5, None, "no figure"),
    "appo/lunar_lander": Target(3, 200, "no figure"),
    "impala/lunar_lander": Target(3, 200, "no figure"),
}


def train_and_evaluate(task: str, seed: int, folder: Path) -> dict[str, Any]:
    """Run one seed in `folder` and return its row."""
    algo, env = task.split("/")
    if algo == "random":
        return play_randomly(task, env, seed)
    run = folder / "run"
    measured = commit()  # before training: what is committed meanwhile did not train
    started = time.perf_counter()
    parl("train", f"algo={algo}", f"env={env}", f"seed={seed}", f"hydra.run.dir={run}", cwd=folder)
    wall_s = time.perf_counter() - started
    parl("eval", f"checkpoint={run}", f"output={folder / 'eval'}", cwd=folder)
    report = json.loads((folder / "eval" / "eval.json").read_text())
    info = json.loads((run / "run.json").read_text())
    returns = report["mean_return"], report["std_return"]
    return make_row(task, seed, measured, returns, info["env_steps"], wall_s, info["env_steps"] / info["wall_s"])


def play_randomly(task: str, name: str, seed: int) -> dict[str, Any]:
    """The row of 100 episodes of random actions."""
    from parl_cli import Experiment
    from parl_cli.envs.factory import EnvFactory

    measured = commit()
    with Experiment.compose([f"env={name}"]) as experiment:
        env = EnvFactory(experiment.config.env)()
    env.action_space.seed(seed)
    returns, steps, started = [], 0, time.perf_counter()
    for episode in range(100):
        env.reset(seed=seed if episode == 0 else None)
        returns.append(0.0)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            returns[-1] += float(reward)
            steps += 1
            over = terminated or truncated
    env.close()
    wall_s = time.perf_counter() - started
    spread = statistics.mean(returns), statistics.stdev(returns)
    return make_row(task, seed, measured, spread, steps, wall_s, steps / wall_s)


def make_row(
    task: str, seed: int, measured: str, returns: tuple[float, float], steps: int, wall_s: float, steps_per_s: float
) -> dict[str, Any]:
    """A row of results.csv; `measured` is the commit, `returns` are their mean and deviation over episodes."""
    return {
        "task": task,
        "seed": seed,
        "commit": measured,
        "return": round(returns[0], 2),
        "return_std": round(returns[1], 2),
        "steps": steps,
        "wall_s": round(wall_s, 1),
        "steps_per_s": round(steps_per_s),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }


def write_table() -> None:
    """Write RESULTS.md."""
    TABLE.write_text(table(read_rows(ROWS)), encoding="utf-8")


def table(rows: list[dict[str, str]]) -> str:
    """RESULTS.md: a line per task, from the newest row of each seed."""
    lines = [
        "# Learning results",
        "",
        "Written by `python tests/learning/run.py` from results.csv. Each seed: `parl train algo=… env=… seed=…`, "
        "nothing else typed, then 100 deterministic episodes of the last checkpoint. `random/…` was not trained: 100 "
        "episodes of random actions, with their steps and time. ± is the standard deviation over seeds, [ ] the "
        "bootstrapped 95 % interval of the mean; one seed has neither.",
        "",
        "Asked: what the mean over seeds must reach, or their median, or each of them; –: no figure (Pusher and "
        "Humanoid must be clearly better than random, `truly_ppo` as good as `ppo`, `a3c` must learn). Seeds: how many "
        "were run of how many are asked; fewer show nothing about a figure yet.",
        "",
        "| task | return | asked | seeds | per seed | env steps | wall time | steps/s | published | commit | machine |",
        f"|{' --- |' * 11}",
    ]
    for task, target in TARGETS.items():
        newest = newest_per_seed(row for row in rows if row["task"] == task)
        count = f"{len(newest)} of {target.seeds}"
        if not newest:
            lines.append(f"| `{task}` | – | {target} | {count} | – | – | – | – | {target.published} | – | – |")
            continue
        returns = [float(row["return"]) for row in newest]
        wall = statistics.mean(float(row["wall_s"]) for row in newest)
        speed = statistics.mean(float(row["steps_per_s"]) for row in newest)
        lines.append(
            f"| `{task}` | {over_seeds(returns, digits=1)} | {target} | {count} | "
            f"{', '.join(f'{r:.1f}' for r in returns)} | {int(newest[0]['steps']):,} | {wall:.0f} s | "
            f"{speed / 1000:.1f}k | {target.published} | {commits(newest)} | {newest[0]['machine']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is asked for and not yet there."""
    arguments = parse(__doc__, "tasks", list(TARGETS))
    for task in arguments.tasks:
        for seed in range(1, (arguments.seeds or TARGETS[task].seeds) + 1):
            if is_there(read_rows(ROWS), arguments.again, task=task, seed=seed):
                continue
            with tempfile.TemporaryDirectory() as folder:
                row = train_and_evaluate(task, seed, Path(folder))
            append_row(ROWS, FIELDS, row)
            write_table()
            print(f"{task} seed {seed}: {row['return']} ± {row['return_std']} in {row['wall_s']} s", flush=True)
    write_table()


def parse(doc: str | None, kind: str, listed: list[str], seeds: int | None = None) -> argparse.Namespace:
    """The command line of a table: names out of `listed`, `--seeds` (default: `seeds`, None: as listed), `--again`."""

    def one(name: str) -> str:
        if name not in listed:
            raise argparse.ArgumentTypeError(f"{name} is not listed; choose from {', '.join(listed)}")
        return name

    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text}: a number of seeds is a whole number from 1")
        return int(text)

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(kind, nargs="*", type=one, default=listed, help="default: all that are listed")
    parser.add_argument("--seeds", type=count, default=seeds, help=f"seeds 1…N; default: {seeds or 'as listed'}")
    parser.add_argument("--again", action="store_true", help="also run seeds that only other commits have a row of")
    return parser.parse_args()


def commit() -> str:
    """The commit being measured; `+` where the package or its configs differ from it."""
    root = HERE.parent.parent
    sha = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    dirty = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "parl_cli", "conf"], cwd=root, check=False)
    return sha.stdout.strip() + ("+" if dirty.returncode else "")


def read_rows(path: Path) -> list[dict[str, str]]:
    """All rows of a CSV file so far."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, fields: list[str], row: dict[str, Any]) -> None:
    """Append a row to a CSV file, the header first where the file is new."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerow(row)


def newest_per_seed(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Of the rows of one setting, in the order they were added, the last of each seed; by seed."""
    return [row for _, row in sorted({int(row["seed"]): row for row in rows}.items())]


def is_there(rows: list[dict[str, str]], again: bool, **setting: Any) -> bool:
    """Whether a row of such a setting and seed is there; with `again`, one of this commit."""
    wanted = {key: str(value) for key, value in setting.items()} | ({"commit": commit()} if again else {})
    return any(wanted.items() <= row.items() for row in rows)


def commits(rows: list[dict[str, str]]) -> str:
    """The commits that rows are of, in their order."""
    return ", ".join(dict.fromkeys(row["commit"] for row in rows))


def over_seeds(values: list[float], digits: int = 0, deviation: bool = True, interval: bool = True) -> str:
    """The mean of a value per seed ± its standard deviation [bootstrapped 95 % interval]; of one seed, the value."""
    from parl_cli.training.evaluate import bootstrap_interval

    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return f"{text} (1 seed)"
    if deviation:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    if interval:
        low, high = bootstrap_interval(values)
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def parl(*arguments: str, cwd: Path, until: Callable[[], bool] | None = None) -> None:
    """Run a command in `cwd`, to its end or until something is so; RuntimeError with its output where it fails."""
    command = [sys.executable, "-m", "parl_cli", *arguments]
    ends = time.monotonic() + 4 * 3600
    stopped = False
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.returncode is None:
                try:
                    out, err = process.communicate(timeout=5)
                except subprocess.TimeoutExpired:
                    if time.monotonic() > ends:
                        raise
                    if until is not None and not stopped and until():
                        process.send_signal(signal.SIGINT)  # once: the second one would not let it finish
                        stopped = True
        except BaseException:
            process.kill()
            raise
    if process.returncode and not stopped:
        raise RuntimeError(f"parl {' '.join(arguments)} ended with {process.returncode}:\n{out}\n{err}")


if __name__ == "__main__":
    main()
