"""A Slurm of one machine, for tests: `sbatch squeue sacct scancel srun` as far as parl uses them.

`install(folder)` puts them into `folder/bin`; the state is a JSON file for each job in `folder/jobs`. It does what
Slurm's manual says of the options parl uses: SIGTERM and then SIGKILL on scancel, states, names, `--test-only`. It runs
`slots` jobs at once, and squeue forgets a job `forget_s` after its end; all by the file settings.json. Time limits and
preemption are what a test does with `end`.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "srun")
SETTINGS = {"slots": 8, "forget_s": 300.0, "kill_wait_s": 10.0, "down": False}
OVER = ("CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "PREEMPTED")


def install(folder: Path, **settings: Any) -> dict[str, str]:
    """Make the commands; returns the environment in which they are found."""
    (folder / "jobs").mkdir(parents=True)
    (folder / "bin").mkdir()
    change(folder, **settings)
    for name in COMMANDS:
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {folder} {name} "$@"\n')
        script.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def change(folder: Path, **settings: Any) -> None:
    """Set settings; those that are not named have their defaults."""
    write(folder / "settings.json", SETTINGS | settings)


def jobs(folder: Path) -> list[dict[str, Any]]:
    """All jobs that were ever submitted, in order."""
    return [read(file) for file in sorted((folder / "jobs").glob("*.json"), key=lambda file: int(file.stem))]


def end(folder: Path, job: dict[str, Any], state: str, number: int) -> None:
    """Let the cluster end a job that runs: state PREEMPTED with SIGTERM, OUT_OF_MEMORY with SIGKILL …"""
    update(folder, job["id"], ending=state)
    os.kill(job["pid"], number)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def write(file: Path, values: dict[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(values))
    temporary.replace(file)


def update(folder: Path, job_id: int, **values: Any) -> None:
    file = folder / "jobs" / f"{job_id}.json"
    write(file, read(file) | values)


def main(folder: Path, name: str, words: Sequence[str]) -> int:
    settings = read(folder / "settings.json")
    if settings["down"]:
        print(f"{name}: error: Unable to contact slurm controller (connect failure)", file=sys.stderr)
        return 1
    flags = {key: value for key, _, value in (word.lstrip("-").partition("=") for word in words if word[0] == "-")}
    others = [word for word in words if word[0] != "-"]
    if name == "sbatch":
        return sbatch(folder, flags, others)
    if name == "squeue":
        for job in jobs(folder):
            if job["state"] not in OVER or time.time() - job["ended"] < settings["forget_s"]:
                print(
                    flags["format"].replace("%i", str(job["id"])).replace("%j", job["name"]).replace("%T", job["state"])
                )
    elif name == "sacct":
        print(read(folder / "jobs" / f"{flags['jobs']}.json")["state"])
    elif name == "scancel":
        scancel(folder, flags, others)
    elif name == "run":  # not of Slurm: looks after one job
        run(folder, int(others[0]))
    return 0


def sbatch(folder: Path, flags: dict[str, str], others: list[str]) -> int:
    script = Path(others[0]).read_text() if others else sys.stdin.read()
    options: dict[str, str] = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            [word] = shlex.split(line.removeprefix("#SBATCH "))
            key, _, value = word.removeprefix("--").partition("=")
            options[key] = value
    if options.get("partition") == "nowhere":
        print("sbatch: error: invalid partition specified: nowhere", file=sys.stderr)
        print("sbatch: error: Batch job submission failed: Invalid partition name specified", file=sys.stderr)
        return 1
    if "test-only" in flags:
        print("sbatch: Job 1 to start at 2030-01-01T00:00:00 using 1 processors on nodes n1", file=sys.stderr)
        return 0
    job_id = len(jobs(folder)) + 1
    job = {
        "id": job_id,
        "name": options["job-name"],
        "state": "PENDING",
        "options": options,
        "script": script,
        "ended": 0,
    }
    write(folder / "jobs" / f"{job_id}.json", job)
    subprocess.Popen(
        [sys.executable, "-S", __file__, str(folder), "run", str(job_id)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    print(f"Submitted batch job {job_id}")
    return 0


def scancel(folder: Path, flags: dict[str, str], ids: list[str]) -> None:
    for job in jobs(folder):
        if str(job["id"]) not in ids or job["state"] in OVER or job["name"] != flags.get("name", job["name"]):
            continue
        if "signal" in flags:
            if job["state"] == "RUNNING":
                os.killpg(job["pid"], signal.Signals[f"SIG{flags['signal']}"])
        elif job["state"] == "PENDING":
            update(folder, job["id"], state="CANCELLED", ended=time.time())
        else:
            update(
                folder,
                job["id"],
                ending="CANCELLED",
                killed_at=time.time() + read(folder / "settings.json")["kill_wait_s"],
            )
            os.killpg(job["pid"], signal.SIGTERM)


def run(folder: Path, job_id: int) -> None:
    file = folder / "jobs" / f"{job_id}.json"
    while True:
        settings = read(folder / "settings.json")
        first = [job["id"] for job in jobs(folder) if job["state"] not in OVER][: settings["slots"]]
        if read(file)["state"] in OVER:
            return
        if job_id in first:
            break
        time.sleep(0.05)
    job = read(file)
    options = job["options"]
    with open(options["output"], "ab") as out:
        process = subprocess.Popen(
            ["bash", "-c", job["script"]], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, "SLURM_JOB_ID": str(job_id)},
        )  # fmt: skip
    update(folder, job_id, state="RUNNING", pid=process.pid)
    while process.poll() is None:
        if time.time() > read(file).get("killed_at", float("inf")):
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.05)
    state = read(file).get("ending") or ("COMPLETED" if process.returncode == 0 else "FAILED")
    update(folder, job_id, state=state, ended=time.time(), code=process.returncode)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
