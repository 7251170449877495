"""What a sweep costs beside its jobs: its wall time over the time its jobs would take alone, shared by the cores.

    python tests/benchmarks/sweep.py [--jobs 20] [--singles 4] [--cores 2] [key=value …]

Trains `--singles` jobs by themselves, one thread each, then as many rounds of `--cores` jobs side by side without a
sweep, then all `--jobs` of them as one sweep. Prints the times, and the ratio of the sweep's to mean single time × jobs
/ cores. It should be at most 1.2. What a round takes longer than a job alone is the machine's doing (cores that share
memory, caches, a host), so the ratio to the rounds is printed too: that is what the sweep itself costs. Nothing is
asserted: only an otherwise idle machine says something.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

JOB = ("env=cartpole", "total_steps=50000", "num_threads=1", "device=cpu", "logger.plot=false")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--singles", type=int, default=4, help="jobs that are trained alone, for the mean")
    parser.add_argument("--cores", type=int, default=2, help="jobs at once")
    parser.add_argument("overrides", nargs="*", help="of every job")
    args = parser.parse_intermixed_args()
    job = (*JOB, *args.overrides)
    singles = [wall_s(*job, f"seed={seed}") for seed in range(args.singles)]
    with ThreadPoolExecutor(args.cores) as pool:  # threads that wait for processes
        rounds = [
            max(pool.map(lambda seed: wall_s(*job, f"seed={seed}"), range(args.cores))) for _ in range(args.singles)
        ]
    sweep = wall_s("-m", *job, f"seed=range({args.jobs})", f"sweep.num_jobs={args.cores}")
    shared = statistics.fmean(singles) * args.jobs / args.cores
    beside = statistics.fmean(rounds) * args.jobs / args.cores
    print(
        f"alone: {statistics.fmean(singles):.2f} s a job (of {args.singles}: {min(singles):.2f} to {max(singles):.2f})"
    )
    print(f"{args.cores} side by side: {statistics.fmean(rounds):.2f} s ({min(rounds):.2f} to {max(rounds):.2f})")
    print(f"sweep: {sweep:.2f} s for {args.jobs} jobs, {args.cores} at once")
    print(f"ratio: {sweep / shared:.2f} of {shared:.2f} s; asked: at most 1.2")
    print(f"to the jobs side by side: {sweep / beside:.2f} of {beside:.2f} s")


def wall_s(*arguments: str) -> float:
    """Seconds that `parl train` takes in an empty folder; RuntimeError with its output where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "parl_cli", "train", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return seconds


if __name__ == "__main__":
    main()
