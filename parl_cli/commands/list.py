"""`parl list`: what there is, and what each supports, before anything is trained.

Made from the registry, the config folders and the classes' own attributes (`summary`, `supports`, docstrings), so a
new part shows up by being there. `parl list` alone loads no class; only the topics about networks load torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parl_cli import plugins, registry
from parl_cli.commands import _runs
from parl_cli.commands._flags import parse_list_flags
from parl_cli.composition import conf_files
from parl_cli.config import EnvConfig, parse
from parl_cli.errors import ConfigError, suggest

Row = dict[str, str]


def main(args: list[str]) -> int:
    """Run `parl list`; returns the exit code."""
    flags = parse_list_flags(args)
    if flags.help:
        print(help_text())
        return 0
    plugins.activate(flags.overrides)
    if flags.words[:1] == ["runs"]:
        return _list_runs(flags.words[1:], flags.wanted, flags.json)
    topics = [_topic(word) for word in flags.words]
    if not topics:
        tables = {"": overview(flags.config_dir)}
    else:
        tables = {topic: TOPICS[topic][1](flags.config_dir) for topic in topics}
    if flags.json:
        print(json.dumps(tables if len(tables) > 1 else next(iter(tables.values())), indent=1, ensure_ascii=False))
    else:
        _print(tables)
    return 0


def help_text() -> str:
    """What `parl list --help` prints."""
    lines = [f"  {name:<13}{doc}" for name, (doc, _) in TOPICS.items()]
    return "\n".join(
        [
            "parl list: what there is, and what each supports",
            "",
            "usage: parl list [topic …] [--json] [--config-dir DIR] [plugins=[module]]",
            "       parl list runs [folder …] [key=value …] [--json]",
            "",
            "topics (none: an overview):",
            *lines,
            "",
            "Runs are chosen by values of their configs, and by status: running, finished, interrupted, failed, silent",
            "(it says that it runs, and shows no sign of life). A value may be several, a,b, and hold * and ?.",
            "",
            "examples:",
            "  parl list envs",
            "  parl list runs algo.name=ppo env.name=cartpole,acrobot status=finished",
            "  parl list runs outputs/sweep algo.learning_rate=1e-3",
        ]
    )


def overview(config_dir: str | None) -> list[Row]:
    """Every topic with its names."""
    found = []
    for topic, (doc, _) in TOPICS.items():
        if topic in _GROUPS:
            names = list(conf_files.options(_GROUPS[topic], config_dir))
        elif topic in _KINDS:
            names = registry.names(_KINDS[topic])
        elif topic == "runs":
            names = [f"{_runs.count()} in {_runs.OUTPUTS}/"]
        else:
            names = [plugin.module for plugin in plugins.loaded()]
        found.append({"topic": topic, "what": doc, "names": ", ".join(names)})
    return found


def algos(config_dir: str | None) -> list[Row]:
    """Algorithms, with the spaces they take and the envs they have tuned hyper-parameters for."""
    found = []
    for name in registry.names("algo"):
        cls = registry.load("algo", name)
        supports = getattr(cls, "supports", {})
        tuned = [
            pair.removeprefix(f"{name}/")
            for pair in conf_files.options("tuned", config_dir)
            if pair.startswith(f"{name}/")
        ]
        found.append(
            {
                "algo": name,
                "what": _describe(cls),
                "is": _difference(cls),
                "actions": ", ".join(supports.get("actions", ())),
                "observations": ", ".join(supports.get("observations", ())),
                "actors": ", ".join(supports.get("actors", ())),
                "tuned for": ", ".join(tuned),
                "from": _origin("algo", name),
            }
        )
    return found


def envs(config_dir: str | None) -> list[Row]:
    """Env presets, with the spaces they have here, or what to install."""
    added = conf_files.added_confs(config_dir)
    found = []
    for name, file in conf_files.options("env", config_dir).items():
        row = dict.fromkeys(("env", "id", "obs", "actions", "limit", "extra", "installed", "what", "from"), "")
        row |= {"env": name, "what": conf_files.summary(file)}
        row["from"] = next((who for who, folder in added.items() if file.is_relative_to(folder)), "")
        try:
            config = parse(EnvConfig, _env_values(name, file, config_dir), "env")
            row |= {"id": config.id or "", "extra": config.extra or ""}
            row |= {"installed": "yes", **_spaces(config)}
        except ConfigError as error:
            row["installed"] = f"no: {error}"
        # one file or env of somebody else's must not hide the others
        except Exception as error:
            row["installed"] = f"no: {type(error).__name__}: {' '.join(str(error).split())}"
        found.append(row)
    return found


def _env_values(name: str, file: Path, config_dir: str | None) -> Any:
    """What an env's file comes to; composed only where it builds on others."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    if "defaults" not in values:
        return values
    from parl_cli.composition.compose import compose, plain, session

    with session(config_dir) as hydra:
        return plain(compose(hydra, "train", [f"env={name}"]))["env"]


