"""Where the time goes: seconds per part of the loop, measured at a fraction of a microsecond per use."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from parl_cli.types import Metrics

PARTS = ("env", "act", "learn", "wait")  # always in the row; `other` is what they leave


class Stopwatch:
    """Accumulate seconds per part.

    Parts must not overlap: a part timed inside another is counted twice. Not for use by several threads at once;
    give each its own and `merge` what they `take`.

    ```python
    watch = Stopwatch()
    with watch("env"):
        step = vectorizer.recv()
    row |= watch.shares(total_s)
    ```
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._blocks: dict[str, _Block] = {}

    def __call__(self, part: str) -> _Block:
        """A context manager that times its block. One object per part: do not nest a part in itself."""
        try:
            return self._blocks[part]
        except KeyError:
            self.seconds.setdefault(part, 0.0)
            block = self._blocks[part] = _Block(self, part)
            return block

    def add(self, part: str, seconds: float) -> None:
        """Add time that was measured elsewhere."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def merge(self, seconds: Mapping[str, float]) -> None:
        """Add what another watch took, from another thread or process."""
        for part, value in seconds.items():
            self.add(part, value)

    def take(self) -> dict[str, float]:
        """The seconds so far; the watch starts again from zero."""
        taken, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return taken

    def shares(self, total_s: float) -> Metrics:
        """The row's `time/…_share` values; they sum to 1.

        Args:
            total_s: wall time of the interval. Where the parts exceed it (several actors merged into one watch),
                they are shares of their own sum, and nothing is left for `other`.
        """
        known = sum(self.seconds.values())
        whole = max(total_s, known)
        if whole <= 0.0:
            return {**{f"time/{part}_share": 0.0 for part in self.seconds}, "time/other_share": 1.0}
        shares = {f"time/{part}_share": value / whole for part, value in self.seconds.items()}
        shares["time/other_share"] = max(0.0, 1.0 - sum(shares.values()))
        return shares


class _Block:
    __slots__ = ("_part", "_start", "_watch")

    def __init__(self, watch: Stopwatch, part: str) -> None:
        self._watch, self._part, self._start = watch, part, 0.0

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._watch.seconds[self._part] += perf_counter() - self._start
