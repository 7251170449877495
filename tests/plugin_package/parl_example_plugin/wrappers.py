"""Sticky actions (Machado et al. 2018, arXiv:1709.06009): now and then, the env takes the previous action again."""

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym

from parl_cli.config import option


class StickyAction(gym.Wrapper):
    """Repeats the previous action with a probability, drawn from the env's own generator."""

    changes_return: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Config:
        """Options."""

        probability: float = option(0.25, "chance that the previous action is taken again", ge=0, le=1)

    def __init__(self, env: gym.Env, config: Config) -> None:
        super().__init__(env)
        self.probability = config.probability
        self.previous: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.previous = None
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        if self.previous is None or self.unwrapped.np_random.random() >= self.probability:
            self.previous = action
        return self.env.step(self.previous)