def wrappers(config_dir: str | None) -> list[Row]:
    """Env wrappers, with their options."""
    found = []
    for name in registry.names("wrapper"):
        cls = registry.load("wrapper", name)
        fields = dataclasses.fields(cls.Config) if hasattr(cls, "Config") else ()
        shown = [f"{f.name}={_default(f)}: {f.metadata.get('doc', '')}" for f in fields]
        origin = _origin("wrapper", name)
        found.append({"wrapper": name, "what": _describe(cls), "options": "\n".join(shown), "from": origin})
    return found


def runs(config_dir: str | None) -> list[Row]:
    """The runs below ./outputs."""
    return [_runs.row(run) for run in _runs.find([], [])]


def _list_runs(places: list[str], wanted: list[str], as_json: bool) -> int:
    found = _runs.find(places, wanted)
    if as_json:
        print(json.dumps([_runs.record(run) for run in found], indent=1, ensure_ascii=False))
    else:
        _runs.print_runs(found)
    return 0


def _components(kind: str) -> Callable[[str | None], list[Row]]:
    def rows(config_dir: str | None) -> list[Row]:
        return [
            {kind: name, "what": _describe(registry.load(kind, name)), "from": _origin(kind, name)}
            for name in registry.names(kind)
        ]

    return rows


def _configs(group: str) -> Callable[[str | None], list[Row]]:
    def rows(config_dir: str | None) -> list[Row]:
        found = conf_files.options(group, config_dir).items()
        return [{group: name, "what": conf_files.summary(file), "file": _short(file)} for name, file in found]

    return rows


def loaded_plugins(config_dir: str | None) -> list[Row]:
    """Plug-ins that were imported, with what they registered."""
    return [
        {"plugin": plugin.module, "from": plugin.source, "brings": "\n".join(plugin.brings)}
        for plugin in plugins.loaded()
    ]


TOPICS: dict[str, tuple[str, Callable[[str | None], list[Row]]]] = {
    "algos": ("what learns: algo=", algos),
    "envs": ("environments: env=", envs),
    "vectorizers": ("how one actor steps its envs: vectorizer=", _components("vectorizer")),
    "policies": ("networks that act: policy=", _components("policy")),
    "actors": ("where acting runs: actors=", _components("actors")),
    "wrappers": ("what can be put around an env: env.wrappers=[…]", wrappers),
    "sinks": ("where metrics go besides metrics.jsonl: logger.sinks.NAME={}", _components("sink")),
    "loggers": ("presets of sinks: logger=, several as logger=[a,b]", _configs("logger")),
    "tuned": ("hyper-parameters found by algo= and env= together", _configs("tuned")),
    "experiments": ("whole recipes: experiment=", _configs("experiment")),
    "sweeps": ("several jobs, with -m: how they are run, or where to search: sweep=", _configs("sweep")),
    "debug": ("for finding mistakes: debug=", _configs("debug")),
    "runs": ("what was trained: folders below outputs/", runs),
    "plugins": ("what was added to parl: by installed packages, by plugins=[module]", loaded_plugins),
}

