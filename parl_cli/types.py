"""The contracts: what passes between the rooms.

Shape law. T = steps, N = columns, A = agents, B = rows, K = rows whose episode ended, S = recurrent state size.
Every tensor is `[*lead, *item]`; lead is `(T, N)`, or `(T, N, A)` in a multi-agent env, and time is dim 0. Networks,
advantages and losses work for any lead, so nothing above them asks how many agents there are.

Autoreset. One internal contract: *same step*. Where an episode ended, `obs` is already the first observation of
the next one, and the observation that ended it is in `final_obs`. Backends that do otherwise are converted at the
edge, or their filler rows are masked.

This file imports no torch when it runs: environment workers read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, float]


@dataclass(frozen=True)
class EnvSpec:
    """What there is to know of an env before training: `observation_space` and `action_space` are one agent's."""

    id: str
    observation_space: spaces.Space
    action_space: spaces.Space
    num_agents: int | None = None

    @property
    def agents(self) -> tuple[int, ...]:
        """The agent part of every lead: `()` or `(A,)`."""
        return () if self.num_agents is None else (self.num_agents,)


@dataclass
class EnvStep:
    """What `Vectorizer.recv` gives: the result of one step of B environments, in any order.

    A row that `ended` with no agent in `mask` is *filler*: no transition happened, and `obs` begins a new episode. A
    backend that resets on the step after an end gives one there (`truncated` False: a pause), and so does an env whose
    worker was lost and replaced (`truncated` True: the step that was asked for is lost, and the episode so far is cut
    off where it was last seen). Reward is 0 and `terminated` False in it; its final_obs, episode_return and
    episode_length mean nothing, and no episode is counted.

    Arrays may be views into the vectorizer's own buffers, valid until the next `send`.
    """

    env_ids: np.ndarray  # [B] int64
    obs: np.ndarray  # [B(, A), *item]; of the next episode where one ended
    reward: np.ndarray  # [B(, A)] float32
    terminated: np.ndarray  # [B(, A)] bool
    truncated: np.ndarray  # [B(, A)] bool
    mask: np.ndarray  # [B(, A)] bool: a real transition (an agent that was alive, a worker that answered)
    ended: np.ndarray  # [B] bool: the env's episode is over, and obs belongs to the next one
    final_obs: np.ndarray  # [K(, A), *item], the rows of `ended` in order
    episode_return: np.ndarray  # [K(, A)] float64, raw: before reward wrappers
    episode_length: np.ndarray  # [K] int64, env steps

    @property
    def filler(self) -> np.ndarray:
        """[B] bool: rows in which no transition happened."""
        return self.ended & ~self.mask.reshape(len(self.ended), -1).any(axis=1)


@dataclass(frozen=True)
class Episode:
    """One finished training episode: its env, its raw return (mean over agents) and its length in env steps."""

    env_id: int
    episode_return: float
    length: int


@dataclass
class Rollout:
    """T steps × N columns; a column is one fragment of one env's life. The one data item learners see."""

    env_id: Tensor  # [N] int64
    policy_version: Tensor  # [T, N] int64: which weights acted
    mask: Tensor  # [T, N(, A)] bool: a real transition
    obs: Tensor  # [T, N(, A), *item]
    action: Tensor  # [T, N(, A), *item], as the policy drew it
    reward: Tensor  # [T, N(, A)] float32
    terminated: Tensor  # [T, N(, A)] bool
    truncated: Tensor  # [T, N(, A)] bool
    is_first: Tensor  # [T, N(, A)] bool: obs begins an episode
    last_obs: Tensor  # [N(, A), *item]: the observation after the last step
    last_is_first: Tensor  # [N(, A)] bool: last_obs begins an episode
    final_index: Tensor  # [K, 2] int64: (t, n) of the steps that ended an episode
    final_obs: Tensor  # [K(, A), *item]: what those steps led to
    state: Tensor | None = None  # [N(, A), S]: recurrent state before the first step
    final_state: Tensor | None = None  # [K(, A), S]: recurrent state with which final_obs is read
    extras: dict[str, Tensor] = field(default_factory=dict)  # [T, N(, A), *]: whatever the policy returned
    episodes: list[Episode] = field(default_factory=list)  # finished while these columns were filled
    dropped_steps: int = 0  # env steps that were thrown away, as too old or lost, since the rollout before

    @property
    def real(self) -> Tensor:
        """[T, N] bool: env transitions, which at least one agent made."""
        return self.mask if self.mask.dim() == 2 else self.mask.any(dim=2)

    def truncated_finals(self) -> tuple[Tensor, Tensor]:
        """The (t, n) [K, 2] of steps that were cut by a time limit, and the observations [K, …] they led to."""
        at = self.final_index
        cut = self.truncated[at[:, 0], at[:, 1]]
        cut = cut if cut.dim() == 1 else cut.any(dim=1)
        return at[cut], self.final_obs[cut]

    @property
    def num_env_steps(self) -> int:
        """Env transitions in it: not frames, not agents."""
        return int(self.real.sum())


@dataclass
class ActOutput:
    """What a policy answers: `action` [B(, A), *item], next recurrent `state`, `extras` to keep with the step."""

    action: Tensor
    state: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Snapshot:
    """What a learner publishes to actors: weights and buffers by name, and scalars that steer acting."""

    version: int
    env_steps: int
    weights: Mapping[str, Tensor]
    scalars: Mapping[str, float] = field(default_factory=dict)


class Policy(Protocol):
    """An `nn.Module` that acts. It owns the observation normaliser; only the learner writes to it."""

    noise_dim: int  # uniform numbers one action takes
    noise_period: int  # steps of an env that get the same numbers; 1: fresh ones every step
    state_size: int  # S; 0: no memory

    def act(
        self, obs: Tensor, state: Tensor | None, is_first: Tensor, noise: Tensor, greedy: bool = False
    ) -> ActOutput:
        """Choose actions. Pure: `noise` [B(, A), noise_dim] in (0, 1) is the only randomness."""
        ...

    def env_action(self, action: np.ndarray) -> np.ndarray:
        """The action as the env takes it: squashed or clipped into a Box, shifted by a Discrete's start."""
        ...

    def update_normalizer(self, rollout: Rollout) -> None:
        """Fold a rollout's observations into the running statistics."""
        ...


class Algorithm(Protocol):
    """What learns. Owns critics, targets, optimizers and replay."""

    policy: Any
    num_steps: int  # T of the rollouts it wants

    def update(self, rollout: Rollout, progress: float = 0.0) -> Metrics:
        """Learn from a rollout; `progress` in [0, 1] is the share of the budget used, for schedules."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, as nested dicts of tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


@runtime_checkable
class ActorPool(Protocol):
    """Where acting runs. The training loop knows nothing else of it."""

    watch: Any  # a `parl_cli.metrics.timing.Stopwatch` of what it costs the learner's thread

    def publish(self, snapshot: Snapshot) -> None:
        """Hand out new weights; the latest wins; never blocks."""
        ...

    def get(self, n: int) -> list[Rollout]:
        """The next n rollouts, in bounded time; re-raises an actor's error."""
        ...

    def metrics(self) -> Metrics:
        """What actors did since the last call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the next rollout depends on besides the weights."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...

    def close(self) -> None:
        """End every process and thread, in bounded time."""
        ...


class Hook(Protocol):
    """Something that looks at every update: metrics, checkpoints, evaluation, the live panel."""

    def after_update(self, learner: Any, metrics: Metrics) -> None:
        """Called once per update, after the new weights were published."""
        ...
