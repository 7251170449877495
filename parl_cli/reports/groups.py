"""Which runs are compared with which: tasks (envs), contenders in each, and a refusal of what is not comparable.

A *task* is one env; a *contender* is what is judged on it, by default an algorithm; its runs may differ in the seed
alone. Two things are refused unless the user allows them: contenders of one task that had another env or another
budget, and runs of one contender that had other settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from parl_cli.errors import ConfigError, suggest
from parl_cli.reports.load import Run, plain_text, shown
from parl_cli.reports.status import started, status

# What does not change what is learned, or only as the seed does.
_IRRELEVANT = ("name", "seed", "device", "num_threads", "plugins", "vectorizer", "logger", "checkpoint", "eval")
_IRRELEVANT_ACTORS = ("actors.num_actors", "actors.device")

_SAME_IN_A_TASK = ("env", "total_steps")
_SPECIAL = ("seed", "unfinished")  # what `allow` takes besides config keys


@dataclass(frozen=True)
class Contender:
    """Runs of one setting with different seeds."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Task:
    """One env, and who is compared on it."""

    name: str
    contenders: tuple[Contender, ...]


def group(
    runs: Sequence[Run], by: Sequence[str], allow: Sequence[str] = (), *, same_steps: bool = False
) -> tuple[list[Task], list[str]]:
    """Sort runs into tasks and contenders.

    Args:
        runs: at least one.
        by: config keys; runs with the same values belong together. Keys below `env` tell tasks apart, the others
            contenders.
        allow: config keys (`algo` stands for all below it) in which runs may differ; `seed` lets a repeated seed
            count as another run; `unfinished` takes in runs that are not done.
        same_steps: the runs are compared at the same env steps, whatever their budgets.

    Returns:
        The tasks, and a line for each thing that was left out.

    Raises:
        ConfigError: an unknown key, nothing left, or runs that cannot be compared.
    """
    known = {key for run in runs for key in run.config}
    _check_keys("by", by, known)
    _check_keys("allow", allow, known | {key.rpartition(".")[0] for key in known} | set(_SPECIAL))
    notes: list[str] = []
    runs = _finished(runs, allow, notes)
    free = [*allow, *by, *(["total_steps"] if same_steps else [])]
    tasks = []
    for task_name, of_task in _split(runs, [key for key in by if key.startswith("env.")], _task_name):
        _check_task(task_name, of_task, free)
        contenders = []
        for name, of_one in _split(of_task, [key for key in by if not key.startswith("env.")], _contender_name):
            _check_contender(f"{name} on {task_name}", of_one, free, by)
            contenders.append(Contender(name, tuple(_one_per_seed(of_one, allow, notes))))
        tasks.append(Task(task_name, tuple(contenders)))
    return tasks, notes


def is_done(run: Run) -> bool:
    """Whether it ran to the end of its budget, or to where it was told to stop."""
    said = status(run)
    if said == "unknown":
        return run.last_row().get("env_steps", 0) >= run.config.get("total_steps", 0)
    return said == "finished"


def _finished(runs: Sequence[Run], allow: Sequence[str], notes: list[str]) -> list[Run]:
    open_runs = [] if "unfinished" in allow else [run for run in runs if not is_done(run)]
    done = [run for run in runs if run not in open_runs]
    if not done:
        raise ConfigError(
            f"runs: none of {_plural(len(runs), 'run')} is finished ({_like(open_runs)}); allow=[unfinished] takes them"
        )
    notes += [f"left out, not finished ({status(run)}): {shown(run.path)}" for run in open_runs]
    return done


def _one_per_seed(runs: Sequence[Run], allow: Sequence[str], notes: list[str]) -> list[Run]:
    if _is_free("seed", allow):
        return list(runs)
    settings = _differing(runs, _counts)  # those that are allowed to
    newest: dict[tuple[str | None, ...], Run] = {}
    for run in sorted(runs, key=started):
        same = tuple(_value(run, key) for key in ("seed", *settings))
        if same in newest:
            notes.append(f"left out, a newer run has the same settings and seed={same[0]}: {shown(newest[same].path)}")
        newest[same] = run
    return [run for run in runs if run in newest.values()]


