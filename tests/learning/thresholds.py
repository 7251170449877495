"""How many steps PPO and the Truly PPO family take to the paper's thresholds, beside the paper's own figures.

    python -m tests.learning.thresholds                    # everything below, 4 seeds
    python -m tests.learning.thresholds hopper --seeds 2

Each run is `parl train experiment=truly_ppo_paper env=… algo=… seed=… eval.every_steps=2048 eval.episodes=1`: one
deterministic episode after every update, as in the authors' code (github.com/wangyuhuix/TrulyPPO). The threshold counts
as reached by the first such episode whose return is at least it, and, which takes less luck, by the first ten in a row
whose mean is; there a run is stopped. Before, runs went to their end without evaluations, and a threshold was reached
by the mean of the last 100 training episodes; those rows count in a column of their own.

One row per (env, algorithm, seed, commit) is added to thresholds.csv; what is there, evaluated, is not run again
(`--again`: unless it is of this commit). THRESHOLDS.md is written anew from the newest row of each seed.
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
    parl,
    parse,
    read_rows,
)

ROWS = HERE / "thresholds.csv"
TABLE = HERE / "THRESHOLDS.md"
FIELDS = ["env", "algo", "seed", "commit", "one", "ten", "training", "best_return", "steps"]
MEASURES = {"one": "one evaluation", "ten": "ten evaluations", "training": "100 training episodes"}
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
EXTRA = {
    "half_cheetah": ["policy.log_std_init=-1.34"],
    # the authors' layout, a whole episode per env and rollout. The recipe's 16 × 128 are slices of an episode in which
    # all envs have one phase: nobody came beyond 50 in 1M steps, and PPO with gamma 0.9999 not beyond 59 (seed 1)
    "swimmer": ["num_envs=2", "algo.num_steps=1024"],
}


def run(env: str, algo: str, seed: int) -> dict[str, Any]:
    """Train one seed and return its row."""
    measured = commit()  # before training: what is committed meanwhile did not train
    threshold = THRESHOLDS[env]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        metrics = folder / "run" / "metrics.jsonl"
        choice = [f"env={env}", f"algo={algo}", f"seed={seed}", *EXTRA.get(env, ())]
        parl(
            *("train", "experiment=truly_ppo_paper", *choice, "eval.every_steps=2048", "eval.episodes=1"),
            f"hydra.run.dir={folder / 'run'}",
            cwd=folder,
            until=lambda: first(read_curve(metrics), threshold, 10) != NEVER,
        )
        curve = read_curve(metrics)
    return {
        "env": env,
        "algo": algo,
        "seed": seed,
        "commit": measured,
        "one": first(curve, threshold, 1),
        "ten": first(curve, threshold, 10),
        "training": "",
        "best_return": round(max(value for _, value in curve), 1),
        "steps": curve[-1][0],
    }


def first(curve: list[tuple[int, float]], threshold: float, count: int) -> int | str:
    """Env steps when the mean of so many values in a row was the first to reach the threshold."""
    for last in range(count, len(curve) + 1):
        if statistics.fmean(value for _, value in curve[last - count : last]) >= threshold:
            return curve[last - 1][0]
    return NEVER


def read_curve(path: Path) -> list[tuple[int, float]]:
    """(env steps, return) of every evaluation."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [(int(row["env_steps"]), float(row["eval/return_mean"])) for row in rows if "eval/return_mean" in row]


