"""Kill one process of a run at a random moment, many times: does each run end, say why, and leave nothing behind?

    python tests/benchmarks/chaos.py [--runs 50] [--seed 1]

Each run is `parl train algo=appo env=cartpole actors=process`, two actors with an env worker each. In turns, an actor
or an env worker is killed (-9), or the learner's process is killed (-9), sent SIGTERM, or sent Ctrl-C with its whole
group. Prints a table of how the runs ended, and a line for each that did not end well; the exit code is then 1. A run
ends well if it is over two minutes after the signal at the latest, with a result (0), saved (130 for Ctrl-C, 143 for
SIGTERM), or with an error that names what was killed; and if no process and no file in /dev/shm is left.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # for `tests`; last, so that an installed parl is the one that is tried

from tests.helpers.processes import gone, shared_files  # noqa: E402
from tests.helpers.runs import CLI_TINY, Parl  # noqa: E402

TRAIN = (
    *("train", "algo=appo", "env=cartpole", "actors=process", "actors.num_actors=2"),
    *("vectorizer=subprocess", "vectorizer.num_workers=1", "total_steps=12000", "hydra.run.dir=run", *CLI_TINY),
)
BLOWS = (
    ("actor", signal.SIGKILL),
    ("worker", signal.SIGKILL),
    ("learner", signal.SIGKILL),
    ("learner", signal.SIGTERM),
    ("group", signal.SIGINT),
)
END_WITHIN_S = 120.0
SAVED = {signal.SIGTERM: 143, signal.SIGINT: 130}


@dataclass(frozen=True)
class Ending:
    """What became of a run.

    Attributes:
        blow: who was hit, and by which signal.
        at_s: when, since the run's start; None: it was over before.
        how: `result`, `saved`, `clear error`, `killed`, or what was wrong.
        well: whether that is one of the first four, and nothing was left.
        took_s: from the blow to the end.
        words: the end of what it said.
    """

    blow: tuple[str, signal.Signals]
    at_s: float | None
    how: str
    well: bool
    took_s: float
    words: str


def run(folder: Path, blow: tuple[str, signal.Signals], delay_s: float, seed: int) -> Ending:
    """One run in an empty folder, hit once, `delay_s` after its start or as soon as there is whom to hit."""
    before = shared_files()
    role, number = blow
    with Parl(*TRAIN, f"seed={seed}", cwd=folder) as parl:
        began = time.monotonic()
        time.sleep(delay_s)
        while not (victims := of_role(parl.process.pid, role)) and parl.process.poll() is None:
            time.sleep(0.002)
        everyone = [process.pid for process in family(parl.process.pid)]
        hit = strike(random.Random(seed).choice(victims), role, number) if victims else False
        at_s = time.monotonic() - began
        try:
            code, _, err = parl.end(END_WITHIN_S)
            how = manner(code, err, number if hit else None)
        except subprocess.TimeoutExpired:
            how, err = "hung", ""
        took_s = time.monotonic() - began - at_s
    left = [] if gone(everyone) else [pid for pid in everyone if psutil.pid_exists(pid)]
    files = {name for name in shared_files() - before if not in_use(name)}
    well = how in ("result", "saved", "clear error", "killed") and not left and not files
    if left or files:
        how += f", left processes {left} and files {sorted(files)}"
    return Ending(blow, at_s if hit else None, how, well, took_s, err[-600:])


def in_use(name: str) -> bool:
    """Whether a living process has a file of /dev/shm mapped: then it is somebody else's, all of the run's being gone.

    One that nobody has mapped is looked at again after a second: others may have been about to remove it.
    """
    for process in psutil.process_iter():
        try:
            if any(entry.path == f"/dev/shm/{name}" for entry in process.memory_maps()):
                return True
        except (psutil.Error, OSError):
            continue
    time.sleep(1.0)
    return not (Path("/dev/shm") / name).exists()


def manner(code: int, err: str, number: signal.Signals | None) -> str:
    """How a run ended that was hit by a signal, or by none."""
    if code == 0:
        return "result"
    if number == signal.SIGKILL and code == -signal.SIGKILL:
        return "killed"
    if number in SAVED and code in (SAVED[number], -number) and "Traceback" not in err:
        return "saved"
    if code == 1 and "was killed by SIGKILL" in err and "Traceback" not in err.partition("SIGKILL")[0]:
        return "clear error"
    return f"exit code {code}"


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def of_role(pid: int, role: str) -> list[int]:
    """The processes that play a role in the run of process `pid`."""
    if role in ("learner", "group"):
        return [process.pid for process in family(pid)[:1] if process.status() != psutil.STATUS_ZOMBIE]
    found = []
    for process in family(pid)[1:]:
        try:
            is_ours = "resource_tracker" not in " ".join(process.cmdline())
            if is_ours and (process.ppid() == pid) == (role == "actor"):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def strike(pid: int, role: str, number: signal.Signals) -> bool:
    """Send the signal; whether there was anybody to get it."""
    try:
        (os.killpg if role == "group" else os.kill)(pid, number)
    except ProcessLookupError:
        return False
    return True


def rounds(count: int, seed: int) -> list[Ending]:
    """Runs with blows in turns, at moments spread over the length of a run that nobody disturbs."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, Parl(*TRAIN, cwd=Path(folder)) as parl:
        began = time.monotonic()
        parl.end(600)
        length_s = time.monotonic() - began
    endings = []
    for index in range(count):
        with tempfile.TemporaryDirectory() as folder:
            delay_s = rng.uniform(0.1, 0.9) * length_s
            endings.append(run(Path(folder), BLOWS[index % len(BLOWS)], delay_s, seed * 1000 + index))
        role, number = endings[-1].blow
        print(f"{index + 1} of {count}: {role}, {number.name}: {endings[-1].how}", file=sys.stderr, flush=True)
    return endings


def table(endings: Sequence[Ending]) -> str:
    """How they ended, by blow, in Markdown."""
    lines = ["| who, signal | runs | hit | result | saved | clear error | killed | not well | longest to the end |"]
    lines.append("| --- " * 9 + "|")
    for blow in BLOWS:
        mine = [ending for ending in endings if ending.blow == blow]
        ends = Counter(ending.how for ending in mine)
        hit = sum(ending.at_s is not None for ending in mine)
        counts = " | ".join(str(ends[how]) for how in ("result", "saved", "clear error", "killed"))
        bad = sum(not ending.well for ending in mine)
        slowest = max((ending.took_s for ending in mine), default=0.0)
        lines.append(f"| {blow[0]}, {blow[1].name} | {len(mine)} | {hit} | {counts} | {bad} | {slowest:.1f} s |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of who is hit, and when (default: %(default)s)")
    options = parser.parse_args()
    endings = rounds(options.runs, options.seed)
    print(table(endings))
    bad = [ending for ending in endings if not ending.well]
    for ending in bad:
        print(f"\n{ending.blow[0]}, {ending.blow[1].name} at {ending.at_s} s: {ending.how}\n{ending.words}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
