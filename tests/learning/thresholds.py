"""How many steps PPO and the Truly PPO family take to the paper's thresholds, beside the paper's own figures.

    python -m tests.learning.thresholds                    # everything below, 4 seeds
    python -m tests.learning.thresholds hopper --seeds 2

Each run is `parl train experiment=truly_ppo_paper env=… algo=… seed=…`. A threshold counts as reached at the first
metrics row whose mean return over the last 100 training episodes is at least it. One row per (env, algorithm, seed,
commit) is added to thresholds.csv; rows that are there are not run again. THRESHOLDS.md is written anew from them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.learning.run import HERE, append_row, commit, parl, read_rows

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
EXTRA = {"half_cheetah": ["policy.log_std_init=-1.34"]}


def run(env: str, algo: str, seed: int) -> dict[str, Any]:
    """Train one seed and return its row."""
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
        "commit": commit(),
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
    """THRESHOLDS.md: the median over seeds of the steps to the threshold, and the final return."""
    lines = [
        "# Steps to a threshold: PPO and the Truly PPO family",
        "",
        "Written by `python -m tests.learning.thresholds` from thresholds.csv. Median over seeds of the thousands of "
        "env steps until the mean of the last 100 training episodes reached the paper's threshold (a seed that did not "
        "within 1M counts as later than all others), the seeds that did, and the mean ± standard deviation of the same "
        "return at the end.",
        "",
        "| env | threshold | algorithm | steps (k), ours | reached | steps (k), paper | final return | commits |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = read_rows(ROWS)
    for env, threshold in THRESHOLDS.items():
        for algo, paper in zip(ALGOS, PAPER[env], strict=True):
            own = [row for row in rows if row["env"] == env and row["algo"] == algo]
            if own:
                lines.append(f"| {env} | {threshold} | `{algo}` | {_summary(own, paper)} |")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _summary(own: list[dict[str, str]], paper: str) -> str:
    steps = [int(row["steps_to_threshold"] or 2**62) for row in own]
    median = statistics.median(steps)
    final = [float(row["final_return"]) for row in own]
    spread = statistics.stdev(final) if len(final) > 1 else 0.0
    cells = [
        f"{median / 1000:.0f}" if median < 2**61 else "–",
        f"{sum(s < 2**62 for s in steps)} of {len(steps)}",
        paper,
        f"{statistics.mean(final):.0f} ± {spread:.0f}",
        ", ".join(sorted({row["commit"] for row in own})),
    ]
    return " | ".join(cells)


def main() -> None:
    """Run what is asked for and not yet there, seed by seed, so that a stopped command leaves whole comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*", default=list(THRESHOLDS), help="default: all")
    parser.add_argument("--seeds", type=int, default=4, help="seeds 1…N")
    arguments = parser.parse_args()
    for seed in range(1, arguments.seeds + 1):
        for env in arguments.envs:
            for algo in ALGOS:
                if any((r["env"], r["algo"], r["seed"]) == (env, algo, str(seed)) for r in read_rows(ROWS)):
                    continue
                row = run(env, algo, seed)
                append_row(ROWS, FIELDS, row)
                write_table()
                print(f"{env} {algo} seed {seed}: {row['steps_to_threshold'] or 'not reached'}", flush=True)
    write_table()


if __name__ == "__main__":
    main()