def evaluated(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without the rows that only say when a threshold was reached in training."""
    return [row for row in rows if row["one"]]


def write_table() -> None:
    """Write THRESHOLDS.md."""
    TABLE.write_text(table(read_rows(ROWS)), encoding="utf-8")


def table(rows: list[dict[str, str]]) -> str:
    """THRESHOLDS.md: the median over seeds of the steps to the threshold, by each measure."""
    lines = [
        "# Steps to a threshold: PPO and the Truly PPO family",
        "",
        "Written by `python -m tests.learning.thresholds` from thresholds.csv. Thousands of env steps until the "
        "paper's threshold was reached, median over seeds, and how many seeds of those measured reached it within 1M "
        "steps; one that did not counts as later than all others, and – is a median that was not reached. *One "
        "evaluation*: the first deterministic episode, one after every update, that reached it, which is what the "
        "authors' code logs. *Ten evaluations*: the first ten in a row whose mean did; there the run is stopped. *100 "
        "training episodes*: earlier runs, by the mean of the last 100, with exploration. All by "
        f"`experiment=truly_ppo_paper`; {_extras()} (in the earlier runs without).",
        "",
        _what_is_there(evaluated(rows)),
        "",
        f"| env | threshold | algorithm | {' | '.join(f'{m} (k) | reached' for m in MEASURES.values())} | paper (k) "
        "| commits |",
        f"| {' | '.join(['---'] * (3 + 2 * len(MEASURES) + 2))} |",
    ]
    for env, threshold in THRESHOLDS.items():
        for algo, paper in zip(ALGOS, PAPER[env], strict=True):
            own = [row for row in rows if (row["env"], row["algo"]) == (env, algo)]
            if own:
                cells = [cell for measure in MEASURES for cell in _steps(own, measure)]
                used = commits(newest_per_seed(own))
                lines.append(f"| {env} | {threshold} | `{algo}` | {' | '.join(cells)} | {paper} | {used} |")
    return "\n".join(lines) + "\n"


def _extras() -> str:
    return ", ".join(f"{env} with `{' '.join(extra)}`" for env, extra in EXTRA.items())


def _what_is_there(rows: list[dict[str, str]]) -> str:
    """Which of the planned seeds have a row, and what that is worth."""
    count, parts = 0, []
    for env in THRESHOLDS:
        seeds = {
            algo: [int(row["seed"]) for row in newest_per_seed(r for r in rows if (r["env"], r["algo"]) == (env, algo))]
            for algo in ALGOS
        }
        count += sum(seed <= SEEDS for own in seeds.values() for seed in own)
        there = [f"`{algo}` {', '.join(map(str, own))}" for algo, own in seeds.items() if own]
        parts.append(f"{env} ({'; '.join(there) or 'none'})")
    planned = f"{len(THRESHOLDS)} envs × {len(ALGOS)} algorithms × {SEEDS} seeds"
    return (
        f"Planned: {planned}, {len(THRESHOLDS) * len(ALGOS) * SEEDS} runs. Evaluated: {count}, by env, algorithm and "
        f"seed: {', '.join(parts)}. Fewer than {SEEDS} seeds prove nothing about an ordering of the algorithms."
    )


def _steps(own: list[dict[str, str]], measure: str) -> list[str]:
    """The median in thousands, and how many seeds of those that were measured reached it."""
    values = [row[measure] for row in newest_per_seed(row for row in own if row[measure])]
    if not values:
        return ["", "not measured"]
    steps = [math.inf if value == NEVER else float(value) for value in values]
    median, count = statistics.median(steps), sum(map(math.isfinite, steps))
    return [f"{median / 1000:.0f}" if math.isfinite(median) else "–", f"{count} of {len(steps)}"]


def main() -> None:
    """Run what is asked for and not yet there, seed by seed, so that a stopped command leaves whole comparisons."""
    arguments = parse(__doc__, "envs", list(THRESHOLDS), SEEDS)
    for seed in range(1, arguments.seeds + 1):
        for env in arguments.envs:
            for algo in ALGOS:
                if is_there(evaluated(read_rows(ROWS)), arguments.again, env=env, algo=algo, seed=seed):
                    continue
                row = run(env, algo, seed)
                append_row(ROWS, FIELDS, row)
                write_table()
                print(f"{env} {algo} seed {seed}: {row['one']} {row['ten']}", flush=True)
    write_table()


if __name__ == "__main__":
    main()
