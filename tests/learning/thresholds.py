"""How many steps PPO and the Truly PPO family take to the paper's thresholds, beside the paper's own figures.

    python -m tests.learning.thresholds                    # everything below, 4 seeds
    python -m tests.learning.thresholds hopper --seeds 2

Each run is `parl train experiment=truly_ppo_paper env=… algo=… seed=… eval.every_steps=20480 eval.episodes=10`. A
threshold is reached *in training* at the first metrics row whose mean return over the last 100 training episodes is at
least it, and *evaluated* at the first evaluation, of ten deterministic episodes, whose mean is. A run is stopped once
it is reached in training: what comes after says nothing about it. One row per (env, algorithm, seed,
commit) is added to thresholds.csv; what is there is not run again (`--again`: unless it is of this commit).
THRESHOLDS.md is written anew from the newest row of each seed.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.learning.run import (
    HERE,
    append_row,
    commit,
    commits,
    is_there,
    newest_per_seed,
    over_seeds,
    parl,
    parse,
    read_rows,
)

ROWS = HERE / "thresholds.csv"
TABLE = HERE / "THRESHOLDS.md"
FIELDS = ["env", "algo", "seed", "commit", "steps_to_threshold", "evaluated", "final_return", "best_return", "steps"]
EVALUATION = ["eval.every_steps=20480", "eval.episodes=10"]
NEVER = "never"  # of what was measured, and did not come within the budget
ALGOS = ["ppo", "ppo_rb", "tr_ppo", "tr_ppo_rb", "truly_ppo"]
THRESHOLDS = {"hopper": 3000, "half_cheetah": 2100, "swimmer": 70}
# thousands of steps, from the paper's table for PPO, PPO-RB, TR-PPO and TR-PPO-RB (–: not reached in 1M)
PAPER = {
    "hopper": ["273", "179", "153", "130", "no figure"],
    "half_cheetah": ["–", "374", "227", "266", "no figure"],
    "swimmer": ["721", "359", "221", "318", "no figure"],
}
SEEDS = 4  # an ordering of the algorithms is asked over so many
EXTRA = {"half_cheetah": ["policy.log_std_init=-1.34"]}


def run(env: str, algo: str, seed: int) -> dict[str, Any]:
    """Train one seed and return its row."""
    measured = commit()  # before training: what is committed meanwhile did not train
    threshold = THRESHOLDS[env]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        metrics = folder / "run" / "metrics.jsonl"

        def reached(key: str = "episode/return_mean") -> list[int]:
            return [steps for steps, value in read_curve(metrics, key) if value >= threshold]

        choice = [f"env={env}", f"algo={algo}", f"seed={seed}", *EXTRA.get(env, ()), *EVALUATION]
        parl(
            *("train", "experiment=truly_ppo_paper", *choice, f"hydra.run.dir={folder / 'run'}"),
            cwd=folder,
            until=lambda: bool(reached()),
        )
        trained, evaluated = reached(), reached("eval/return_mean")
        curve = read_curve(metrics)
    return {
        "env": env,
        "algo": algo,
        "seed": seed,
        "commit": measured,
        "steps_to_threshold": trained[0] if trained else NEVER,
        "evaluated": evaluated[0] if evaluated else NEVER,
        "final_return": round(curve[-1][1], 1),
        "best_return": round(max(value for _, value in curve), 1),
        "steps": curve[-1][0],
    }


def read_curve(path: Path, key: str = "episode/return_mean") -> list[tuple[int, float]]:
    """(env steps, value) of every metrics row that has it: the mean return of the last 100 training episodes."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(int(row["env_steps"]), float(row[key])) for row in rows if key in row]


def write_table() -> None:
    """Write THRESHOLDS.md."""
    TABLE.write_text(table(read_rows(ROWS)), encoding="utf-8")


def table(rows: list[dict[str, str]]) -> str:
    """THRESHOLDS.md: the median over seeds of the steps to the threshold, in training and evaluated."""
    lines = [
        "# Steps to a threshold: PPO and the Truly PPO family",
        "",
        "Written by `python -m tests.learning.thresholds` from thresholds.csv. Thousands of env steps until the "
        "paper's threshold was reached, median over seeds; a seed that did not within 1M counts as later than all "
        "others, and – is a median that was not reached. *In training*: by the mean of the last 100 training episodes, "
        "as in the logs of most libraries. *Evaluated*: by the mean of ten deterministic episodes, every 20,480 steps; "
        "seeds of earlier commits were not evaluated. Which of them the paper's figures are is not known to us.",
        "",
        _what_is_there(rows),
        "",
        "| env | threshold | algorithm | in training (k) | reached | evaluated (k) | reached | paper (k) "
        "| best training mean | commits |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for env, threshold in THRESHOLDS.items():
        for algo, paper in zip(ALGOS, PAPER[env], strict=True):
            own = _newest(rows, env, algo)
            if own:
                lines.append(f"| {env} | {threshold} | `{algo}` | {_summary(own, paper)} |")
    return "\n".join(lines) + "\n"


def _newest(rows: list[dict[str, str]], env: str, algo: str) -> list[dict[str, str]]:
    return newest_per_seed(row for row in rows if (row["env"], row["algo"]) == (env, algo))


def _what_is_there(rows: list[dict[str, str]]) -> str:
    """Which of the planned seeds have a row, and what that is worth."""
    count, parts = 0, []
    for env in THRESHOLDS:
        seeds = {algo: [int(row["seed"]) for row in _newest(rows, env, algo)] for algo in ALGOS}
        count += sum(seed <= SEEDS for own in seeds.values() for seed in own)
        there = [f"`{algo}` {', '.join(map(str, own))}" for algo, own in seeds.items() if own]
        parts.append(f"{env} ({'; '.join(there) or 'none'})")
    planned = f"{len(THRESHOLDS)} envs × {len(ALGOS)} algorithms × {SEEDS} seeds"
    return (
        f"Planned: {planned}, {len(THRESHOLDS) * len(ALGOS) * SEEDS} runs. There: {count}, by env, algorithm and seed: "
        f"{', '.join(parts)}. Fewer than {SEEDS} seeds prove nothing about an ordering of the algorithms."
    )


def _summary(own: list[dict[str, str]], paper: str) -> str:
    best = [float(row["best_return"]) for row in own]
    cells = [*_steps(own, "steps_to_threshold"), *_steps(own, "evaluated"), paper, over_seeds(best, interval=False)]
    return " | ".join([*cells, commits(own)])


def _steps(own: list[dict[str, str]], key: str) -> list[str]:
    """The median in thousands, and how many seeds of those that were measured reached it."""
    measured = [math.inf if row[key] == NEVER else float(row[key]) for row in own if row[key]]
    if not measured:
        return ["", "not measured"]
    median = statistics.median(measured)
    count = sum(map(math.isfinite, measured))
    return [f"{median / 1000:.0f}" if math.isfinite(median) else "–", f"{count} of {len(measured)}"]


def main() -> None:
    """Run what is asked for and not yet there, seed by seed, so that a stopped command leaves whole comparisons."""
    arguments = parse(__doc__, "envs", list(THRESHOLDS), SEEDS)
    for seed in range(1, arguments.seeds + 1):
        for env in arguments.envs:
            for algo in ALGOS:
                if is_there(read_rows(ROWS), arguments.again, env=env, algo=algo, seed=seed):
                    continue
                row = run(env, algo, seed)
                append_row(ROWS, FIELDS, row)
                write_table()
                print(f"{env} {algo} seed {seed}: {row['steps_to_threshold']}", flush=True)
    write_table()


if __name__ == "__main__":
    main()
