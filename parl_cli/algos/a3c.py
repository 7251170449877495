"""A3C: actor-critic on rollouts of actors that run on their own (Mnih et al. 2016, arXiv:1602.01783, algorithm S3).

Short rollouts, n-step returns, one pass; that the policy has moved on since a rollout was acted is not corrected, nor
clipped. With actors in lock-step it is A2C.

Different from the paper: there each worker computes gradients on the weights it acted with, and applies them to
weights that have moved on. Here actors send rollouts, and a central learner computes the gradients, on weights that
have moved on. In both the actions are a few updates old; here the gradient's weights are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parl_cli.algos.a2c import A2C, A2CConfig, ScheduleKind
from parl_cli.config import option


@dataclass(frozen=True)
class A3CConfig(A2CConfig):
    """A2C's hyper-parameters, with the paper's schedule."""

    name: str = option("a3c", "registered name")
    learning_rate_schedule: ScheduleKind = option(
        "linear", "constant; linear or cosine, over total_steps down to learning_rate_end"
    )


class A3C(A2C):
    """A2C that does not mind by how old a policy its rollouts were acted."""

    Config = A3CConfig
    summary: ClassVar[str] = (
        "A2C for actors that lag behind, uncorrected; gradients by a central learner, not by the actors"
    )
    neighbour: ClassVar[str] = "a2c"
    supports: ClassVar[dict[str, tuple[str, ...]]] = A2C.supports | {"actors": ("inline", "thread", "process")}
