"""The help pages of the key=value commands: keys, values and what they mean, from the configs themselves.

Written here, because Hydra's own page takes three times as long and cannot show what a key means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from parl_cli.commands._flags import FLAGS_HELP
from parl_cli.composition import conf_files
from parl_cli.config import (
    COMPONENTS,
    BenchCommand,
    CheckpointConfig,
    EnvConfig,
    EvalConfig,
    LoggerConfig,
    TrainConfig,
)
from parl_cli.sweeps.options import SearchConfig

_WIDTH = 34  # of the column `key=value`

# The parts whose dataclass is at hand without torch; the others are documented by the comments in their YAML.
_PARTS: dict[str, type] = {
    "sweep": SearchConfig,
    "env": EnvConfig,
    "checkpoint": CheckpointConfig,
    "eval": EvalConfig,
    "logger": LoggerConfig,
}

_EXAMPLES = {
    "train": """\
examples:
  parl train algo=ppo env=cartpole num_envs=32
  parl train env=gym env.id=MountainCarContinuous-v0 total_steps=1e6
  parl train env=pendulum algo.learning_rate=1e-3 vectorizer=subprocess
  parl train -m env=cartpole,acrobot seed=1,2,3     # six jobs, beside each other
  parl train -m sweep=ppo env=cartpole              # a search for better hyper-parameters
  parl train env=cartpole --cfg job                 # what would be run
  parl train env=acrobot --help                     # this page, with the values of that choice""",
    "bench": """\
examples:
  parl bench env=cartpole num_envs=32
  parl bench env=half_cheetah vectorizers=[serial,subprocess] seconds=2
  parl bench env=lunar_lander tune=true             # num_envs and numbers of workers too""",
    "eval": """\
examples:
  parl eval checkpoint=outputs/ppo_cartpole/latest
  parl eval checkpoint=RUN/checkpoints/100000 episodes=20 deterministic=false
  parl eval checkpoint=RUN video=true output=videos""",
    "report": """\
examples:
  parl report outputs/ppo_cartpole outputs/truly_ppo_cartpole
  parl report outputs where.env.name=cartpole by=[algo.name,algo.learning_rate]
  parl report outputs/ppo_cartpole thresholds=[475] score=eval
  parl report outputs allow=[total_steps,algo] formats=[]   # compare all the same, in the terminal only""",
    "resume": """\
examples:
  parl resume run=outputs/ppo_cartpole/latest
  parl resume run=outputs/ppo_cartpole/latest total_steps=200000
  parl resume run=outputs/ppo_cartpole/sweep-…      # what is missing in a sweep""",
}


def job_help(name: str, overrides: Sequence[str], config_dir: str | None, multirun: bool = False) -> str:
    """The page of `parl train` or `parl bench`, with the values that `overrides` choose.

    Raises:
        ConfigError: the overrides do not compose.
    """
    from omegaconf import OmegaConf

    from parl_cli.cli import COMMANDS
    from parl_cli.composition.compose import chosen_options, compose, session

    with session(config_dir) as hydra:
        # the sweep's config is the job's, with what -m adds
        config = compose(hydra, "sweep" if name == "train" else name, overrides, multirun)
    choices = chosen_options(config)
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    del values["hydra"]
    train_yaml = conf_files.comments(conf_files.builtin_conf() / "train.yaml")
    lines = [f"parl {name}: {COMMANDS[name]}", "", f"usage: parl {name} [flags] [key=value …]", ""]
    own = dataclasses.fields(BenchCommand) if name == "bench" else ()
    if own:
        lines += [f"keys of parl {name}, with their present values:"]
        lines += [*(_line(f.name, values.pop(f.name, None), f.metadata["doc"]) for f in own), ""]
    lines += [*_flags_of(name), "", "choices, group=option (* the present one):"]
    for group in conf_files.groups(config_dir):
        present = choices.get(group, [])
        shown = [f"{name}*" if name in present else name for name in conf_files.options(group, config_dir)]
        lines.append(f"  {group:<12}{', '.join(shown)}")
    lines += ["", f"keys{' of the job' if own else ''}, with their present values:"]
    documented = {field.name: field.metadata["doc"] for field in dataclasses.fields(TrainConfig) if field.metadata}
    documented["sweep"] = "several jobs, with -m: how they are run, or a search"
    for key in dict.fromkeys([*documented, *values]):
        if key in values and not isinstance(values[key], Mapping):
            lines.append(_line(key, values[key], train_yaml.get(key) or documented.get(key, "")))
    for key, part in values.items():
        if isinstance(part, Mapping):
            present = choices.get(key, [])
            files = conf_files.options(key, config_dir) if key in (*COMPONENTS, "logger") else {}
            docs = _docs(_PARTS[key]) if key in _PARTS else {}
            docs |= {} if files else _below(train_yaml, key)
            for option in present:
                docs |= conf_files.comments(files[option]) if option in files else {}
            title = documented.get(key, "") + (f" ({key}={','.join(present)})" if present else "")
            lines += [
                "",
                f"{key}: {title}",
                # a space's keys are typed as those of the job
                *(_line(f"{key}.{p}".removeprefix("sweep.space."), v, docs.get(p, "")) for p, v in _flat(part)),
            ]
    return "\n".join([*lines, "", _EXAMPLES[name]])


def _flags_of(name: str) -> list[str]:
    """The flags' lines, without what the command does not take."""
    return [line for line in FLAGS_HELP.splitlines() if name != "bench" or "--multirun" not in line]


def command_help(name: str, config_class: type, words: str | None = None) -> str:
    """The page of a command whose keys are the fields of `config_class`; `words` are values of that key."""
    from parl_cli.cli import COMMANDS

    usage = f"parl {name} [flags] {f'[{words} …] [key=value …]' if words else 'key=value …'}"
    lines = [f"parl {name}: {COMMANDS[name]}", "", f"usage: {usage}", "", FLAGS_HELP, ""]
    lines += ["keys, with their defaults:"]
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(field.default):
            for part in dataclasses.fields(field.default):
                lines.append(_line(f"{field.name}.{part.name}", part.default, part.metadata["doc"]))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            lines.append(f"  {f'{field.name}=…':<{_WIDTH}}{field.metadata['doc']} (required)")
        else:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            lines.append(_line(field.name, default, field.metadata["doc"]))
    return "\n".join([*lines, "", _EXAMPLES[name]])


def _line(key: str, value: Any, doc: str) -> str:
    return f"  {f'{key}={_show(value)}':<{_WIDTH}} {doc}".rstrip()


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(_show(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_show(item)}' for key, item in value.items())}}}"
    return str(value)


def _flat(part: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in part.items():
        if isinstance(value, Mapping) and value and f"{prefix}{key}" != "kwargs":
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _docs(config: type, prefix: str = "") -> dict[str, str]:
    """What a dataclass says about its fields, and those of the dataclasses in it, by dotted name."""
    found = {}
    for field in dataclasses.fields(config):
        found[f"{prefix}{field.name}"] = field.metadata["doc"]
        if dataclasses.is_dataclass(field.default):
            found |= _docs(type(field.default), f"{prefix}{field.name}.")
    return found


def _below(docs: Mapping[str, str], key: str) -> dict[str, str]:
    return {path.removeprefix(f"{key}."): doc for path, doc in docs.items() if path.startswith(f"{key}.")}
