"""metrics.jsonl: one JSON object per update, append-only. The truth that every other sink is a copy of.

Lines are strict JSON: NaN and infinity become `null` (JSON has neither, and pandas reads null back as NaN). Whole
numbers are written as integers, others with 7 significant digits: float32 holds no more. Each row reaches the
operating system in one write, so that a killed run leaves at most one torn line, the last; `read_jsonl` skips it,
and `truncate` removes it on resume.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from parl_cli.errors import CheckpointError, ParlError, WriteError
from parl_cli.types import Metrics

_EXACT_INT = 2**53  # above it a float no longer holds every whole number


class JsonlSink:
    """Append rows to a JSON-lines file.

    Args:
        path: the file; made on construction if it is missing, so that an unwritable folder is found early.

    Raises:
        ParlError: the file cannot be opened, or later written (a full disk). The run must not go on without it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: FileIO | None = self._open()

    def write(self, row: Metrics) -> None:
        """Append one row and hand it to the operating system."""
        if self._file is None:
            raise ParlError(f"cannot write {self.path}: it is closed")
        line, begun = encode_row(row), self._file.tell()
        try:
            while line:  # an almost full disk takes part of a line
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # the next row, if there is room again, begins a line of its own
                self._file.truncate(begun)
            raise self._failed(error) from error

    def flush(self) -> None:
        """Nothing waits: every row is flushed as it is written."""

    def offset(self) -> int:
        """The file's length in bytes, after its last complete line, synced to disk.

        A checkpoint stores it. The sync keeps the file from ending up shorter than a checkpoint that survived.
        """
        if self._file is None:
            return self.path.stat().st_size
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        return self._file.tell()

    def check(self, offset: object) -> None:
        """Refuse an `offset` from a checkpoint that is no line's end in this file.

        Raises:
            CheckpointError: with the way out.
        """
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise CheckpointError(f"metrics offset {offset!r} in the checkpoint: must be a whole number, at least 0")
        with self.path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            if offset > length:
                raise CheckpointError(
                    f"{self.path} has {length} bytes, the checkpoint was written at {offset}; "
                    "bring the whole file back, or start a new run with init_from=CHECKPOINT"
                )
            if offset > 0:
                file.seek(offset - 1)
                if file.read(1) != b"\n":
                    raise CheckpointError(
                        f"{self.path} has no line end at byte {offset}, where the checkpoint was written; "
                        "bring the unedited file back, or start a new run with init_from=CHECKPOINT"
                    )

    def truncate(self, offset: object) -> None:
        """Cut the file back to an `offset` from a checkpoint, and go on from there.

        Raises:
            CheckpointError: as `check`.
        """
        self.check(offset)
        assert isinstance(offset, int)
        self.close()
        os.truncate(self.path, offset)
        self._file = self._open()

    def close(self) -> None:
        """Close the file; `truncate` opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _open(self) -> FileIO:
        try:
            # Unbuffered: what a full disk refused must not be tried again, and fail again, on close.
            file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._failed(error) from error
        file.seek(0, os.SEEK_END)  # some systems report 0 from tell() until the first append
        return file

    def _failed(self, error: OSError) -> WriteError:
        return WriteError(self.path, error)


def encode_row(row: Metrics) -> bytes:
    """One row as a line of strict JSON, newline included."""
    plain = {name: _compact(value) for name, value in row.items()}
    return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def read_jsonl(path: str | os.PathLike[str], end: int | None = None) -> Iterator[Metrics]:
    """The rows of a metrics.jsonl, also while it is being written or after its run was killed.

    `null` is read as NaN. A torn last line (no newline, or not JSON) is left out.

    Args:
        path: the file; opened for the first row, and read as far as rows are asked for.
        end: bytes from its beginning, to a line's end, behind which nothing is read; None: the whole file.

    Raises:
        ParlError: a damaged line that is not the last one; names the line.
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as file:
        damaged: int | None = None
        left = math.inf if end is None else end
        for number, line in enumerate(file, start=1):
            if left <= 0:
                return
            left -= len(line)
            if damaged is not None:
                raise ParlError(f"{os.fspath(path)}: line {damaged} is not a JSON object of numbers; remove it")
            row = decode_row(line)
            if row is None:
                damaged = number
            else:
                yield row


def decode_row(line: bytes) -> Metrics | None:
    """One line as a row; None if it is torn or no row. `null` is read as NaN."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(value is None or type(value) in (int, float) for value in row.values()):
        return None
    return {name: math.nan if value is None else value for name, value in row.items()}


def _compact(value: float) -> float | int | None:
    value = float(value)
    if not math.isfinite(value):
        return None
    if value.is_integer() and abs(value) < _EXACT_INT:
        return int(value)
    return float(f"{value:.7g}")
