"""How fast each vectorizer steps, beside bare envs in a loop and other vector envs, in interleaved rounds.

    python tests/benchmarks/vectorizers.py [--suite cartpole32 busy100 …] [--seconds 0.1] [--rounds 35] [--install]

Prints a Markdown table per suite: median steps/s, the ratio to *raw* (bare env objects stepped in a Python loop in
one process) of the same round, the CPU time that all processes together spend on a step, and beside it the ratio that
is asked for. Nothing is asserted: figures depend on the machine, and on what else runs there; the ratios of one run
hold better, the more so the shorter its windows and the more of them. Virtual cores are often halves of one, so two may
do little more than one does alone: the row "raw, a process per core" is what such loops do at once that have nothing to
say to each other. `--install` makes a virtual environment in a temporary folder, installs this checkout, the envs'
extras and the peers there, and measures in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # for `tests`; last, so that an installed parl is the one that is measured

PER_CORE = "raw, a process per core"
PEERS = ("ale-py>=0.10", "opencv-python-headless>=4.8")


@dataclass(frozen=True)
class Asked:
    """A ratio that `who` should reach."""

    who: str
    times: float
    than: str = "raw"


@dataclass(frozen=True)
class Suite:
    """Some ways to step the same envs, by name; the first is what ratios are taken to."""

    title: str
    peers: Callable[[], Mapping[str, Callable[[], Any]]]
    asked: tuple[Asked, ...] = ()
    best_of: tuple[str, ...] = field(default=())  # for `Asked("best", …)`


# ---- suites ----


def cartpole(num_envs: int) -> dict[str, Callable[[], Any]]:
    from tests.benchmarks import peers

    ours, theirs = [peers.as_configured("CartPole-v1")] * num_envs, [peers.gymnasium_made("CartPole-v1")] * num_envs
    bare = [partial(peers.bare, "CartPole-v1")] * num_envs
    return {
        "raw": partial(peers.Raw, bare),
        PER_CORE: partial(peers.RawPerCore, bare),
        **{name: partial(peers.runner, name, ours) for name in _names()},
        "serial, Gymnasium's face": partial(peers.face, "serial", ours),
        "subprocess, Gymnasium's face": partial(peers.face, "subprocess", ours),
        "SyncVectorEnv": partial(peers.sync, theirs),
        "AsyncVectorEnv": partial(peers.asynchronous, theirs),
        "CartPoleVectorEnv": partial(peers.own_batch, "CartPole-v1", num_envs),
    }


def busy100() -> dict[str, Callable[[], Any]]:
    from tests.benchmarks import peers

    envs = [peers.busy] * 32
    return {
        "raw": partial(peers.Raw, envs),
        PER_CORE: partial(peers.RawPerCore, envs),
        **{name: partial(peers.runner, name, envs) for name in _names() if name != "native"},
        "AsyncVectorEnv": partial(peers.asynchronous, envs),
    }


def sleep1ms() -> dict[str, Callable[[], Any]]:
    from parl_cli.envs.toy import SleepEnv
    from tests.benchmarks import peers

    envs = [partial(SleepEnv, 1e-3, length=200)] * 32
    return {
        "raw": partial(peers.Raw, envs),
        "thread, 16 workers": partial(peers.runner, "thread", envs, num_workers=16),
        "subprocess": partial(peers.runner, "subprocess", envs),
        "AsyncVectorEnv": partial(peers.asynchronous, envs),
    }


def halfcheetah() -> dict[str, Callable[[], Any]]:
    from tests.benchmarks import peers

    ours, theirs = [peers.as_configured("HalfCheetah-v5")] * 16, [peers.gymnasium_made("HalfCheetah-v5")] * 16
    bare = [partial(peers.bare, "HalfCheetah-v5")] * 16
    return {
        "raw": partial(peers.Raw, bare, limit=1000),
        PER_CORE: partial(peers.RawPerCore, bare, limit=1000),
        **{name: partial(peers.runner, name, ours) for name in _names() if name != "native"},
        "SyncVectorEnv": partial(peers.sync, theirs),
        "AsyncVectorEnv": partial(peers.asynchronous, theirs),
    }


def pong() -> dict[str, Callable[[], Any]]:
    import ale_py
    import gymnasium

    from tests.benchmarks import peers

    gymnasium.register_envs(ale_py)
    envs = [peers.pong] * 8

    def native() -> Any:
        batch = gymnasium.make_vec("ALE/Pong-v5", 8, vectorization_mode="vector_entry_point")
        return peers.runner("native", batch)

    return {
        "raw": partial(peers.Raw, envs),
        PER_CORE: partial(peers.RawPerCore, envs),
        **{name: partial(peers.runner, name, envs) for name in _names() if name != "native"},
        "native": native,
        "SyncVectorEnv": partial(peers.sync, envs),
        "AsyncVectorEnv": partial(peers.asynchronous, envs),
        "AtariVectorEnv": partial(peers.own_batch, "ALE/Pong-v5", 8),
    }


def first_ready() -> dict[str, Callable[[], Any]]:
    from tests.benchmarks import peers

    envs = [peers.random_sleep] * 8
    options = {"num_workers": 8, "num_groups": 1, "batch_size": 4}
    return {
        "subprocess, 8 workers": partial(peers.runner, "subprocess", envs, num_workers=8),
        "async, 8 workers, batch of 4": partial(peers.runner, "async", envs, **options),
        "async, 8 workers, batch of 1": partial(peers.runner, "async", envs, **options | {"batch_size": 1}),
    }


def _names() -> list[str]:
    from parl_cli import registry

    return [name for name in registry.names("vectorizer") if name != "auto"]


SUITES = {
    "cartpole32": Suite(
        "CartPole × 32",
        partial(cartpole, 32),
        (
            Asked("subprocess", 1.1),
            Asked("hybrid", 1.1),
            Asked("subprocess", 8, "AsyncVectorEnv"),
            Asked("serial", 0.85),
            Asked("serial", 1.1, "SyncVectorEnv"),
            Asked("serial, Gymnasium's face", 1.1, "SyncVectorEnv"),
            Asked("subprocess, Gymnasium's face", 8, "AsyncVectorEnv"),
            Asked("native", 0.85, "CartPoleVectorEnv"),
        ),
    ),
    "cartpole256": Suite("CartPole × 256", partial(cartpole, 256), (Asked("subprocess", 1.45), Asked("hybrid", 1.45))),
    "busy100": Suite("Python env of 100 µs × 32", busy100, (Asked("subprocess", 1.8), Asked("hybrid", 1.8))),
    # ideal: 16 threads, each as fast as the loop
    "sleep1ms": Suite("Env that sleeps 1 ms × 32", sleep1ms, (Asked("thread, 16 workers", 0.85 * 16),)),
    "halfcheetah": Suite(
        "HalfCheetah × 16",
        halfcheetah,
        (Asked("best", 1.6), Asked("best", 4, "AsyncVectorEnv")),
        ("thread", "subprocess", "hybrid"),
    ),
    "pong": Suite(
        "Pong, 84 × 84 × 4, × 8",
        pong,
        (Asked("best", 1.6), Asked("best", 1.7, "AsyncVectorEnv"), Asked("native", 0.9, "AtariVectorEnv")),
        ("thread", "subprocess", "hybrid"),
    ),
    "async": Suite(
        "8 workers, steps of 2 ms, exponential",
        first_ready,
        (Asked("async, 8 workers, batch of 4", 2, "subprocess, 8 workers"),),
    ),
}
MEMORY = "memory"


# ---- measuring ----


@dataclass
class Row:
    """What one peer did, by round."""

    steps_per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def ratio(self, other: Row) -> float:
        """The median over the rounds, which both were measured in."""
        return statistics.median(a / b for a, b in zip(self.steps_per_s, other.steps_per_s, strict=True))


def measure(suite: Suite, seconds: float, rounds: int) -> tuple[dict[str, Row], dict[str, str], float]:
    """Measure the peers of a suite in turns: their rows, why others are missing, the share of a core that was had."""
    from parl_cli.metrics.cpu import CpuMeter, core_share

    peers: dict[str, Any] = {}
    missing: dict[str, str] = {}
    try:
        for name, make in suite.peers().items():
            try:
                peers[name] = make()
            except Exception as error:  # an extra that is not installed, a batch that an env has not
                missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        meter = CpuMeter()
        rows = {name: Row() for name in peers}
        shares = []
        for number in range(rounds):
            shares.append(core_share())
            for name, peer in peers.items():
                _say(f"{suite.title}: round {number + 1} of {rounds}, {name}")
                before = meter.seconds()
                steps, elapsed, all_steps = peer.run(seconds)
                rows[name].cpu_us.append(1e6 * (meter.seconds() - before) / all_steps)
                rows[name].steps_per_s.append(steps / elapsed)
    finally:
        _say("")
        for peer in peers.values():
            peer.close()
    return rows, missing, statistics.mean(shares)


def _say(text: str) -> None:
    """Progress, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def table(suite: Suite, rows: Mapping[str, Row], missing: Mapping[str, str], core_share: float = 1.0) -> str:
    """The suite's Markdown table, what is missing from it, and whether the machine was busy with other work."""
    if not rows:
        return f"### {suite.title}\n\nnothing could be measured\n" + _missing(missing)
    floor = next(iter(rows))
    lines = [f"### {suite.title}", "", f"| what | steps/s | × {floor} | CPU µs per step | asked |", "| --- " * 5 + "|"]
    best = max((name for name in suite.best_of if name in rows), key=lambda n: rows[n].ratio(rows[floor]), default="")
    for name, row in rows.items():
        wanted = [a for a in suite.asked if a.who == name or (a.who == "best" and name == best)]
        asked = ", ".join(_compared(a, name, rows, floor) for a in wanted)
        figures = f"{statistics.median(row.steps_per_s):,.0f} | {row.ratio(rows[floor]):.2f}"
        lines.append(f"| {name} | {figures} | {_us(statistics.median(row.cpu_us))} | {asked} |")
    busy = f"\nbusy machine: a process that wanted a core got {core_share:.0%} of one\n" if core_share < 0.9 else ""
    return "\n".join(lines) + "\n" + _missing(missing) + busy


