"""A sink: the best mean return so far, in a text file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from parl_cli.config import option
from parl_cli.metrics.sinks import RunRecord
from parl_cli.types import Metrics


class BestReturn:
    """Rewrites `best.txt` in the run folder whenever the mean return is the best so far."""

    summary = "the best mean return so far, in a text file"

    @dataclass(frozen=True)
    class Config:
        """Options."""

        digits: int = option(1, "digits behind the point", ge=0, le=9)

    @classmethod
    def check(cls, options: Config) -> None:
        """It works everywhere."""

    @classmethod
    def make(cls, run: RunRecord, options: Config) -> BestReturn:
        return cls(run.folder / "best.txt", options.digits)

    def __init__(self, path: Path, digits: int) -> None:
        self.path, self.digits = path, digits
        self.best = -math.inf

    def write(self, row: Metrics) -> None:
        value = row.get("episode/return_mean", -math.inf)
        if value > self.best:
            self.best = value
            self.path.write_text(f"{value:.{self.digits}f}\n")

    def resume(self, history: Iterable[Metrics]) -> None:
        for row in history:
            self.write(row)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""
