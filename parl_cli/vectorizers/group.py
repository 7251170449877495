"""Some envs in one process, called in a plain Python loop: what `EnvPlans` asks for, done here and now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from parl_cli.vectorizers.blocks import Blocks
from parl_cli.vectorizers.description import EnvDescription
from parl_cli.vectorizers.plans import ENV_FAULTS, CallError, EnvPlans, EpisodeSeed, Plan, RowInfo, T

__all__ = ["EnvGroup", "EpisodeSeed", "RowInfo", "carry_out"]


class EnvGroup:
    """The same as `EnvPlans`, with methods that are plain calls. The envs are made at once.

    Raises:
        EnvError: a factory raised.
        ConfigError: envs with different spaces.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        first_id: int,
        autoreset_mode: AutoresetMode,
        episode_seed: EpisodeSeed | None,
        same_observations: bool = True,
    ) -> None:
        self._plans = EnvPlans(env_fns, first_id, autoreset_mode, episode_seed, same_observations)
        self.description: EnvDescription = carry_out(self._plans.make())

    @property
    def envs(self) -> list[gym.Env]:
        """The envs themselves; none once they are closed."""
        return self._plans.envs

    def attach(self, blocks: Blocks) -> None:
        """Take the rows to write into. Comes before any reset."""
        carry_out(self._plans.attach(blocks))

    def begin(self) -> None:
        """Reset every env into the episode that its row of `episode_numbers` names."""
        carry_out(self._plans.begin())

    def reset(self, rows: list[int], seeds: list[int | None], options: dict | None) -> list[RowInfo]:
        """Reset some envs, see `EnvPlans.reset`."""
        return carry_out(self._plans.reset(rows, seeds, options))

    def step(self, rows: list[int] | None = None, want_infos: bool = False) -> list[RowInfo] | None:
        """Step some envs (None: all) with the actions in their rows, see `EnvPlans.step`."""
        return carry_out(self._plans.step(rows, want_infos))

    def call(self, name: str, args: tuple, kwargs: dict) -> list[Any]:
        """Attribute `name` of every env, called where it can be."""
        return carry_out(self._plans.call(name, args, kwargs))

    def set_attr(self, name: str, values: list[Any]) -> None:
        """Set attribute `name` of every env, one value each."""
        carry_out(self._plans.set_attr(name, values))

    def close(self) -> None:
        """Close every env, also when one of them raises; EnvError says what the first complained of."""
        carry_out(self._plans.close())


def carry_out(plan: Plan[T]) -> T:
    """Make the calls that a plan asks for, here and in order; what it returns."""
    try:
        calls = next(plan)
        while True:
            _, functions, arguments = calls
            left = iter(functions)
            try:
                # the hot loop: it does nothing but step
                results = [function(argument) for function, argument in zip(left, arguments, strict=True)]
            except ENV_FAULTS as error:
                index = len(functions) - len(list(left)) - 1  # the one that was taken last
                calls = plan.throw(CallError(index, error))
            else:
                calls = plan.send(results)
    except StopIteration as end:
        return end.value
