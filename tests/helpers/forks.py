"""Processes of `parl` that start at once: forked from one that has imported what `parl` needs, and done nothing else.

A fresh interpreter needs seconds of CPU time to import torch, more than the rest of a tiny run. What is forked is still
a process of its own: with a working directory, environment, outputs, signals and exit code of its own, and whatever it
starts (workers, the jobs of a sweep) is started as always. What a fresh interpreter itself does is tested where it
counts: `parl_cli.sweeps.child`, an installed wheel, scripts, and the commands that must not import torch.

The server forks an overseer for each process, which tells its pid and how it ended; it is here as a module that runs
(`python -P -m tests.helpers.forks`), and the tests' side below.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]

# What a training imports in the end. Importing these must start no thread and no process.
_PRELOADED = [
    "numpy",
    "torch",
    "safetensors.torch",
    "gymnasium.wrappers",
    "rich.live",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "hydra.core.plugins",
    "hydra._internal.hydra",
    "parl_cli.commands._job",
    "parl_cli.commands.train",
    "parl_cli.commands.resume",
    "parl_cli.commands.eval",
    "parl_cli.commands.bench",
    "parl_cli.jobs",
    "parl_cli.sweeps.run",
    "parl_cli.algos.ppo",
    "parl_cli.policies.actor_critic",
    "parl_cli.policies.fused",
]


# ---- the server ----


def serve(control: socket.socket) -> None:
    """Fork for every request that comes, until the tests' process is gone; in a fork, return when `parl` has run."""
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # what is shared stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the overseers
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1, 3)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _oversee(socket.socket(fileno=fds[0]), fds[1], fds[2])
            return
        for fd in fds:
            os.close(fd)


def _oversee(channel: socket.socket, out: int, err: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(_receive(channel, *array.array("i", _receive(channel, 4))))
    pid = os.fork()
    if pid == 0:
        channel.close()
        _become_parl(request, out, err)
        return
    os.close(out)
    os.close(err)
    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
        channel.sendall(array.array("i", [pid]))
        channel.sendall(array.array("i", [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]))
    os._exit(0)


def _become_parl(request: dict[str, Any], out: int, err: int) -> None:
    """As `python -P -m parl_cli` would, with another environment and other outputs."""
    if request["own_session"]:
        os.setsid()
    for fd, standard in ((out, 1), (err, 2)):
        os.dup2(fd, standard)
        os.close(fd)
    before = len(os.environ["PYTHONPATH"].split(os.pathsep))
    sys.path[:before] = request["env"]["PYTHONPATH"].split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    random.seed()
    importlib.import_module("numpy").random.seed()  # forks do not share their luck
    sys.argv = ["parl", *request["args"]]
    try:
        runpy.run_module("parl_cli", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        _leave(stop.code)


def _leave(code: int) -> NoReturn:
    """What an interpreter does when it ends, but for taking modules apart: that would copy all that the forks share."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _receive(channel: socket.socket, num_bytes: int) -> bytes:
    data = channel.recv(num_bytes, socket.MSG_WAITALL) if num_bytes else b""
    if len(data) < num_bytes:
        raise EOFError("the other side is gone")
    return data


# ---- the tests' side ----


@functools.cache
def _server() -> socket.socket:
    from tests.helpers.cli import environment

    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-P", "-m", "tests.helpers.forks", str(theirs.fileno())]
        process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], cwd=ROOT
        )

    def stop() -> None:
        ours.close()
        process.wait()

    atexit.register(stop)
    return ours


class Fork:
    """A `parl` process, with the face of `subprocess.Popen` as far as tests use it. Its outputs are text.

    Args:
        args: what stands after `parl`.
        cwd: where it runs.
        env: its whole environment, with a PYTHONPATH.
        own_session: whether it leads a session and a process group of its own, as the job of a shell does.
    """

    def __init__(self, args: Sequence[str], cwd: Path, env: Mapping[str, str], own_session: bool = False) -> None:
        self.args = ["parl", *args]
        self.returncode: int | None = None
        self.outputs = ["", ""]  # so far: standard output and standard error
        self._channel, theirs = socket.socketpair()
        pipes = [os.pipe(), os.pipe()]
        socket.send_fds(_server(), [b"f"], [theirs.fileno(), *(write for _, write in pipes)])
        theirs.close()
        for _, write in pipes:
            os.close(write)
        request = {"args": list(args), "cwd": str(cwd), "env": dict(env), "own_session": own_session}
        data = json.dumps(request).encode()
        self._channel.sendall(array.array("i", [len(data)]).tobytes() + data)
        (self.pid,) = array.array("i", _receive(self._channel, 4))
        self._readers = [threading.Thread(target=self._read, args=(k, pipes[k][0]), daemon=True) for k in (0, 1)]
        for reader in self._readers:
            reader.start()

    def poll(self, timeout_s: float = 0.0) -> int | None:
        """Its exit code once it has ended, minus the signal's number if one ended it; else None."""
        if self.returncode is None and select.select([self._channel], [], [], max(timeout_s, 0.0))[0]:
            (self.returncode,) = array.array("i", _receive(self._channel, 4))
            self._channel.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """At once."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 30) -> int:
        """Its exit code, once it has ended, whoever else can still write to its outputs.

        Raises:
            subprocess.TimeoutExpired: it takes longer than `timeout` seconds.
        """
        if (code := self.poll(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Both outputs, once it has ended and nobody else can write to them.

        Raises:
            subprocess.TimeoutExpired: it takes longer than `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        self.wait(timeout)
        for reader in self._readers:
            reader.join(max(deadline - time.monotonic(), 0.0))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        return self.outputs[0], self.outputs[1]

    def _read(self, which: int, fd: int) -> None:
        with open(fd) as pipe:
            for line in pipe:
                self.outputs[which] += line


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
