"""`hydra/sweeper=grid`: every combination of the values in `key=1,2,3`.

Hydra's basic sweeper writes its folder before the jobs are known to be valid. This one hands all jobs to the
launcher at once, which validates them and only then writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from parl_cli.composition.grid import expand

# A plain dict, not a dataclass: Hydra runs this file before it is in sys.modules, where dataclasses look up types.
# `params` holds sweeps as on the command line, e.g. {seed: "1,2,3"}, which then need not be typed.
_CONFIG = {"_target_": "hydra_plugins.parl_grid_sweeper.GridSweeper", "params": {}}
ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=_CONFIG, provider="parl")


class GridSweeper(Sweeper):
    """The cartesian product of all values, in the order typed: the last key changes fastest."""

    def __init__(self, params: dict[str, str]) -> None:
        self.params = dict(params)
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook: called once before `sweep`."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Run all jobs.

        Raises:
            ConfigError: no job at all, or one that is not valid.
        """
        assert self.launcher is not None
        assert self.hydra_context is not None
        typed = [f"{key}={values}" for key, values in self.params.items()]
        jobs = expand(self.hydra_context.config_loader, [*typed, *arguments])
        return self.launcher.launch(jobs, initial_job_idx=0)
