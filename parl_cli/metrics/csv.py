"""metrics.csv: the same rows as a table, for spreadsheets and `pandas.read_csv`.

Columns may appear late (the first evaluation brings its own): then the table is rewritten with the wider header,
under a temporary name that replaces the old file in one step. A value that a row lacks is an empty cell; NaN and
infinity are written as `nan` and `inf`. On resume the table is made anew from the rows that metrics.jsonl keeps.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from parl_cli.metrics.sinks import NoOptions, RunRecord
from parl_cli.types import Metrics


class CsvSink:
    """Append rows to a CSV file whose columns may grow.

    Args:
        path: the file; made by the first row. A table that is already there is continued, with its columns.
    """

    Config = NoOptions
    summary = "metrics.csv, a table for spreadsheets"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._columns: list[str] = []
        self._file: TextIO | None = None
        self._writer: Any = None

    @classmethod
    def check(cls, options: NoOptions) -> None:
        """It works everywhere."""

    @classmethod
    def make(cls, run: RunRecord, options: NoOptions) -> CsvSink:
        """The sink of a run."""
        return cls(run.folder / "metrics.csv")

    def write(self, row: Metrics) -> None:
        """Append one row; new keys become columns on the right."""
        if self._file is None:
            self._columns = _header(self.path)
            self._open()
        new = [name for name in row if name not in self._columns]
        if new:
            self._widen(new)
        self._write(row)

    def resume(self, history: Iterable[Metrics]) -> None:
        """Replace the table by `history`, and go on after it."""
        self.close()
        rows = list(history)
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        with _replacing(self.path) as file:
            writer = csv.writer(file, lineterminator="\n")
            if self._columns:
                writer.writerow(self._columns)
            writer.writerows([_cell(row, name) for name in self._columns] for row in rows)
        self._open()

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush and close; a later `write` opens the file again."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _open(self) -> None:
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def _write(self, row: Metrics) -> None:
        self._writer.writerow([_cell(row, name) for name in self._columns])
        self.flush()

    def _widen(self, new: Sequence[str]) -> None:
        self.close()  # Windows replaces no open file
        self._columns += new
        with _replacing(self.path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self._columns)
            with self.path.open(newline="", encoding="utf-8") as old:
                for cells in list(csv.reader(old))[1:]:
                    writer.writerow(cells + [""] * (len(self._columns) - len(cells)))
        self._open()


class _replacing:  # noqa: N801  # reads as a verb in `with`
    """A text file that takes the place of `path` when the block ends well, and is removed when it does not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> TextIO:
        self.file = self.temporary.open("w", newline="", encoding="utf-8")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.file.close()
            if kind is None:
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def _header(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def _cell(row: Metrics, name: str) -> str:
    if name not in row:
        return ""
    value = float(row[name])
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else f"{value:.7g}"