def _us(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _compared(asked: Asked, name: str, rows: Mapping[str, Row], floor: str) -> str:
    if asked.than not in rows:
        return f"≥ {asked.times:g} × {asked.than}, which is missing"
    if asked.than == floor:
        return f"≥ {asked.times:g}"
    return f"{rows[name].ratio(rows[asked.than]):.2f} × {asked.than} (≥ {asked.times:g})"


def _missing(missing: Mapping[str, str]) -> str:
    return "".join(f"\nnot measured: {name} ({why})\n" for name, why in missing.items())


def memory_table() -> str:
    """Processes and memory of 32 CartPole envs, each way alone; MB are 10⁶ bytes."""
    from parl_cli.metrics.cpu import processes_below
    from parl_cli.vectorizers.calls import available_cores

    if not Path("/proc/self/smaps_rollup").exists():
        return "### Memory\n\nnot measured: needs Linux's /proc/PID/smaps_rollup\n"
    lines = ["### Memory, CartPole × 32", ""]
    lines += ["| what | worker processes | RSS of the largest, MB | PSS of all, MB | asked |", "| --- " * 5 + "|"]
    asked = {"subprocess": f"≤ {available_cores()} processes, ≤ 100 MB each"}
    for name in ("subprocess", "async", "AsyncVectorEnv"):
        before = set(processes_below())
        peer = cartpole(32)[name]()
        try:
            peer.run(0.2)
            workers = [pid for pid in set(processes_below()) - before if not _is_tracker(pid)]
            rss, pss = zip(*(_memory_mb(pid) for pid in workers), strict=True)
        finally:
            peer.close()
        lines.append(f"| {name} | {len(workers)} | {max(rss):.0f} | {sum(pss):.0f} | {asked.get(name, '')} |")
    return "\n".join(lines) + "\n"


def _is_tracker(pid: int) -> bool:
    """Whether it is the process in which multiprocessing keeps account of shared memory."""
    return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process, all of it, and with what is shared divided by who shares it."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kib = {words[0]: int(words[1]) for words in map(str.split, text.splitlines()[1:])}
    return kib["Rss:"] * 1024 / 1e6, kib["Pss:"] * 1024 / 1e6


# ---- the command ----


def install(arguments: Sequence[str]) -> int:
    """Run this file with `arguments` in a new virtual environment that holds parl and its peers.

    Without torch: nothing that is measured imports it (a test sees to that), and its wheels are gigabytes.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [name for name in project["dependencies"] if not name.startswith("torch")]
    needed += project["optional-dependencies"]["mujoco"]
    with tempfile.TemporaryDirectory(prefix="parl-benchmark-") as folder:
        print(f"installing parl and its peers in {folder}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *needed, *PEERS], check=True)
        subprocess.run([*pip, "--no-deps", str(ROOT)], check=True)
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run([str(python), __file__, *arguments], env=clean, check=False).returncode


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*SUITES, MEMORY]
    parser.add_argument("--suite", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--seconds", type=float, default=0.1, help="of one window (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=35, help="windows of each peer (default: %(default)s)")
    parser.add_argument("--install", action="store_true", help="measure in a virtual environment made for it")
    options = parser.parse_args()
    if options.install:
        return install([word for word in sys.argv[1:] if word != "--install"])

    import gymnasium
    import numpy

    from parl_cli import __version__
    from parl_cli.vectorizers.calls import available_cores

    versions = f"parl {__version__}, Gymnasium {gymnasium.__version__}, numpy {numpy.__version__}"
    print(f"{versions}, Python {sys.version.split()[0]}, {available_cores()} cores")
    print(f"median of {options.rounds} rounds of {options.seconds:g} s, in turns\n")
    for name in options.suite:
        if name == MEMORY:
            print(memory_table(), flush=True)
            continue
        suite = SUITES[name]
        try:
            print(table(suite, *measure(suite, options.seconds, options.rounds)), flush=True)
        except ImportError as error:
            print(f"### {suite.title}\n\nnot measured: {error}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
