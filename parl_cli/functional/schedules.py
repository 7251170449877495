"""Values that change over a run: learning rate, clip range, entropy coefficient.

A schedule is a pure function of `progress`, the share of the budget used; it holds no state, so there is nothing to
save and a resumed run continues it exactly.
"""

from __future__ import annotations

import math

from parl_cli.errors import ConfigError, suggest

KINDS = ("constant", "linear", "cosine")


def schedule(kind: str, start: float, end: float, progress: float) -> float:
    """The value at `progress`.

    Args:
        kind: `constant` (always `start`), `linear`, or `cosine` (half a period: flat at both ends, as in Loshchilov &
            Hutter 2017, arXiv:1608.03983, eq. 5, without restarts).
        start: the value at progress 0.
        end: the value at progress 1, met exactly.
        progress: share of the budget used; clamped to [0, 1], for a budget is rounded up to whole updates.

    Raises:
        ConfigError: an unknown kind.
    """
    progress = min(max(progress, 0.0), 1.0)
    if kind == "constant":
        return start
    if kind == "linear":
        rest = 1.0 - progress
    elif kind == "cosine":
        rest = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        raise ConfigError(f"schedule={kind}: no such schedule; {suggest(kind, KINDS)}")
    return rest * start + (1.0 - rest) * end
