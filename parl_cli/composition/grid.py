"""The jobs of a sweep: from `seed=1,2 env=a,b` to four lists of overrides."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser

from parl_cli.composition.messages import translated
from parl_cli.errors import ConfigError


def expand(config_loader: ConfigLoader, overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values, the last key changing fastest.

    Raises:
        ConfigError: an override that cannot be read, a sweep without values, an interval.
    """
    with translated():
        parsed = OverridesParser.create(config_loader=config_loader).parse_overrides(list(overrides))
        for override in parsed:
            if override.is_discrete_sweep() and not list(override.sweep_string_iterator()):
                raise ConfigError(f"{override.input_line}: no values to sweep over, so no job; give at least one")
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise ConfigError(
                    f"{override.input_line}: a grid needs single values; write key=1,2,3 or range(…), or search for it "
                    "with sweep=search"
                )
        [jobs] = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for job in jobs]
