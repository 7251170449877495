"""Typed configuration: YAML holds values, a frozen dataclass holds types, ranges and docs.

`parse` turns a plain mapping (from Hydra, or from a checkpoint) into a dataclass and refuses everything that does
not fit, with the full key, the value, the rule and the way out. Every component keeps its own `Config` dataclass
beside its class (`PPO.Config` in `algos/ppo.py`); this file holds the parser and the parts that belong to no
component. It imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from parl_cli import registry
from parl_cli.errors import ConfigError, UnknownKeyError, suggest

T = TypeVar("T")

_RANGE_RULES = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "greater than"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "less than"),
}

COMPONENTS = ("env", "vectorizer", "policy", "actors", "algo")


def option(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A dataclass field with its documentation and its range (for numbers, or each number of a tuple)."""
    metadata = {"doc": doc, "ge": ge, "gt": gt, "le": le, "lt": lt}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(doc: str) -> Any:
    """A dataclass field that has no default: the user must say it."""
    return dataclasses.field(metadata={"doc": doc})


def parse(cls: type[T], values: Any, key: str = "") -> T:
    """Build the dataclass `cls` from a mapping, checking keys, types and ranges.

    Args:
        cls: a dataclass whose fields are made by `option`.
        values: a mapping of plain values (no interpolations left).
        key: the dotted path of `values` in the whole config, for messages.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range, NaN or infinity.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{key}={_show(values)}: must be a group of keys, not {_kind(values)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise UnknownKeyError(_join(key, str(name)), suggest(str(name), fields))
    parsed = {}
    for name, field in fields.items():
        if name in values:
            path = _join(key, name)
            parsed[name] = _convert(hints[name], values[name], path)
            _check_range(parsed[name], field.metadata, path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"missing key {_join(key, name)}: {field.metadata.get('doc', 'it has no default')}")
    return cls(**parsed)


def to_plain(config: Any) -> Any:
    """A parsed config as plain dicts, lists and scalars, ready for JSON or YAML."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(k): to_plain(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(v) for v in config]
    return config


@dataclass(frozen=True)
class EnvConfig:
    """One environment: what is true of it, nothing about how it is trained."""

    name: str = option("gym", "the config's own name, as typed after env=")
    adapter: str = option("gymnasium", "the family of environments that makes it")
    id: str | None = option(None, "Gymnasium id, e.g. CartPole-v1")
    kwargs: dict[str, Any] = option({}, "keyword arguments for the environment's constructor")
    wrappers: list[Any] = option([], "wrappers, first one innermost: a name, or {name: {option: value}}")
    own_wrappers: list[Any] = option([], "wrappers that make the env what it is, inside of env.wrappers")
    max_episode_steps: int | None = option(None, "time limit in env steps; null keeps the env's own", ge=1)
    extra: str | None = option(None, "the pip extra that brings this environment's dependencies")


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and how many are kept."""

    every_steps: int | None = option(50_000, "env steps between checkpoints; null: only at the end", ge=1)
    keep: int = option(2, "how many of the latest are kept (the best is kept besides)", ge=1)
    env: Literal["replay", "reset"] = option(
        "replay", "on resume, replay unfinished episodes (exact) or reset them (for irreproducible envs)"
    )


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training, in the training process, on envs and seeds of its own."""

    every_steps: int | None = option(None, "env steps between evaluations; null: none", ge=1)
    episodes: int = option(10, "episodes per evaluation", ge=1)
    deterministic: bool = option(True, "act by the distribution's mode, not by sampling")
    max_episode_steps: int | None = option(None, "time limit of its episodes in env steps; null: the env's own", ge=1)
    target_return: float | None = option(None, "stop training once an evaluation's mean return reaches it")


@dataclass(frozen=True)
class LoggerConfig:
    """Where metrics go. metrics.jsonl is always written: it is the truth that the sinks are copies of."""

    sinks: Any = option({"csv": {}}, "copies of metrics.jsonl, name: {option: value}; null takes one away")
    live: bool = option(True, "show the live panel when the output is a terminal")
    plot: bool = option(True, "draw learning_curve.png at the end")
    every_steps: int | None = option(None, "env steps between metric rows; null: every update", ge=1)


@dataclass(frozen=True)
class DebugConfig:
    """Faults made on purpose, to see what they do."""

    policy_lag: int = option(0, "act with the weights of this many updates ago; needs actors=inline", ge=0)


@dataclass(frozen=True)
class TrainConfig:
    """Everything `parl train` needs, one field per top-level key of conf/train.yaml."""

    name: str
    seed: int = option(1, "seed of the run; every other seed is derived from it", ge=0, lt=2**63)
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps")
    total_steps: int = option(100_000, "budget in env steps of each policy, rounded up to whole updates", ge=1)
    num_envs: int = option(32, "environments stepped in parallel, over all actors and policies", ge=1)
    num_policies: int = option(1, "policies that learn beside each other: K, env i belonging to policy i % K", ge=1)
    policies: dict[str, Any] = option({}, "what differs between them: policies.1.algo.learning_rate=1e-3")
    num_threads: int | None = option(None, "threads of tensor maths; null: 1 for a perceptron, else one per core", ge=1)
    init_from: str | None = option(None, "checkpoint whose weights to start from")
    plugins: list[str] = option([], "modules to import before names are looked up")
    env: EnvConfig = option(None, "the environment")
    vectorizer: Any = option(None, "how one actor steps its environments")
    policy: Any = option(None, "the network that acts")
    actors: Any = option(None, "where acting runs")
    algo: Any = option(None, "what learns")
    checkpoint: CheckpointConfig = option(None, "checkpoints")
    eval: EvalConfig = option(None, "evaluation during training")
    logger: LoggerConfig = option(None, "metric sinks")
    debug: DebugConfig = option(DebugConfig(), "faults made on purpose")


