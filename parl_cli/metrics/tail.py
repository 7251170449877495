"""The rows of a metrics.jsonl that is being written, as they come."""

from __future__ import annotations

from pathlib import Path

from parl_cli.metrics.jsonl import decode_row
from parl_cli.types import Metrics


class Tail:
    """Reads what was added since the last call; never waits.

    Args:
        path: the file; it may not be there yet, and may be cut back by a resume.

    Attributes:
        was_cut: the last call found the file shorter than the one before had left it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.was_cut = False
        self._offset = 0

    def rows(self) -> list[Metrics]:
        """The whole lines that are new. After a cut it goes on at the new end."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                self.was_cut = size < self._offset
                self._offset = file.seek(min(self._offset, size))
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [row for row in map(decode_row, whole.splitlines(keepends=True)) if row is not None]
