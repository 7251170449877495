"""Stand-ins that pass through the real loop, to prove that the contracts hold for what comes later."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn

from parl_cli import build
from parl_cli.actors.base import Actor
from parl_cli.actors.inline import InlineActors, InlineActorsConfig
from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.config import CheckpointConfig, EnvConfig, EvalConfig, LoggerConfig, TrainConfig
from parl_cli.envs.toy import counting_seed
from parl_cli.policies.actor_critic import ActorCritic, ActorCriticConfig
from parl_cli.training.learner import Learner
from parl_cli.types import ActOutput, EnvSpec, EnvStep, Rollout
from parl_cli.vectorizers.serial import SerialVectorizer


def train_config(env_id: str = "CartPole-v1", **changes: Any) -> TrainConfig:
    """A small config without Hydra."""
    parts = {
        "name": "test",
        "total_steps": 1000,
        "num_envs": 4,
        "num_threads": 1,
        "env": EnvConfig(id=env_id),
        "vectorizer": SerialVectorizer.Config(),
        "policy": ActorCriticConfig(hidden_sizes=[8]),
        "actors": InlineActorsConfig(),
        "algo": PPOConfig(num_steps=16, num_minibatches=2, num_epochs=2),
        "checkpoint": CheckpointConfig(),
        "eval": EvalConfig(),
        "logger": LoggerConfig(plot=False, sinks={}),
    }
    return TrainConfig(**(parts | changes))


def make_vectorizer(
    env_fns: list[Any], cls: type = SerialVectorizer, episode_seed: Any = counting_seed, **kw: Any
) -> Any:
    """A vectorizer as the runner makes it."""
    return cls(env_fns, autoreset_mode="SameStep", episode_seed=episode_seed, **kw)


def make_actor(vectorizer: Any, policy: Any, num_steps: int = 16) -> Actor:
    """An actor with a fixed noise key."""
    return Actor(vectorizer, policy, num_steps=num_steps, noise_key=7)


def make_learner(policy: Any, algo: Any = None, total_steps: int = 10_000) -> Learner:
    """A CPU learner, PPO by default."""
    algo = algo or PPO(policy, PPOConfig(num_steps=16, num_minibatches=2, num_epochs=2))
    return Learner(algo, total_steps=total_steps, device=torch.device("cpu"))


def make_policy(spec: EnvSpec, cls: type = ActorCritic, **changes: Any) -> Any:
    """A small policy with fixed weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(spec, dataclasses.replace(ActorCriticConfig(hidden_sizes=[8]), **changes))


class GRUPolicy(ActorCritic):
    """An actor-critic with a memory: a GRU between the observation and both heads."""

    state_size = 8

    def __init__(self, spec: EnvSpec, config: ActorCriticConfig) -> None:
        super().__init__(spec, config)
        self.cell = nn.GRUCell(self.encoder.size, self.state_size)

    def remember(self, obs: torch.Tensor, state: torch.Tensor, is_first: torch.Tensor) -> torch.Tensor:
        state = state.masked_fill(is_first.unsqueeze(-1), 0.0)
        features = self.features(obs)
        flat = self.cell(features.reshape(-1, features.shape[-1]), state.reshape(-1, self.state_size))
        return flat.reshape(state.shape)

    def unroll(self, obs: torch.Tensor, state: torch.Tensor, is_first: torch.Tensor) -> torch.Tensor:
        states = []
        for t in range(len(obs)):
            state = self.remember(obs[t], state, is_first[t])
            states.append(state)
        return torch.stack(states)

    def act(self, obs: Any, state: Any, is_first: Any, noise: Any, greedy: bool = False) -> ActOutput:
        state = self.remember(obs, state, is_first)
        output = self.choose(state, noise, greedy)
        return dataclasses.replace(output, state=state)

    def evaluate(self, obs: Any, state: Any = None, is_first: Any = None) -> tuple[Any, torch.Tensor]:
        hidden = self.unroll(obs, state, is_first)
        return self.distribution(self.params(hidden)), self.value_head(hidden).squeeze(-1)

    @torch.no_grad()
    def values(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        obs = torch.cat([rollout.obs, rollout.last_obs.unsqueeze(0)])
        is_first = torch.cat([rollout.is_first, rollout.last_is_first.unsqueeze(0)])
        value = self.value_head(self.unroll(obs, rollout.state, is_first)).squeeze(-1)
        following = value[1:].clone()
        at, final_obs = rollout.truncated_finals()
        cut = rollout.truncated[rollout.final_index[:, 0], rollout.final_index[:, 1]]
        if len(at):
            state = rollout.final_state[cut]
            hidden = self.remember(final_obs, state, torch.zeros(state.shape[:-1], dtype=torch.bool))
            following[at[:, 0], at[:, 1]] = self.value_head(hidden).squeeze(-1)
        return value[:-1], following


class ShuffledVectorizer(SerialVectorizer):
    """Answers for some of the envs it was sent, in any order: what an asynchronous vectorizer does."""

    def __init__(self, env_fns: list[Any], **kwargs: Any) -> None:
        super().__init__(env_fns, **kwargs)
        self._waiting: dict[int, np.ndarray] = {}
        self._rng = np.random.default_rng(3)

    def send(self, actions: np.ndarray, env_ids: np.ndarray | None = None) -> None:
        ids = np.arange(self.num_envs) if env_ids is None else env_ids
        self._waiting.update(zip(ids.tolist(), actions, strict=True))

    def recv(self, timeout: float | None = None) -> EnvStep:
        ids = self._rng.permutation(sorted(self._waiting))[: self._rng.integers(1, len(self._waiting) + 1)]
        chosen = np.sort(ids)
        super().send(np.stack([self._waiting.pop(int(env)) for env in chosen]), chosen)
        step = super().recv(timeout)
        order = self._rng.permutation(len(chosen))
        ended = np.cumsum(step.ended) - 1
        finals = [int(ended[row]) for row in order if step.ended[row]]
        rows = {
            name: np.array(getattr(step, name))[order]
            for name in ("env_ids", "obs", "reward", "terminated", "truncated", "mask", "ended")
        }
        last = {n: np.array(getattr(step, n))[finals] for n in ("final_obs", "episode_return", "episode_length")}
        return EnvStep(**rows, **last)


class ReplayStub:
    """An off-policy algorithm's outline: rollouts of one step go into a replay of its own."""

    num_steps = 1

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.replay: deque[tuple[torch.Tensor, ...]] = deque(maxlen=64)

    def update(self, rollout: Rollout, progress: float = 0.0) -> dict[str, float]:
        next_obs = rollout.last_obs.clone()
        next_obs[rollout.final_index[:, 1]] = rollout.final_obs
        for n in range(rollout.obs.shape[1]):
            self.replay.append(
                (rollout.obs[0, n], rollout.action[0, n], rollout.reward[0, n], next_obs[n], rollout.terminated[0, n])
            )
        return {"loss/value": 0.0}

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])


def inline(vectorizer: Any, policy: Any, num_steps: int = 16) -> InlineActors:
    """An inline pool over one actor."""
    return InlineActors(make_actor(vectorizer, policy, num_steps))


def weights_hash(policy: nn.Module) -> bytes:
    """Every weight and buffer, byte for byte."""
    return b"".join(v.detach().cpu().numpy().tobytes() for v in policy.state_dict().values())


def build_all(config: TrainConfig) -> tuple[Learner, Any]:
    """Learner and pool of a config."""
    from parl_cli.envs.factory import env_spec

    learner = build.make_learner(config, env_spec(config.env))
    return learner, build.make_pool(config, learner.algo.policy)
