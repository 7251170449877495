"""How long PPO's learner takes for one minibatch, by part and size, fused and through the policy's modules.

    python tests/benchmarks/learner.py [--rows 64 256] [--rounds 30] [--threads 1]

Two 64×64 tanh networks, the spaces of CartPole and of HalfCheetah (there with normalised observations). Both ways take
turns minibatch by minibatch, and medians are printed: on a machine that has other work the times grow, the ratio holds.
Nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.policies.actor_critic import ActorCritic, ActorCriticConfig
from parl_cli.types import EnvSpec, Rollout

SPECS = {
    "CartPole": EnvSpec("CartPole", spaces.Box(-5, 5, (4,), np.float32), spaces.Discrete(2)),
    "HalfCheetah": EnvSpec("HalfCheetah", spaces.Box(-5, 5, (17,), np.float64), spaces.Box(-1, 1, (6,), np.float32)),
}
COLUMNS, MINIBATCHES = 64, 8

Timings = dict[str, list[float]]  # µs by part


def timed(timings: list[float], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which notes how long each call took."""

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **kwargs)
        timings.append(1e6 * (time.perf_counter() - started))
        return result

    return call


def make_rollout(policy: ActorCritic, spec: EnvSpec, rows: int) -> Rollout:
    """Random observations and rewards, with the actions that the policy chose; no episode ends."""
    lead = rows * MINIBATCHES // COLUMNS, COLUMNS
    obs = torch.randn(lead[0] + 1, COLUMNS, *spec.observation_space.shape, dtype=torch.float32)
    if spec.observation_space.dtype == np.float64:
        obs = obs.double()
    flags = torch.zeros(lead, dtype=torch.bool)
    with torch.no_grad():
        output = policy.act(obs[:-1], None, flags, torch.rand(*lead, policy.noise_dim).clamp(1e-3, 1 - 1e-3))
    return Rollout(
        env_id=torch.arange(COLUMNS),
        policy_version=torch.zeros(lead, dtype=torch.int64),
        mask=~flags,
        obs=obs[:-1],
        action=output.action,
        reward=torch.randn(lead),
        terminated=flags,
        truncated=flags,
        is_first=flags,
        last_obs=obs[-1],
        last_is_first=flags[0],
        final_index=torch.zeros(0, 2, dtype=torch.int64),
        final_obs=obs[-1, :0],
        extras=output.extras,
    )


class Learner:
    """PPO on one rollout, its parts timed."""

    def __init__(self, spec: EnvSpec, rows: int, *, fused: bool) -> None:
        torch.manual_seed(0)
        policy = ActorCritic(spec, ActorCriticConfig(normalize_obs=isinstance(spec.action_space, spaces.Box)))
        if not fused:
            policy.fused = None
        self.algo = PPO(policy, PPOConfig(num_epochs=1, num_minibatches=MINIBATCHES))
        self.rollout = make_rollout(policy, spec, rows)
        self.timings: Timings = {name: [] for name in ("whole step", "forward", "optimizer", "act on 64 rows")}
        for name, owner, method in (
            ("whole step", self.algo, "_minibatch_step"),
            ("forward", policy, "evaluate_features"),
            ("optimizer", self.algo.optimizer, "step"),
        ):
            setattr(owner, method, timed(self.timings[name], getattr(owner, method)))
        self.act = timed(self.timings["act on 64 rows"], policy.act)

    def run(self) -> None:
        """One epoch, and one choice of actions per minibatch."""
        self.algo.update(self.rollout)
        noise = torch.full((COLUMNS, self.algo.policy.noise_dim), 0.3)
        with torch.no_grad():
            for obs in self.rollout.obs[:MINIBATCHES]:
                self.act(obs, None, self.rollout.is_first[0], noise)

    def medians(self) -> dict[str, float]:
        """µs by part; what is left of a step is the loss and the backward pass."""
        times = {name: statistics.median(values) for name, values in self.timings.items()}
        rest = times["whole step"] - times["forward"] - times["optimizer"]
        return {"whole step": times["whole step"], "forward": times["forward"], "loss, backward": rest} | {
            name: times[name] for name in ("optimizer", "act on 64 rows")
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256], help="of a minibatch; multiples of 8")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, spec in SPECS.items():
        for rows in options.rows:
            fused, modules = Learner(spec, rows, fused=True), Learner(spec, rows, fused=False)
            for _ in range(options.rounds):
                fused.run()
                modules.run()
            print(f"{name}, {rows} rows{'fused':>22}{'modules':>12}{'ratio':>8}")
            for part, slow in modules.medians().items():
                fast = fused.medians()[part]
                print(f"  {part:<20}{fast:>12.0f} µs{slow:>9.0f} µs{slow / fast:>8.2f}")


if __name__ == "__main__":
    main()
