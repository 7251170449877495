"""The process of one job: its own log, its share of the threads, and a line to its parent.

The line is the pipe that is its standard input. When it closes, because the parent hangs up or is no more, the job
stops as on Ctrl-C: it finishes its update and writes a checkpoint (`watch_line`). So a killed parent leaves neither
orphans nor lost work. Ctrl-C at the terminal does not reach the job itself: it is in a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from parl_cli.vectorizers.calls import CORES_VARIABLE
from parl_cli.vectorizers.processes import THREAD_VARIABLES

ALONE = "--alone"
STOP_WITHIN_S = 30.0  # from hanging up to the end of the job; an update and a checkpoint should fit in


class JobProcess:
    """A job that runs.

    Args:
        command: the words of its command line.
        log: the file that takes what it prints, after what is there.
        cores: how many it may use.

    One that the system does not start, for want of memory, processes or a place for the log, has ended already.
    """

    is_queued = False
    cut_off = ""

    def __init__(self, command: Sequence[str], log: Path, cores: int) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._error = ""
        try:
            with log.open("ab") as out:
                self._process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **job_variables(cores)},
                    start_new_session=True,
                )
        except OSError as error:
            self._error = error.strerror or str(error)

    def poll(self) -> int | None:
        """The exit code, −n for signal n; None while it runs."""
        return 1 if self._process is None else self._process.poll()

    def stop(self) -> None:
        """Ask it to save and end."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def kill(self) -> None:
        """End it at once; its workers follow by themselves."""
        self.stop()
        if self._process is not None:
            self._process.kill()

    def abandon(self) -> None:
        """As when this process is killed: it saves, and ends by itself (`watch_line`)."""
        self.stop()

    def cause(self, code: int) -> str:
        """What an exit code says, in words."""
        return f"could not be started: {self._error}" if self._process is None else cause_of_death(code)


def cause_of_death(code: int) -> str:
    """What an exit code says, in words."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (", often a sign of too little memory" if name == "SIGKILL" else "")


def watch_line() -> None:
    """In the job: stop as on SIGTERM when the parent hangs up, and at once if that takes too long."""
    threading.Thread(target=_wait_for_the_end_of_stdin, daemon=True).start()


def _wait_for_the_end_of_stdin() -> None:
    while os.read(0, 1024):
        pass
    # to the process, not raise_signal: it must wake the main thread out of whatever it waits for
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_WITHIN_S)
    os._exit(1)


def child_command(folder: Path, plugins: Sequence[str], is_alone: bool = False) -> list[str]:
    """The command line of a job's process.

    Args:
        folder: the job's.
        plugins: modules to import.
        is_alone: nobody holds the other end of its standard input.
    """
    # -P: a file in the working directory must not take the place of a module
    alone = [ALONE] if is_alone else []
    return [sys.executable, "-P", "-m", "parl_cli.sweeps.child", *alone, str(folder), *plugins]


def job_variables(cores: int) -> dict[str, str]:
    """What a job's environment adds to its parent's: the modules that this process finds, its share of the machine."""
    found = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))
    threads = dict.fromkeys(THREAD_VARIABLES, str(cores))
    # a log is no terminal, and its lines should be there when the job is killed
    return {"PYTHONPATH": found, "PYTHONUNBUFFERED": "1", CORES_VARIABLE: str(cores), **threads}