@dataclass(frozen=True)
class EvalCommand:
    """What `parl eval` is told, one field per key of conf/eval.yaml."""

    checkpoint: str = required("run folder, checkpoint folder, or latest: the run that wrote a checkpoint last")
    policy_id: int | None = option(None, "which policy plays, of a run with several; null: each of them", ge=0)
    episodes: int = option(100, "how many episodes to play", ge=1)
    deterministic: bool = option(True, "act by the distribution's mode, not by sampling")
    seed: int | None = option(None, "seed of the episodes; null: the checkpoint's own evaluation seed", ge=0, lt=2**63)
    max_episode_steps: int | None = option(None, "time limit of its episodes in env steps; null: the env's own", ge=1)
    num_envs: int | None = option(None, "environments stepped in parallel; null: chosen for the episodes", ge=1)
    render: Literal["human"] | None = option(None, "human: show the episodes in a window")
    video: bool = option(False, "write an mp4 of the first episode (needs the extra `video`)")
    output: str | None = option(None, "folder for eval.json; null: <run>/eval/<time>/")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps")
    plugins: list[str] = option([], "modules to import before names are looked up, as in training")


@dataclass(frozen=True)
class ResumeCheckpointConfig:
    """How `parl resume` reads the checkpoint."""

    env: Literal["replay", "reset"] | None = option(
        None, "replay: re-step unfinished episodes (exact); reset: start new ones; null: the run's own"
    )


@dataclass(frozen=True)
class ResumeCommand:
    """What `parl resume` is told, one field per key of conf/resume.yaml."""

    run: str = required("run folder, a sweep's, or latest: the run that wrote a checkpoint last")
    step: int | None = option(None, "env steps of the checkpoint to go on from; null: the latest", ge=0)
    total_steps: int | None = option(None, "new budget in env steps; null: the run's own", ge=1)
    device: str | None = option(None, "null: the run's own")
    plugins: list[str] = option([], "modules to import before names are looked up, as in training")
    checkpoint: ResumeCheckpointConfig = option(ResumeCheckpointConfig(), "how the checkpoint is read")


@dataclass(frozen=True)
class BenchCommand:
    """What `parl bench` is told besides a job's own keys, one field per key of conf/bench.yaml."""

    seconds: float = option(0.5, "seconds per measurement, over all its rounds", gt=0, le=600)
    vectorizers: list[str] | None = option(None, "those to compare, like [serial,thread]; null: every one that fits")
    tune: bool = option(False, "try num_envs from 8 to 256 too, and more numbers of workers; takes minutes")
    output: str | None = option(None, "folder for bench.json and bench.png; null: outputs/bench/<time>/")


@dataclass(frozen=True)
class ReportCommand:
    """What `parl report` is told, one field per key of conf/report.yaml."""

    runs: list[str] | str = required("run folders, sweep folders, folders above them, or globs; may be typed alone")
    by: list[str] = option(
        ["algo.name", "env.name"], "config keys; runs with the same values are one group (env.…: one task)"
    )
    where: dict[str, Any] | None = option(None, "config values that a run must have, like where.env.name=cartpole")
    metric: str = option("episode/return_mean", "what is compared: a metric of metrics.jsonl, higher is better")
    score: Literal["final", "best", "mean", "eval"] = option(
        "final", "a run's score: the metric's final, best or mean value, or what parl eval found (mean_return)"
    )
    steps: int | None = option(None, "env steps at which runs are compared; null: at the end of each", ge=1)
    statistic: Literal["iqm", "median", "mean"] = option(
        "iqm", "iqm, median or mean: what curves show of the runs of a group"
    )
    thresholds: dict[str, list[float]] | list[float] | None = option(
        None, "scores whose first passing counts: [475], or thresholds.cartpole=[475]; where none: parts of the way"
    )
    normalize: dict[str, list[float]] | None = option(
        None, "what is 0 and what is 1 over all tasks: normalize.cartpole=[0,500]; else the lowest and highest score"
    )
    confidence: float = option(0.95, "of the bootstrap intervals", gt=0, lt=1)
    resamples: int = option(5000, "bootstrap resamples", ge=100, le=1_000_000)
    seed: int = option(0, "seed of the resampling", ge=0, lt=2**63)
    points: int = option(200, "points of a curve", ge=2, le=10_000)
    allow: list[str] = option(
        [], "config keys in which compared runs may differ; also `seed` (repeated seeds) and `unfinished`"
    )
    formats: list[Literal["html", "md", "csv", "png", "svg"]] = option(
        ["html", "md", "csv", "png", "svg"], "html, md, csv, png, svg: what is written; []: nothing"
    )
    output: str | None = option(None, "folder for the files; null: outputs/report/<time>/")