# Where the names of a topic come from, for the overview: a config group, or a kind of the registry.
_GROUPS = {
    "envs": "env",
    "loggers": "logger",
    "tuned": "tuned",
    "experiments": "experiment",
    "sweeps": "sweep",
    "debug": "debug",
}
_KINDS = {
    "algos": "algo",
    "vectorizers": "vectorizer",
    "policies": "policy",
    "actors": "actors",
    "wrappers": "wrapper",
    "sinks": "sink",
}


def _topic(word: str) -> str:
    singular = {kind: topic for topic, kind in (_GROUPS | _KINDS).items()}
    topic = singular.get(word, word)
    if topic not in TOPICS:
        raise ConfigError(f"unknown topic {word!r}; {suggest(word, TOPICS)}")
    return topic


def _origin(kind: str, name: str) -> str:
    """The module of what a plug-in registered; nothing for parl's own."""
    module = registry.target(kind, name).partition(":")[0]
    return "" if module.startswith("parl_cli.") else module


def _describe(cls: Any) -> str:
    """A class in one line: its `summary`, the doc of its config's name, or its docstring's first line."""
    if getattr(cls, "summary", None):
        return str(cls.summary)
    fields = dataclasses.fields(cls.Config) if hasattr(cls, "Config") else ()
    named = next((f.metadata.get("doc", "") for f in fields if f.name == "name"), "")
    if named and named != "registered name":
        return str(named)
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _difference(cls: Any) -> str:
    """An algorithm's hyper-parameters beside its `neighbour`'s: changed, added, left out; nothing without one."""
    neighbour = getattr(cls, "neighbour", None)
    if neighbour is None:
        return ""
    own = {field.name: _default(field) for field in dataclasses.fields(cls.Config)}
    other = {field.name: _default(field) for field in dataclasses.fields(registry.load("algo", neighbour).Config)}
    shared = [name for name in own if name in other and name != "name"]
    groups = {
        "but": [f"{name}={own[name]} ({other[name]})" for name in shared if own[name] != other[name]],
        "plus": [f"{name}={value}" for name, value in own.items() if name not in other],
        "less": [name for name in other if name not in own],
    }
    return "\n".join([neighbour, *(f"{word} {', '.join(found)}" for word, found in groups.items() if found)])


def _spaces(config: EnvConfig) -> Row:
    if config.id is None:
        return {"obs": "of the id you give", "actions": "of the id you give"}
    import gymnasium

    from parl_cli.envs.factory import env_spec

    plugins.search_working_directory()  # for an id that imports a module of this folder
    # Some libraries leave a log in the working directory (MUJOCO_LOG.TXT); a listing leaves nothing.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        spec = env_spec(config)
    name = config.id.rpartition(":")[2]
    own = gymnasium.registry[name].max_episode_steps if name in gymnasium.registry else None
    limit = config.max_episode_steps or own
    return {
        "obs": _space(spec.observation_space),
        "actions": _space(spec.action_space),
        "limit": str(limit) if limit else "",
    }


def _space(space: Any) -> str:
    """A space without its bounds: `Box(3, 4) float32`, `Discrete(2)`."""
    if type(space).__name__ == "Box":
        return f"Box({', '.join(map(str, space.shape))}) {space.dtype}"
    return str(space)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is None or isinstance(field.default, bool):
        return {None: "null", True: "true", False: "false"}[field.default]
    if field.default is not dataclasses.MISSING:
        return str(field.default)
    return "…" if field.default_factory is dataclasses.MISSING else str(field.default_factory())


def _short(file: Path) -> str:
    own = conf_files.builtin_conf()
    return f"conf/{file.relative_to(own).as_posix()}" if file.is_relative_to(own) else str(file)


def _print(tables: dict[str, list[Row]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # into a file or a pipe: long lines rather than folded ones
    for title, rows in tables.items():
        if not rows:
            console.print(f"{title}: none")
            continue
        table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
        # A column that no row fills only takes room.
        columns = [name for name in rows[0] if any(row[name] for row in rows)]
        for i, name in enumerate(columns):
            table.add_column(name, no_wrap=i == 0 or name == "from", style="bold" if i == 0 else "", overflow="fold")
        for row in rows:
            table.add_row(*(Text(row[name]) for name in columns))  # Text: a bracket is no markup
        console.print(table)
