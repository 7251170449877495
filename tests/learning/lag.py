"""What a policy lag costs, and what V-trace wins back: areas under learning curves, with and without the correction.

    python -m tests.learning.lag                       # everything below, 5 seeds
    python -m tests.learning.lag impala --seeds 3

Each run is `parl train algo=… env=cartpole actors=inline debug.policy_lag=… algo.vtrace=… seed=…`, with nothing else
typed. The area is the mean over all metrics rows, which are equally far apart in env steps, of the mean return of the
last 100 training episodes: the height of a curve, not its end. One row per (algorithm, lag, correction, seed, commit)
is added to lag.csv; what is there is not run again (`--again`: unless it is of this commit). LAG.md is written anew
from the newest row of each seed.
"""

from __future__ import annotations

import json
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

ROWS = HERE / "lag.csv"
TABLE = HERE / "LAG.md"
FIELDS = ["algo", "lag", "vtrace", "seed", "commit", "area", "final_return", "ess", "steps"]
ALGOS = ["impala", "appo"]
LAGS = [0, 8]


def run(algo: str, lag: int, vtrace: bool, seed: int) -> dict[str, Any]:
    """Train one seed and return its row."""
    measured = commit()  # before training: what is committed meanwhile did not train
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        correction = f"algo.vtrace={str(vtrace).lower()}"
        choice = [
            f"algo={algo}",
            "env=cartpole",
            "actors=inline",
            f"debug.policy_lag={lag}",
            correction,
            f"seed={seed}",
        ]
        parl("train", *choice, f"hydra.run.dir={folder / 'run'}", cwd=folder)
        text = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    returns = [row["episode/return_mean"] for row in rows if "episode/return_mean" in row]
    ess = [row["policy/ess"] for row in rows if "policy/ess" in row]
    return {
        "algo": algo,
        "lag": lag,
        "vtrace": vtrace,
        "seed": seed,
        "commit": measured,
        "area": round(statistics.mean(returns), 1),
        "final_return": round(returns[-1], 1),
        "ess": round(statistics.mean(ess), 3) if ess else "",
        "steps": rows[-1]["env_steps"],
    }


def write_table() -> None:
    """Write LAG.md."""
    TABLE.write_text(table(read_rows(ROWS)), encoding="utf-8")


def table(rows: list[dict[str, str]]) -> str:
    """LAG.md: of the newest row of each seed, areas with and without the correction, and their difference."""
    lines = [
        "# Policy lag, with and without V-trace",
        "",
        "Written by `python -m tests.learning.lag` from lag.csv. CartPole; area: mean height of the learning curve "
        "(return of the last 100 training episodes), [ ]: bootstrapped 95 % interval of the mean over seeds. The "
        "difference is taken seed by seed. ESS: effective share of the samples under their importance ratios.",
        "",
        "| algorithm | lag | area, V-trace on | V-trace off | difference | final, on / off | ESS | seeds | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for algo in ALGOS:
        for lag in LAGS:
            line = _line([row for row in rows if (row["algo"], row["lag"]) == (algo, str(lag))])
            if line:
                lines.append(f"| `{algo}` | {lag} | {line} |")
    return "\n".join(lines) + "\n"


def _line(rows: list[dict[str, str]]) -> str:
    both = [newest_per_seed(row for row in rows if row["vtrace"] == vtrace) for vtrace in ("True", "False")]
    seeds = set.intersection(*({row["seed"] for row in side} for side in both))
    on, off = ([row for row in side if row["seed"] in seeds] for side in both)
    if not seeds:
        return ""
    areas = [[float(row["area"]) for row in side] for side in (on, off)]
    finals = [statistics.mean(float(row["final_return"]) for row in side) for side in (on, off)]
    ess = [float(row["ess"]) for row in on if row["ess"]]
    cells = [
        *(over_seeds(area, deviation=False) for area in areas),
        over_seeds([a - b for a, b in zip(*areas, strict=True)], deviation=False),
        f"{finals[0]:.0f} / {finals[1]:.0f}",
        f"{statistics.mean(ess):.2f}",
        str(len(seeds)),
        commits([*on, *off]),
    ]
    return " | ".join(cells)


def main() -> None:
    """Run what is asked for and not yet there, seed by seed, so that a stopped command leaves whole comparisons."""
    arguments = parse(__doc__, "algos", ALGOS, 5)
    for seed in range(1, arguments.seeds + 1):
        for algo in arguments.algos:
            for lag in LAGS:
                for vtrace in (True, False):
                    setting = {"algo": algo, "lag": lag, "vtrace": vtrace, "seed": seed}
                    if is_there(read_rows(ROWS), arguments.again, **setting):
                        continue
                    row = run(algo, lag, vtrace, seed)
                    append_row(ROWS, FIELDS, row)
                    write_table()
                    print(f"{algo} lag {lag} V-trace {vtrace} seed {seed}: area {row['area']}", flush=True)
    write_table()


if __name__ == "__main__":
    main()