def parse_train(values: Mapping[str, Any]) -> TrainConfig:
    """Parse a whole training config: each component by the `Config` of the class its `name` is registered to.

    Raises:
        ConfigError: see `parse`; also an unknown component name.
    """
    config = parse(TrainConfig, {k: v for k, v in values.items() if k != "hydra"})
    typed: dict[str, Any] = {"env": parse(EnvConfig, values.get("env", {}), "env")}
    for kind in COMPONENTS[1:]:
        typed[kind] = parse_component(kind, values.get(kind))
    for part, cls in (("checkpoint", CheckpointConfig), ("eval", EvalConfig), ("logger", LoggerConfig)):
        typed[part] = parse(cls, values.get(part, {}), part)
    typed["logger"] = dataclasses.replace(typed["logger"], sinks=parse_sinks(typed["logger"].sinks))
    return dataclasses.replace(config, **typed)


def parse_sinks(values: Any) -> dict[str, Any]:
    """The sinks by name, each with its options by the `Config` of its class.

    Args:
        values: name → options; `true` for none of its own, null or `false` to do without it; or a list of names.

    Raises:
        ConfigError: no such sink, or options that it does not take.
    """
    if isinstance(values, list) and all(isinstance(name, str) for name in values):
        values = {name: {} for name in values}
    if not isinstance(values, Mapping):
        raise ConfigError(f"logger.sinks={_show(values)}: must be names, or names with options: {{csv: {{}}}}")
    return {
        str(name): parse(
            registry.load("sink", str(name)).Config, {} if options is True else options, f"logger.sinks.{name}"
        )
        for name, options in values.items()
        if options is not None and options is not False
    }


def parse_component(kind: str, values: Any) -> Any:
    """Parse one component's mapping by the `Config` of the class its `name` is registered to."""
    if not isinstance(values, Mapping) or "name" not in values:
        raise ConfigError(f"{kind}={_show(values)}: must be a group with a name; {suggest('', registry.names(kind))}")
    return parse(registry.load(kind, str(values["name"])).Config, values, kind)


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (dataclasses.is_dataclass(hint) and dataclasses.is_dataclass(value)):
        return value
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, key)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [arg for arg in args if arg is not type(None)]
        fitting = [arg for arg in rest if _is_container_for(arg, value)] or rest
        if len(fitting) == 1:
            return _convert(fitting[0], value, key)
        for arg in rest:
            try:
                return _convert(arg, value, key)
            except ConfigError:
                continue
        raise _wrong(key, value, " or ".join(_name(arg) for arg in args))
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{key}={_show(value)}: {suggest(str(value), [str(arg) for arg in args])}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise _wrong(key, value, _name(hint))
        return origin(_convert(args[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(key, value, _name(hint))
        if len({str(k) for k in value}) < len(value):
            twice = next(k for k in value if not isinstance(k, str) and str(k) in value)
            raise ConfigError(f"{_join(key, str(twice))}: is there as a number and as text; quote it in the YAML file")
        return {str(k): _convert(args[1], v, f"{key}.{k}") for k, v in value.items()}
    return _convert_scalar(hint, value, key)


def _is_container_for(hint: Any, value: Any) -> bool:
    """Whether it is a list for a list, or a mapping for a mapping: then what is wrong is in there."""
    origin = typing.get_origin(hint)
    return isinstance(value, Mapping) if origin is dict else origin in (list, tuple) and isinstance(value, list | tuple)


def _convert_scalar(hint: type, value: Any, key: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if isinstance(value, bool) or value is None:
        raise _wrong(key, value, _name(hint))
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ConfigError(f"{key}: a number of hundreds of digits; must be below {sys.float_info.max:.1e}")
    if hint is int and isinstance(value, int | float) and math.isfinite(value) and value == int(value):
        return int(value)
    if hint is float and isinstance(value, int | float):
        if not math.isfinite(value):
            raise ConfigError(f"{key}={value}: must be a finite number")
        return float(value)
    if hint is str and isinstance(value, str | int | float):
        return str(value)
    raise _wrong(key, value, _name(hint))


def _check_range(value: Any, rules: Mapping[str, Any], key: str) -> None:
    numbers = value if isinstance(value, list | tuple) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        for rule, (holds, words) in _RANGE_RULES.items():
            bound = rules.get(rule)
            if bound is not None and not holds(number, bound):
                raise ConfigError(f"{key}={_show(value)}: must be {words} {bound}")


def _wrong(key: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{key}={_show(value)}: must be {wanted}, not {_kind(value)}")


def _name(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return str(args[0])
    if origin in (list, tuple):
        return f"a list, like [{_name(args[0])}, …]"
    if origin is dict:
        return "a mapping, like {key: value}"
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "null" if value is None else _name(type(value))


def _show(value: Any) -> str:
    return "null" if value is None else str(value)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
