"""How many steps PPO and the Truly PPO family take to the paper's thresholds, beside the paper's own figures.

    python -m tests.learning.thresholds                    # everything below, 4 seeds
    python -m tests.learning.thresholds hopper --seeds 2

Each run is `parl train experiment=truly_ppo_paper env=… algo=… seed=…`. A threshold counts as reached at the first
metrics row whose mean return over the last 100 training episodes is at least it. One row per (env, algorithm, seed,
commit) is added to thresholds.csv; what is there is not run again (`--again`: unless it is of this commit).
THRESHOLDS.md is written anew from the newest row of each seed.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterable
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
FIELDS = ["env", "algo", "seed", "commit", "steps_to_threshold", "final_return", "best_return", "steps"]
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        choice = [f"env={env}", f"algo={algo}", f"seed={seed}", *EXTRA.get(env, ())]
        parl("train", "experiment=truly_ppo_paper", *choice, f"hydra.run.dir={folder / 'run'}", cwd=folder)
        curve = list(read_curve(folder / "run" / "metrics.jsonl"))
    reached = [steps for steps, value in curve if value >= THRESHOLDS[env]]
    return {
        "env": env,
        "algo": algo,
        "seed": seed,
        "commit": measured,
        "steps_to_threshold": reached[0] if reached else "",
        "final_return": round(curve[-1][1], 1),
        "best_return": round(max(value for _, value in curve), 1),
        "steps": curve[-1][0],
    }


def read_curve(path: Path) -> Iterable[tuple[int, float]]:
    """(env steps, mean return of the last 100 training episodes) of every row that has one."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "episode/return_mean" in row:
            yield int(row["env_steps"]), float(row["episode/return_mean"])


def write_table() -> None:
    """Write THRESHOLDS.md."""
    TABLE.write_text(table(read_rows(ROWS)), encoding="utf-8")


def table(rows: list[dict[str, str]]) -> str:
    """THRESHOLDS.md: the median over seeds of the steps to the threshold, and the final return."""
    lines = [
        "# Steps to a threshold: PPO and the Truly PPO family",
        "",
        "Written by `python -m tests.learning.thresholds` from thresholds.csv. Median over seeds of the thousands of "
        "env steps until the mean of the last 100 training episodes reached the paper's threshold (a seed that did not "
        "within 1M counts as later than all others), the seeds that did, and the mean ± standard deviation of the same "
        "return at the end.",
        "",
        _what_is_there(rows),
        "",
        "| env | threshold | algorithm | steps (k), ours | reached | steps (k), paper | final return | commits |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
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
    steps = [int(row["steps_to_threshold"] or 2**62) for row in own]
    median = statistics.median(steps)
    final = [float(row["final_return"]) for row in own]
    cells = [
        f"{median / 1000:.0f}" if median < 2**61 else "–",
        f"{sum(s < 2**62 for s in steps)} of {len(steps)}",
        paper,
        over_seeds(final, interval=False),
        commits(own),
    ]
    return " | ".join(cells)


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
                print(f"{env} {algo} seed {seed}: {row['steps_to_threshold'] or 'not reached'}", flush=True)
    write_table()


if __name__ == "__main__":
    main()
