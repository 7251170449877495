"""The policy objectives of the Truly PPO family.

Wang et al. 2019, "Truly Proximal Policy Optimization" (arXiv:1903.07940, UAI 2019), cited as TPPO with the equation
numbers of the UAI version. PPO's clipping does not bound the ratio, and a bounded ratio does not bound the KL
divergence. The paper mends the first by *rollback* (an objective that falls once a sample has gone too far) and the
second by a *trigger* that looks at the KL instead of the ratio:

objective   | trigger looks at | where it fires
PPO         | ratio            | flat: no gradient
PPO-RB      | ratio            | falls with the ratio
TR-PPO      | KL               | flat: no gradient
TR-PPO-RB   | KL               | falls with the ratio
Truly PPO   | KL               | falls with the KL

All functions work per sample, `[*lead]` in and out, and give losses, to be minimised. r = pi_new(a|o) / pi_old(a|o) and
KL = KL(pi_old || pi_new) at the sample's observation, both joint over action dimensions.

Trap: a sample has gone too far only where its own objective has grown, r A > A; that is r > 1 for A > 0 but r < 1 for
A < 0. A trigger without the sign of A punishes the steps that lead back, and feeds those that lead away.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ratio_trigger(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Where the ratio has gone too far: r > 1 + eps with A >= 0, r < 1 − eps with A < 0.

    TPPO eq. 7, the clipping condition: where it holds, PPO's objective is flat.

    Args:
        ratio: r, [*lead].
        advantage: A, [*lead].
        clip_range: eps, greater than 0.

    Returns:
        bool [*lead].
    """
    return torch.where(advantage >= 0, ratio > 1.0 + clip_range, ratio < 1.0 - clip_range)


def trust_region_trigger(ratio: Tensor, advantage: Tensor, kl: Tensor, delta: float) -> Tensor:
    """Where the policy has left the trust region by following this sample: KL >= delta and r A > A.

    TPPO eq. 15. The second condition lets a sample that moved against its advantage find its way back; the paper found
    clipping without it to be "extremely bad". It has r A >= A; > as in the authors' code leaves r = 1 its gradient.

    Args:
        ratio: r, [*lead].
        advantage: A, [*lead].
        kl: KL(pi_old || pi_new), [*lead].
        delta: size of the trust region in nats, at least 0.

    Returns:
        bool [*lead].
    """
    return (kl >= delta) & (ratio * advantage > advantage)


def ppo_rb_loss(ratio: Tensor, advantage: Tensor, fired: Tensor, *, clip_range: float, slope_rollback: float) -> Tensor:
    """PPO with rollback, TPPO eq. 11: maximises r A, or where it fired [s r + (1 − s) edge] A.

    edge = 1 + eps for A >= 0 and 1 − eps for A < 0, which makes the objective continuous. s = 0 is PPO itself.

    Args:
        ratio: r, [*lead].
        advantage: A, [*lead].
        fired: bool [*lead], from `ratio_trigger` with the same eps.
        clip_range: eps, greater than 0.
        slope_rollback: s = −alpha, at most 0.
    """
    edge = 1.0 + clip_range * advantage.sign()  # A = 0: no objective, whatever the edge
    rolled_back = slope_rollback * ratio + (1.0 - slope_rollback) * edge
    return -torch.where(fired, rolled_back, ratio) * advantage


def tr_ppo_loss(ratio: Tensor, advantage: Tensor, fired: Tensor) -> Tensor:
    """PPO with the trust region's trigger, TPPO eq. 15: maximises r A, or where it fired stopgrad(r A).

    The paper writes the constant A there; r A has the same gradient, none, and is continuous.

    Args:
        ratio: r, [*lead].
        advantage: A, [*lead].
        fired: bool [*lead], from `trust_region_trigger`.
    """
    objective = ratio * advantage
    return -torch.where(fired, objective.detach(), objective)


def tr_ppo_rb_loss(ratio: Tensor, advantage: Tensor, fired: Tensor, *, slope_rollback: float) -> Tensor:
    """TR-PPO with rollback on the ratio: maximises r A, or where it fired [s r + stopgrad((1 − s) r)] A.

    TPPO eq. 16 with the trigger of eq. 15, in the form of the authors' code: the paper writes s r A where it fired,
    which has the same gradient but jumps. s = 0 is TR-PPO.

    Args:
        ratio: r, [*lead].
        advantage: A, [*lead].
        fired: bool [*lead], from `trust_region_trigger`.
        slope_rollback: s = −alpha, at most 0.
    """
    rolled_back = slope_rollback * ratio + (1.0 - slope_rollback) * ratio.detach()
    return -torch.where(fired, rolled_back, ratio) * advantage


def truly_ppo_loss(
    ratio: Tensor, advantage: Tensor, kl: Tensor, fired: Tensor, *, alpha: float, slope_likelihood: float
) -> Tensor:
    """Truly PPO: maximises r A, or where it fired slope_likelihood · r A − alpha KL.

    TPPO in its later arXiv versions, and the authors' code. The published form also subtracts alpha delta where it did
    not fire, for continuity across KL = delta. A constant has no gradient, and without it the value reads as r A.
    `slope_likelihood` is the authors' code's: 1 in general, 0 for Humanoid, where the KL alone pulls back.

    Args:
        ratio: r, [*lead].
        advantage: A, [*lead].
        kl: KL(pi_old || pi_new), differentiable in pi_new, [*lead].
        fired: bool [*lead], from `trust_region_trigger`.
        alpha: weight of the KL where it fired, at least 0.
        slope_likelihood: share of r A kept where it fired.
    """
    objective = ratio * advantage
    return -torch.where(fired, slope_likelihood * objective - alpha * kl, objective)
