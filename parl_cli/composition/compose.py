"""Hydra as a library: where configs are found, how overrides are read, and how mistakes are told.

Hydra's own entry point prints errors over several lines, exits with 1 and makes the run folder before the job's code
runs. So this file opens a `Hydra` object itself (`session`), and the commands call it. What Hydra raises leaves
here as a `ConfigError` (see `messages`).

Search path: parl's own `conf/`, then those of plug-ins, then `--config-dir`, then `./conf` of the working directory.
parl's own names win, as Hydra does with `--config-dir`: a folder that happens to hold a `conf/` cannot change what a
command means. A file that is hidden so, and was asked for, is an error, not a surprise.
"""

from __future__ import annotations

import filecmp
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from parl_cli import plugins
from parl_cli.composition.conf_files import added_confs, builtin_conf, options
from parl_cli.composition.messages import translated
from parl_cli.config import COMPONENTS
from parl_cli.errors import ConfigError, UnknownKeyError, suggest

_PLUGINS = Path(__file__).resolve().parents[1] / "_hydra"

# Mappings whose keys are the user's own: a key in them need not be there before, so `+` is not asked for.
OPEN_IN_A_JOB = ("env.kwargs.", "policies.", "logger.sinks.")
_OPEN = (*OPEN_IN_A_JOB, "where.", "thresholds.", "normalize.")  # the others: of `parl report` and `parl list`

_MAY_BE_NULL = ("tuned", "experiment", "debug")  # groups of which no option is needed

_EXPONENT = re.compile(r"(?<![\w.+/-])\d+(?:\.\d*)?[eE]\+?\d+(?![\w./])")
_LOOKS_LIKE_A_NUMBER = re.compile(r"[\d_.eE+-]*\d[\d_.eE+-]*")


