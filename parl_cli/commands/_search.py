"""`sweep=<space>`: what is searched around, and where, valid before the first trial; `sweeps.search` does the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from parl_cli.commands._sweep import make_sweep_dir, prepare, shown, sweep_options
from parl_cli.composition.compose import chosen_options, plain
from parl_cli.composition.messages import translated
from parl_cli.config import COMPONENTS, to_plain
from parl_cli.sweeps.best import difference
from parl_cli.sweeps.ledger import Ledger
from parl_cli.sweeps.options import SearchConfig
from parl_cli.sweeps.search import check_options, check_space, import_optuna

_GROUPS = (*COMPONENTS, "logger")


def make_search(context: HydraContext, sweep: DictConfig, overrides: Sequence[Override]) -> Ledger:
    """A new search in a folder of its own, without trials.

    Args:
        context: Hydra's.
        sweep: the config of the whole, with the part `sweep`.
        overrides: as typed; those with several values say where to look, and win over the chosen space.

    Raises:
        ConfigError: what does not fit; nothing has been written then.
    """
    options = sweep_options(sweep, SearchConfig)
    import_optuna(options)
    check_options(options)
    fixed = [str(text.input_line) for text in overrides if not text.is_sweep_override()]
    options = dataclasses.replace(options, space=_space(options, overrides))
    [job] = prepare(context, sweep, [fixed])
    # typed, so that an interval of whole numbers is known by its key; but workers are counted when a trial starts
    config = to_plain(job.config) | {key: job.values[key] for key in ("vectorizer", "actors", "num_threads")}
    check_space(options, config)
    chosen = chosen_options(job.job)
    choices: dict[str, Any] = {name: chosen.get(name) for name in _GROUPS}
    choices = {name: names[0] if names and len(names) == 1 else names for name, names in choices.items()}
    folder = make_sweep_dir(sweep, [job])
    if job.job.hydra.runtime.choices.get("tuned") is None:
        choices["tuned"] = None
    base = {
        "config": config,
        "overrides": shown(fixed),
        "choices": choices,
        "changes": difference(config, _composed(context, choices)),
        "config_dir": _config_dir(context),
    }
    argv = ["parl", "train", "-m", *sweep.hydra.overrides.hydra, *sweep.hydra.overrides.task]
    ledger = Ledger(folder, argv, options, list(job.config.plugins), base=base)
    ledger.save()
    return ledger


def _config_dir(context: HydraContext) -> str | None:
    """The folder that `--config-dir` named: what was chosen may be there, and nowhere else."""
    places = context.config_loader.get_search_path().get_path()
    return next((place.path.removeprefix("file://") for place in places if place.provider == "--config-dir"), None)


def _space(options: SearchConfig, overrides: Sequence[Override]) -> dict[str, str | None]:
    """The chosen space, without the keys that were typed with one value, and with those that were typed with more."""
    typed = {str(text.key_or_group): text for text in overrides}
    space = {key: text for key, text in options.space.items() if key not in typed}
    for key, override in typed.items():
        if override.is_sweep_override():
            space[key] = str(override.input_line).partition("=")[2]
    return space


def _composed(context: HydraContext, choices: dict[str, Any]) -> dict[str, Any]:
    """The config that these choices of groups make by themselves."""
    texts = [f"~{group}" if choice is None else f"{group}={_typed(choice)}" for group, choice in choices.items()]
    with translated():
        return plain(context.config_loader.load_configuration("train", texts, RunMode.RUN))


def _typed(choice: str | list[str]) -> str:
    return f"[{','.join(choice)}]" if isinstance(choice, list) else choice