def _check_task(name: str, runs: Sequence[Run], free: Sequence[str]) -> None:
    for key in _differing(runs, lambda key: key.split(".")[0] in _SAME_IN_A_TASK and not _is_free(key, free)):
        remedy = f"add {key} to by=[…], choose" if key.startswith("env.") else "compare at steps=N, choose"
        raise ConfigError(
            f"runs on {name} are not comparable: {_values(runs, key)}; {remedy} with where.{key}=…, or allow=[{key}]"
        )


def _check_contender(name: str, runs: Sequence[Run], free: Sequence[str], by: Sequence[str]) -> None:
    keys = _differing(runs, lambda key: _counts(key) and not _is_free(key, free))
    if keys:
        others = f" (and in {', '.join(keys[1:4])}{' …' if len(keys) > 4 else ''})" if len(keys) > 1 else ""
        raise ConfigError(
            f"{name} mixes runs of different settings: {_values(runs, keys[0])}{others}; tell them apart with "
            f"by=[{','.join([*by, keys[0]])}], choose with where.{keys[0]}=…, or allow=[{keys[0]}]"
        )


def _counts(key: str) -> bool:
    """Whether a key changes what is learned, other than by chance."""
    return key.split(".")[0] not in _IRRELEVANT and key not in _IRRELEVANT_ACTORS


def _differing(runs: Sequence[Run], counts: Callable[[str], bool]) -> list[str]:
    """The keys that count and have several values."""
    keys = dict.fromkeys(key for run in runs for key in run.config if counts(key))
    return [key for key in keys if len({_value(run, key) for run in runs} - {None}) > 1]


def _value(run: Run, key: str) -> str | None:
    """As it is typed. None where the run, of another version, has no such key; in open mappings that is a value."""
    if key not in run.config:
        return "absent" if ".kwargs." in key or key.startswith("policies.") else None
    return plain_text(run.config[key])


def _values(runs: Sequence[Run], key: str) -> str:
    by_value: dict[str, list[Run]] = {}
    for run in runs:
        value = _value(run, key)
        if value is not None:
            by_value.setdefault(value, []).append(run)
    shown_values = [f"{key}={value} ({_like(of_value)})" for value, of_value in list(by_value.items())[:3]]
    return " and ".join(shown_values) + (" …" if len(by_value) > 3 else "")


def _like(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return shown(runs[0].path)
    return f"{_plural(len(runs), 'run')}, like {shown(runs[0].path)}"


def _split(runs: Sequence[Run], keys: Sequence[str], name: Any) -> list[tuple[str, list[Run]]]:
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(plain_text(run.config.get(key)) for key in keys), []).append(run)
    return [(name(keys, values, groups[values]), groups[values]) for values in sorted(groups, key=_natural)]


def _natural(values: Iterable[str]) -> list[tuple[int, float, str]]:
    """To sort by: numbers by their size, before text."""
    found = []
    for value in values:
        try:
            found.append((0, float(value), ""))
        except ValueError:
            found.append((1, 0.0, value))
    return found


def _task_name(keys: Sequence[str], values: Sequence[str], runs: Sequence[Run]) -> str:
    if keys:
        return _labels(keys, values)
    names = {plain_text(run.config.get("env.name")) for run in runs}
    return names.pop() if len(names) == 1 else "several envs"


def _contender_name(keys: Sequence[str], values: Sequence[str], runs: Sequence[Run]) -> str:
    return _labels(keys, values) if keys else "all runs"


def _labels(keys: Sequence[str], values: Sequence[str]) -> str:
    """`ppo`, `ppo learning_rate=0.001`: a name needs no key."""
    parts = [key.split(".")[-1] for key in keys]
    return " ".join(value if part == "name" else f"{part}={value}" for part, value in zip(parts, values, strict=True))


def _check_keys(option: str, keys: Sequence[str], known: Iterable[str]) -> None:
    known = set(known) - {""}
    for key in keys:
        if key not in known:
            raise ConfigError(f"{option}=[{key}]: no run has such a key; {suggest(key, known)}")


def _is_free(key: str, free: Iterable[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in free)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
