"""Which way of acting is the fastest here: whole trainings beside what their parts cost alone.

    python tests/benchmarks/settings.py [--envs cartpole busy100 halfcheetah] [--rounds 3]

For each env, `parl bench` measures what an env step, an action and an update cost, each alone, per env step. If every
core always had some of that to do, `cores / (env + act + learn)` steps would be made per second: the bound. Then APPO
trains, in interleaved rounds, with each setting: 32 envs, rollouts of 32 steps, 4 epochs of 4 minibatches, two 64×64
networks. Steps/s are of the steady state, env steps learned from; nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.benchmarks.asynchronous import parl, timed  # noqa: E402

WORK = ["algo=appo", "num_envs=32", "algo.num_steps=32", "algo.num_epochs=4", "algo.num_minibatches=4", "tuned=null"]
ENVS = {  # how it is chosen, and how many steps are a few seconds
    "cartpole": (["env=cartpole"], 200_000),
    "busy100": (["plugins=[tests.helpers.busy_plugin]", "env=gym", "env.id=Busy100-v0"], 50_000),
    "halfcheetah": (["env=half_cheetah"], 60_000),
}
SETTINGS = {
    "actors=inline vectorizer=serial": [],
    "actors=inline vectorizer=subprocess": [],
    "actors=inline vectorizer=hybrid": [],
    "actors=process actors.num_actors=1": ["vectorizer=serial"],
    "actors=process actors.num_actors=2": ["vectorizer=serial"],
    "actors=process actors.num_actors=4": ["vectorizer=serial"],
    "actors=thread vectorizer=async": [],
}


def parts(choice: list[str], folder: Path) -> dict[str, float]:
    """CPU µs per env step of the env, of acting and of learning, each alone."""
    bench = ["bench", *WORK, *choice, "vectorizers=[serial]", "actors=inline", "seconds=2", f"output={folder}"]
    timed([sys.executable, "-m", "parl_cli", *bench], ROOT)
    report = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    env_only, alone = report["vectorizers"][0]["env_only"], report["parts"][0]
    return {"env": env_only["cpu_us_per_step"], "act": alone["act_cpu_us"], "learn": alone["learn_cpu_us"]}


def measure(name: str, rounds: int, settings: list[str]) -> tuple[list[dict[str, float]], dict[str, list[float]]]:
    """One env: what its parts cost alone, by round, and the steps/s of each setting, by round."""
    choice, steps = ENVS[name]
    os.environ["PYTHONPATH"] = str(ROOT)  # for the plug-in, in the processes that are started
    rates: dict[str, list[float]] = {setting: [] for setting in settings}
    alone: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="parl-benchmark-") as place:
        for number in range(rounds):
            alone.append(parts(choice, Path(place) / f"bench-{number}"))
            for setting, each in rates.items():
                folder = Path(place) / f"{setting}-{number}".replace(" ", "-")
                folder.mkdir()
                job = [*WORK, *choice, *setting.split(), *SETTINGS[setting], f"total_steps={steps}"]
                each.append(parl(folder, job).steps_per_s)
    return alone, rates


def table(name: str, alone: list[dict[str, float]], rates: dict[str, list[float]], cores: int) -> str:
    """One env's Markdown table: medians over rounds."""
    cost = {part: statistics.median(row[part] for row in alone) for part in alone[0]}
    bound = cores / sum(cost.values()) * 1e6
    alone_text = ", ".join(f"{part} {us:.1f} µs" for part, us in cost.items())
    lines = [f"### {name}", "", f"alone: {alone_text}; {cores} cores: at most {bound:,.0f} steps/s", ""]
    lines += ["| setting | steps/s, by round | median | of the bound |", "| --- " * 4 + "|"]
    for setting, each in rates.items():
        middle = statistics.median(each)
        by_round = ", ".join(f"{rate:,.0f}" for rate in each)
        lines.append(f"| `{setting}` | {by_round} | {middle:,.0f} | {middle / bound:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=list(ENVS), default=list(ENVS), metavar="NAME")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each (default: %(default)s)")
    options = parser.parse_args()
    from parl_cli.vectorizers.calls import available_cores

    for name in options.envs:
        print(table(name, *measure(name, options.rounds, options.settings), available_cores()), flush=True)


if __name__ == "__main__":
    main()
