"""`hydra/sweeper=optuna`: trials that Optuna proposes, in processes beside each other. `sweep=ppo` chooses it.

It asks for a trial when there is room for one, so the launcher is not handed batches of jobs: there is only one that
fits, `hydra/launcher=parallel`.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from parl_cli.composition.messages import translated
from parl_cli.errors import ConfigError

# A plain dict, not a dataclass: Hydra runs this file before it is in sys.modules, where dataclasses look up types.
_CONFIG = {"_target_": "hydra_plugins.parl_optuna_sweeper.OptunaSweeper"}
ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=_CONFIG, provider="parl")


class OptunaSweeper(Sweeper):
    """Searches; see the module's docstring."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook: called once before `sweep`."""
        self.config, self.hydra_context = config, hydra_context

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search.

        Raises:
            ConfigError: what does not fit; nothing has been written then.
            ParlError: no trial came to an end.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        launcher = self.config.hydra.runtime.choices["hydra/launcher"]
        if launcher != "parallel":
            raise ConfigError(
                f"hydra/launcher={launcher}: a search needs parallel; sweep.num_jobs=1 runs one trial after another"
            )
        from parl_cli.commands._search import make_search  # torch, from here on
        from parl_cli.sweeps.run import run_search

        with translated():
            parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
            overrides = parser.parse_overrides(list(arguments))
        run_search(make_search(self.hydra_context, self.config, overrides))
