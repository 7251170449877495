"""Search spaces: from `algo.learning_rate: tag(log, interval(1e-4, 1e-2))` to what a sampler proposes from.

The grammar is that of the command line: `interval(low, high)`, with `tag(log, …)` for orders of magnitude;
`range(start, stop, step)`; `choice(a, b)` or `a,b`. Whether an interval means whole numbers is known from the key.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, QuotedString, RangeSweep

from parl_cli.composition.compose import OPEN_IN_A_JOB
from parl_cli.composition.messages import translated
from parl_cli.errors import ConfigError, suggest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_DIGITS = 6  # of a proposed number: what is typed again is what was trained


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def distribution(self) -> BaseDistribution:
        """For Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, proposed: Any) -> Any:
        """What goes into the config for a proposal."""
        if self.whole:
            return int(proposed)
        return min(max(float(f"{proposed:.{_DIGITS}g}"), self.low), self.high)

    def corners(self) -> list[Any]:
        """Values that show whether the whole dimension is valid."""
        return [self.value(self.low), self.value(self.high)]


@dataclass(frozen=True)
class Choice:
    """One of several values, of any type."""

    values: tuple[Any, ...]

    def distribution(self) -> BaseDistribution:
        """For Optuna, which knows no lists: they go as text."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([_name(value) for value in self.values])

    def value(self, proposed: Any) -> Any:
        """What goes into the config for a proposal."""
        return next(value for value in self.values if _name(value) == proposed)

    def corners(self) -> list[Any]:
        """Every value."""
        return list(self.values)


Dimension = Interval | Choice


def parse_space(space: Mapping[str, str | None], base: Mapping[str, Any]) -> dict[str, Dimension]:
    """The dimensions of a search, by key.

    Args:
        space: from keys to where to look; a key with null is left alone.
        base: the config that is searched around, typed.

    Raises:
        ConfigError: nothing to search, an unknown key, an empty range, or one that does not fit the key.
    """
    searched = {key: text for key, text in space.items() if text is not None}
    if not searched:
        raise ConfigError(
            "sweep.space: nothing to search; choose a space, like sweep=ppo, or type one, like "
            "'algo.gamma=interval(0.9,0.999)'"
        )
    return {key: _dimension(key, text, _present(key, base)) for key, text in searched.items()}


def with_value(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a config with one value changed, by its dotted key."""
    changed = copy.deepcopy(dict(values))
    *path, last = key.split(".")
    place = changed
    for name in path:
        place = place.setdefault(name, {})
    place[last] = value
    return changed


def override(key: str, value: Any) -> str:
    """`key=value` as one would type it."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _dimension(key: str, text: str, present: Any) -> Dimension:
    shown = f"sweep.space: {key}={text}"
    with translated():
        [parsed] = OverridesParser.create().parse_overrides([f"{key}={text}"])
    where = parsed.value()
    if isinstance(where, ChoiceSweep | RangeSweep) and where.tags:
        raise ConfigError(f"{shown}: tags are for interval(…), as in tag(log, interval(low, high))")
    if isinstance(where, ChoiceSweep):
        return Choice(tuple(_plain(value) for value in where.list))
    if isinstance(where, RangeSweep):
        steps = list(where.range())
        if not steps:
            raise ConfigError(f"{shown}: an empty range; write range(start, stop) with start below stop")
        whole = all(isinstance(value, int) for value in steps)
        low, high = sorted((steps[0], steps[-1]))
        return Interval(low, high, abs(where.step), whole=whole)
    if not isinstance(where, IntervalSweep):
        raise ConfigError(f"{shown}: one value is nothing to search; write interval(low,high), or choice(a,b)")
    return _interval(shown, where, present)


def _interval(shown: str, where: IntervalSweep, present: Any) -> Interval:
    assert where.start is not None
    assert where.end is not None
    low, high, log = where.start, where.end, "log" in where.tags
    if isinstance(present, bool | str | list):
        raise ConfigError(f"{shown}: the key is no number; write choice(a,b)")
    whole = isinstance(present, int) or isinstance(low, int)
    unknown = where.tags - {"log"}
    if unknown:
        raise ConfigError(f"{shown}: unknown tag {', '.join(sorted(unknown))}; there is log")
    if not low < high:
        raise ConfigError(f"{shown}: an empty range, {low} is not below {high}")
    if log and low <= 0:
        raise ConfigError(f"{shown}: on a log scale a range begins above 0, not at {low}")
    if whole and not (float(low).is_integer() and float(high).is_integer()):
        raise ConfigError(f"{shown}: the key takes whole numbers, so must its range")
    return Interval(low, high, log=log, whole=whole)


def _present(key: str, base: Mapping[str, Any]) -> Any:
    """The value that the config has; None in an open group that has no such key."""
    known = dict(_leaves(base))
    if key in known:
        return known[key]
    of_a_policy = re.fullmatch(r"policies\.\d+\.(.+)", key)
    if of_a_policy:
        return _present(of_a_policy[1], base)  # what holds for all that have no other
    groups = [path for path in known if path.startswith(f"{key}.")]
    if groups:
        raise ConfigError(f"sweep.space: {key} is a group of keys; search over some of them, like {groups[0]}")
    above = [path for path in known if key.startswith(f"{path}.")]
    if above:
        raise ConfigError(f"sweep.space: {key}: {above[0]}={known[above[0]]} is no group of keys")
    if not key.startswith(OPEN_IN_A_JOB):
        raise ConfigError(f"sweep.space: unknown key {key}; {suggest(key, known)}")
    return None


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key not in ("name", "plugins"):  # they say what there is, not how it is set
            yield f"{prefix}{key}", value


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _name(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)
