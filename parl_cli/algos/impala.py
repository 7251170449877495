"""IMPALA: actor-critic on rollouts of actors that lag behind, corrected by V-trace (Espeholt et al. 2018, 1802.01561).

A2C with V-trace's value targets v_t (eq. 1) and advantages rho_t (r_t + gamma v_{t+1} − V(o_t)) (section 4.2), both
with the current critic and the current policy, once per rollout.

Different from the paper: losses are means, where it sums them over 32 rollouts of 20 steps. Its gradient clip of 40
and its RMSProp epsilon of 0.1, which stands under the root, are scaled to that: 40 / 640 and sqrt(0.1) / 640. See
`a2c.py` on RMSProp. Rewards are not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parl_cli.algos.a2c import A2C, A2CConfig, ScheduleKind
from parl_cli.algos.targets import Targets, critique, current_log_prob
from parl_cli.config import option
from parl_cli.functional.advantages import vtrace
from parl_cli.functional.importance import ratio_metrics
from parl_cli.types import Rollout


@dataclass(frozen=True)
class IMPALAConfig(A2CConfig):
    """A2C's hyper-parameters, and the clips of V-trace."""

    name: str = option("impala", "registered name")
    num_steps: int = option(20, "n: steps per env and rollout", ge=1)
    learning_rate: float = option(6e-4, "the optimizer's step size", gt=0)
    learning_rate_schedule: ScheduleKind = option(
        "linear", "constant; linear or cosine, over total_steps down to learning_rate_end"
    )
    optimizer_eps: float = option(5e-4, "added to the root of the mean square", gt=0)
    max_grad_norm: float | None = option(0.0625, "global gradient norm is clipped to this; null: no clipping", gt=0)
    gae_lambda: float = option(1.0, "lambda of V-trace's c_t (remark 2); 1 in the paper's experiments", ge=0, le=1)
    vtrace: bool = option(True, "correct for the actors' lag; false: A2C's targets")
    rho_bar: float = option(1.0, "clip of the ratio in the temporal difference", gt=0)
    c_bar: float = option(1.0, "clip of the ratio in the trace", gt=0)
    pg_rho_bar: float = option(1.0, "clip of the ratio in the policy gradient", gt=0)


class IMPALA(A2C):
    """A2C with V-trace."""

    Config = IMPALAConfig
    config: IMPALAConfig
    summary: ClassVar[str] = "actor-critic for actors that lag behind: V-trace, one pass over each rollout"
    neighbour: ClassVar[str] = "a2c"
    supports: ClassVar[dict[str, tuple[str, ...]]] = A2C.supports | {"actors": ("inline", "thread", "process")}

    def targets(self, rollout: Rollout) -> Targets:
        """V-trace's; see `vtrace`."""
        config = self.config
        if not config.vtrace:
            return super().targets(rollout)
        seen = critique(self.policy, rollout)
        behaviour, current = rollout.extras["log_prob"], current_log_prob(self.policy, rollout)
        vs, advantage = vtrace(
            behaviour,
            current,
            rollout.reward,
            *seen,
            gamma=config.gamma,
            lam=config.gae_lambda,
            rho_bar=config.rho_bar,
            c_bar=config.c_bar,
            pg_rho_bar=config.pg_rho_bar,
        )
        return Targets(seen.value, advantage, vs, ratio_metrics(current - behaviour, config.rho_bar, rollout.mask))