@contextmanager
def session(config_dir: str | None = None) -> Iterator[Hydra]:
    """A `Hydra` object that finds parl's configs, the plug-ins' and the user's; closed at the end of the block.

    Raises:
        ConfigError: `config_dir` is no folder.
    """
    if str(_PLUGINS) not in sys.path:
        # Appended: Hydra finds launchers and sweepers only in a namespace package called hydra_plugins.
        sys.path.append(str(_PLUGINS))
    version.setbase("1.3")
    search_path = create_config_search_path(f"file://{builtin_conf()}")
    for provider, folder in added_confs(config_dir).items():
        search_path.prepend(provider, f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    # an app that uses Hydra itself, and parl's Python API, finds its own again
    before, config_before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2(task_name="parl", config_search_path=search_path)
    # Cached per config, so that one run has one suffix however often its folder is asked for.
    OmegaConf.register_new_resolver("parl.suffix", lambda: secrets.token_hex(3), use_cache=True, replace=True)
    try:
        yield hydra
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = before, config_before


def compose(hydra: Hydra, config_name: str, overrides: Sequence[str], multirun: bool = False) -> DictConfig:
    """Compose conf/<config_name>.yaml with the overrides; the result still holds the `hydra` part.

    Raises:
        ConfigError: an override that cannot be read, an unknown option or key, a file that is not YAML.
    """
    with translated():
        config = hydra.compose_config(
            config_name=config_name,
            overrides=prepare(overrides),
            run_mode=RunMode.MULTIRUN if multirun else RunMode.RUN,
            with_log_configuration=False,
        )
    check_hidden(config)
    check_preset(config)
    return config


def chosen_options(config: DictConfig) -> dict[str, list[str]]:
    """The chosen options of each group; several, as in logger=[tensorboard,wandb], are not among Hydra's choices."""
    found = {group: [str(option)] for group, option in config.hydra.runtime.choices.items() if option is not None}
    for text in config.hydra.overrides.task:
        group, _, value = text.partition("=")
        if value.startswith("[") and options(group):
            found[group] = [name.strip() for name in value.strip("[]").split(",")]
    return found


def preset_of(config: DictConfig) -> str:
    """The preset that a job was composed with, as its summary says it."""
    choices = config.hydra.runtime.choices
    if choices.get("tuned") is None:
        return "none (tuned=null)"
    return choices["tuned"] if _files_of(config, "tuned") else f"none for {choices['tuned']}: plain defaults"


def check_preset(config: DictConfig) -> None:
    """Refuse a preset that is not there, unless nobody asked for it: a pair need not have one.

    Raises:
        ConfigError: with those that there are.
    """
    choices = config.hydra.runtime.choices
    chosen = choices.get("tuned")
    if chosen is None or chosen == f"{choices.get('algo')}/{choices.get('env')}":
        return
    loader = GlobalHydra.instance().config_loader()
    known = [
        f"{algo}/{env}"
        for algo in loader.get_group_options("tuned", ObjectType.GROUP)
        for env in loader.get_group_options(f"tuned/{algo}")
    ]
    if chosen not in known:
        raise ConfigError(f"tuned={chosen}: no such preset (null: none); {suggest(chosen, known)}")


@contextmanager
def presets_named(config: DictConfig) -> Iterator[None]:
    """Say of a key that is unknown in the block which preset or recipe of the config brought it: the user did not.

    Raises:
        ConfigError: with the way out.
    """
    try:
        yield
    except UnknownKeyError as error:
        group = error.key.partition(".")[0]
        choices = config.hydra.runtime.choices
        for kind, way_out in (("tuned", "add tuned=null"), ("experiment", f"choose another {group}, or leave it out")):
            files = _files_of(config, kind)
            if not files or not _sets(files[0], error.key):
                continue
            if group not in COMPONENTS:  # no choice brings such a key
                raise ConfigError(f"{kind}={choices[kind]}: {error}") from error
            hint = f" ({error.hint})" if error.hint.startswith("did you mean") else ""
            raise ConfigError(
                f"{kind}={choices[kind]} sets {error.key}, which {group}={choices.get(group)} does not have{hint}; "
                f"{way_out}"
            ) from error
        raise


def _sets(file: Path, key: str) -> bool:
    """Whether a file of values sets a dotted key, whatever to."""
    values: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def plain(config: DictConfig) -> dict[str, Any]:
    """The job's values, interpolations resolved, without the `hydra` part. Keys still missing (`???`) are left out."""
    HydraConfig.instance().set_config(config)
    with translated():
        values = OmegaConf.to_container(without_hydra(config), resolve=True, throw_on_missing=False)
    assert isinstance(values, dict)
    check_plugins(values.get("plugins"))
    return {str(key): value for key, value in values.items() if value != "???"}


def check_plugins(modules: Any) -> None:
    """Refuse plug-ins that a config file names: files are read after the plug-ins, whose configs they may use.

    Raises:
        ConfigError: naming the one that was not typed.
    """
    known = {plugin.module for plugin in plugins.loaded()}
    for module in modules if isinstance(modules, list) else ():
        if module not in known:
            raise ConfigError(
                f"plugins=[{module}]: stands in a config file, which is read too late for a plug-in; type "
                f"plugins=[{module}] on the command line"
            )


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy of the job's part of a composed config."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def prepare(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra takes them: what it refuses, and a person would type all the same, is rewritten.

    `env.kwargs.x=1` and `env.kwargs={x: 1}` may add their key; `tuned=null` takes the choice away; `total_steps=1e6` is
    a whole number; `name=2024_10` is text.

    Raises:
        ConfigError: null, or a list, for a group of which one option is needed.
    """
    prepared = []
    for text in overrides:
        key, _, value = text.partition("=")
        if text.startswith(_OPEN) or (value.startswith("{") and f"{key}." in _OPEN):
            text = f"++{text}"
        elif value == "null" and key in _MAY_BE_NULL:
            # Hydra knows `group: null` in a list of defaults, but typed it must be ~group.
            text = f"~{key}"
        elif value == "null" and key and (builtin_conf() / key).is_dir():
            raise ConfigError(f"{key}=null: one is needed; {suggest('', options(key))}")
        elif value.startswith("[") and key in COMPONENTS:
            raise ConfigError(f"{text}: one is needed; for several jobs type -m {key}={value.strip('[]')}")
        elif key == "name" and _LOOKS_LIKE_A_NUMBER.fullmatch(value):
            text = f"name='{value}'"
        elif "'" not in value and '"' not in value:
            text = f"{key}={_EXPONENT.sub(_whole, value)}" if "=" in text else text
        prepared.append(text)
    return prepared


def _whole(match: re.Match[str]) -> str:
    number = float(match[0])
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else match[0]


def quote_values(overrides: Sequence[str], keys: frozenset[str]) -> list[str]:
    """Quote the values of `keys`: a path may hold characters that mean something in Hydra's override grammar.

    A leading `~` is the home folder: shells expand it at the start of a word only, not behind `checkpoint=`.
    """
    quoted = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if equals and key.lstrip("+") in keys and value not in ("", "null") and value[0] not in "'\"$":
            escaped = os.path.expanduser(value).replace("'", "\\'")
            text = f"{key}='{escaped}'"
        quoted.append(text)
    return quoted


def gather_words(overrides: Sequence[str], key: str) -> list[str]:
    """Make one list of the words that are no `key=value`: `key=['a','b']`. A path may hold a `=` after a slash.

    Raises:
        ConfigError: the key was typed besides.
    """
    is_word = [not text.startswith("~") and ("=" not in text or "/" in text.partition("=")[0]) for text in overrides]
    words = [os.path.expanduser(text) for text, alone in zip(overrides, is_word, strict=True) if alone]
    rest = [text for text, alone in zip(overrides, is_word, strict=True) if not alone]
    if not words:
        return rest
    if typed := [text for text in rest if text.startswith(f"{key}=")]:
        raise ConfigError(f"{typed[0]}: stands beside {words[0]}; leave out {key}=, words are {key} all the same")
    quoted = ",".join("'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'" for word in words)
    return [*rest, f"{key}=[{quoted}]"]


def parse_overrides(hydra: Hydra, overrides: Sequence[str]) -> list[Override]:
    """Read overrides without composing anything."""
    with translated():
        return OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(prepare(overrides))


def check_hidden(config: DictConfig) -> None:
    """Refuse a chosen option whose file is hidden by a different one in a folder that is searched before.

    Raises:
        ConfigError: naming both.
    """
    own = builtin_conf()
    choices: Mapping[str, Any] = config.hydra.runtime.choices
    for group, option in choices.items():
        files = _files_of(config, group)
        for file in files[1:]:
            if not filecmp.cmp(files[0], file, shallow=False):
                by = "parl's own option of that name" if files[0].is_relative_to(own) else files[0]
                raise ConfigError(f"{group}={option}: {file} is hidden by {by}; give it another name")


def _files_of(config: DictConfig, group: str) -> list[Path]:
    """The files of a group's chosen option, in every folder that was searched; the first is the one that counts."""
    option = config.hydra.runtime.choices.get(group)
    folders = [Path(source.path) for source in config.hydra.runtime.config_sources if source.schema == "file"]
    return [file for folder in folders if (file := folder / f"{group}/{option}.yaml").is_file()]
