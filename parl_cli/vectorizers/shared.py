"""Memory that a vectorizer shares with its workers and that nobody can leave behind.

On POSIX it is a file that has no name (in /dev/shm on Linux, in the temporary folder elsewhere), passed to the workers
as an open descriptor over their pipe. The kernel frees it when the last process that maps it is gone, however that
process ends: there is nothing to unlink, sweep or track. `multiprocessing.shared_memory` has names, so a killed
parent leaves them behind, and its resource tracker must be kept in step with every attach.

On Windows it is a named section, which the system frees in the same way.
"""

from __future__ import annotations

import mmap
import os
import secrets
import socket
import sys
import tempfile
from multiprocessing.connection import Connection

from parl_cli.errors import ConfigError

_FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None  # None: the system's temporary folder


class SharedMemory:
    """A block of zeroed memory that can be sent to other processes.

    Args:
        size: bytes.
        purpose: what it is for, for the error.
        way_out: what needs less of it.

    Raises:
        ConfigError: there is not so much of it.
    """

    def __init__(
        self, size: int, purpose: str = "observations", way_out: str = "lower num_envs, use vectorizer=thread"
    ) -> None:
        self.size = size
        self._words = purpose, way_out
        if sys.platform == "win32":
            self._name = f"parl-{os.getpid()}-{secrets.token_hex(8)}"
            self.buffer = mmap.mmap(-1, size, tagname=self._name)
            return
        try:
            self._file = tempfile.TemporaryFile(dir=_FOLDER)  # noqa: SIM115 — lives as long as workers may start
        except OSError as error:
            raise self._refusal(error) from None
        try:
            # reserve it now: memory that runs out later is a bus error in the middle of a step
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                os.ftruncate(self._file.fileno(), size)
            self.buffer = mmap.mmap(self._file.fileno(), size)
        except OSError as error:
            self._file.close()
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> ConfigError:
        folder = _FOLDER or "the temporary folder"
        purpose, way_out = self._words
        return ConfigError(
            f"{self.size / 2**20:,.1f} MB of shared memory for {purpose}: {folder} cannot hold it "
            f"({error.strerror}); {way_out}, or give the container a larger --shm-size"
        )

    def send(self, connection: Connection, *more: int) -> None:
        """Give it to the process at the other end, which calls `receive`; before it has, the file must not be closed.

        `multiprocessing.reduction` would wait for a byte that says so, on macOS, in the same pipe as the answers.

        Args:
            connection: to that process.
            *more: descriptors that go with it, on POSIX.

        """
        if sys.platform == "win32":
            connection.send_bytes(self._name.encode())
            return
        with _as_socket(connection) as pipe:
            socket.send_fds(pipe, [b"m"], [self._file.fileno(), *more])

    def close_file(self) -> None:
        """Forget the descriptor; the memory stays for as long as something maps it. May be called again."""
        if sys.platform != "win32":
            self._file.close()


def receive(connection: Connection, size: int) -> mmap.mmap:
    """Map what the other end sends with `SharedMemory.send`."""
    return receive_with(connection, size, 0)[0]


def receive_with(connection: Connection, size: int, num_more: int) -> tuple[mmap.mmap, list[int]]:
    """Map what the other end sends with `SharedMemory.send`, and take so many descriptors that come with it."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size, tagname=connection.recv_bytes().decode()), []
    with _as_socket(connection) as pipe:
        _, descriptors, _, _ = socket.recv_fds(pipe, 1, 1 + num_more)
    if not descriptors:
        raise EOFError
    memory, *more = descriptors
    for descriptor in more:
        os.set_inheritable(descriptor, False)
    try:
        return mmap.mmap(memory, size), more
    finally:
        os.close(memory)


def _as_socket(connection: Connection) -> socket.socket:
    return socket.socket(fileno=os.dup(connection.fileno()))
