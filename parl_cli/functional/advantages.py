"""Returns and advantages of a rollout: GAE, V-trace, n-step.

Notation. T = steps, lead = `(N,)` or `(N, A)`; every tensor is `[T, *lead]`, the flags are bool. `value` is V(o_t);
`next_value` is V(o_{t+1}) of the observation the step really led to, *before* any autoreset. So inside an episode
`next_value[t] == value[t + 1]`, and at the last step it is the value of `last_obs`.

Ends. A terminated step has no future: `next_value` is not looked at there, whatever it holds. A truncated step has
one that was not seen: it bootstraps from `next_value`. Nothing is carried back over either kind of end, nor over
the end of the rollout, where `next_value` is the bootstrap again.

Masked rows (`Rollout.mask`) need no argument here: no number crosses an end, so it is enough that the row before a
gap is an end. What comes out at masked rows is finite where the inputs are, and means nothing.

Everything runs without autograd: these are targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class VTrace(NamedTuple):
    """What `vtrace` returns; both [T, *lead]."""

    vs: Tensor
    pg_advantage: Tensor


@torch.no_grad()
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    """Generalised advantage estimation.

    Schulman et al. 2016 (arXiv:1506.02438), eq. 16. A truncated step bootstraps from `next_value`, a terminated one
    does not; the sum stops at both.

    Args:
        reward: r_t, [T, *lead].
        value: V(o_t), [T, *lead].
        next_value: V(o_{t+1}) before any autoreset, [T, *lead].
        terminated: the episode ended in a state without a future, bool [T, *lead].
        truncated: the episode was cut off, bool [T, *lead]; `terminated` wins where both are set.
        gamma: discount, in [0, 1].
        lam: trace decay, in [0, 1].

    Returns:
        Advantages, [T, *lead]. Add `value` for the lambda-return.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(reward, value, next_value, terminated, truncated)
    delta = _target(reward, next_value, terminated, gamma) - value
    decay = (gamma * lam) * (~(terminated | truncated)).to(delta.dtype)
    return _decayed_sum(delta, decay)


@torch.no_grad()
def vtrace(
    behaviour_log_prob: Tensor,
    target_log_prob: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    pg_rho_bar: float = 1.0,
) -> VTrace:
    """V-trace value targets and policy-gradient advantages from another policy's rollout.

    Espeholt et al. 2018 (arXiv:1802.01561), eq. 1 and section 4.2, with the trace decay `lam` of its remark 2. With
    ratio_t = pi(a_t|o_t) / mu(a_t|o_t), rho_t = min(rho_bar, ratio_t) and c_t = lam · min(c_bar, ratio_t):

        delta_t = rho_t (r_t + gamma V(o_{t+1}) − V(o_t))
        v_t = V(o_t) + delta_t + gamma c_t (v_{t+1} − V(o_{t+1}))
        pg_advantage_t = min(pg_rho_bar, ratio_t) (r_t + gamma v_{t+1} − V(o_t))

    At a truncated step and at the rollout's end v_{t+1} is `next_value`; at a terminated step it is 0.

    With pi = mu and rho_bar, c_bar, pg_rho_bar ≥ 1, where A^lam is `gae(…, lam=lam)`:
    `vs − value` = A^lam for every lam, so `vs` is the lambda-return; `pg_advantage` = A^lam only for lam = 1. For
    lam < 1 it looks one full step ahead before the trace begins: `pg_advantage_t` = A^0_t + gamma A^lam_{t+1} inside an
    episode, and A^0_t at its end.

    Args:
        behaviour_log_prob: log mu(a_t|o_t), joint over action dimensions, [T, *lead].
        target_log_prob: log pi(a_t|o_t), likewise.
        reward: r_t, [T, *lead].
        value: V(o_t) by the current critic, [T, *lead].
        next_value: V(o_{t+1}) before any autoreset, [T, *lead].
        terminated: the episode ended in a state without a future, bool [T, *lead].
        truncated: the episode was cut off, bool [T, *lead]; `terminated` wins where both are set.
        gamma: discount, in [0, 1].
        lam: trace decay, in [0, 1]; 1 in the paper's experiments.
        rho_bar: clip of the ratio in the temporal difference; decides which policy's value is the fixed point.
        c_bar: clip of the ratio in the trace; decides the speed, not the fixed point.
        pg_rho_bar: clip of the ratio in the policy-gradient advantage.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(behaviour_log_prob, target_log_prob, reward, value, next_value, terminated, truncated)
    ratio = (target_log_prob - behaviour_log_prob).exp()
    end = terminated | truncated
    delta = ratio.clamp(max=rho_bar) * (_target(reward, next_value, terminated, gamma) - value)
    decay = (gamma * lam) * ratio.clamp(max=c_bar).masked_fill(end, 0.0)
    vs = value + _decayed_sum(delta, decay)
    next_vs = next_value.clone()  # right at ends and in the last row already
    next_vs[:-1] = torch.where(end[:-1], next_value[:-1], vs[1:])
    pg_advantage = ratio.clamp(max=pg_rho_bar) * (_target(reward, next_vs, terminated, gamma) - value)
    return VTrace(vs, pg_advantage)


@torch.no_grad()
def surrogate_advantage(
    vs: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    """The advantage for a surrogate r·A whose ratio r is to the policy that acted, with V-trace's value targets.

    There r itself weighs the step, so the advantage must not: it corrects what came after the step alone,

        A_t = r_t + gamma (V(o_{t+1}) + lam (v_{t+1} − V(o_{t+1}))) − V(o_t)

    without the last difference at an end. For lam = 1 this is Espeholt et al. 2018, section 4.2, without rho_t. With
    pi = mu it is `gae(…, lam=lam)` for every lam, which `vtrace`'s own advantage is only for lam = 1.

    Args:
        vs: v_t of `vtrace`, with the same arguments, [T, *lead].
        reward: r_t, [T, *lead].
        value: V(o_t), [T, *lead].
        next_value: V(o_{t+1}) before any autoreset, [T, *lead].
        terminated: the episode ended in a state without a future, bool [T, *lead].
        truncated: the episode was cut off, bool [T, *lead]; `terminated` wins where both are set.
        gamma: discount, in [0, 1].
        lam: trace decay, in [0, 1].

    Returns:
        Advantages, [T, *lead].

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(vs, reward, value, next_value, terminated, truncated)
    advantage = _target(reward, next_value, terminated, gamma) - value
    end = (terminated | truncated)[:-1]
    advantage[:-1] += (gamma * lam) * (vs - value)[1:].masked_fill(end, 0.0)
    return advantage


@torch.no_grad()
def n_step_returns(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    n: int,
) -> Tensor:
    """Bootstrapped n-step returns inside a rollout.

    Mnih et al. 2016 (arXiv:1602.01783), section 4.3: with m = n, or fewer where the episode or the rollout ends sooner,

        G_t = r_t + gamma r_{t+1} + … + gamma^{m−1} r_{t+m−1} + gamma^m V(o_{t+m})

    without the last term where step t+m−1 terminated. `n ≥ T` gives A3C's returns: all that the rollout holds.

    Args:
        reward: r_t, [T, *lead].
        next_value: V(o_{t+1}) before any autoreset, [T, *lead].
        terminated: the episode ended in a state without a future, bool [T, *lead].
        truncated: the episode was cut off, bool [T, *lead]; `terminated` wins where both are set.
        gamma: discount, in [0, 1].
        n: rewards per return, at least 1.

    Returns:
        G, [T, *lead].

    Raises:
        ValueError: n < 1, or the shapes differ.
    """
    if n < 1:
        raise ValueError(f"n={n}: must be at least 1")
    _check_shapes(reward, next_value, terminated, truncated)
    one_step = _target(reward, next_value, terminated, gamma)
    end = (terminated | truncated)[:-1]
    returns = one_step
    for _ in range(min(n, len(reward)) - 1):
        longer = torch.where(end, one_step[:-1], torch.add(reward[:-1], returns[1:], alpha=gamma))
        returns = torch.cat([longer, one_step[-1:]])
    return returns


def _target(reward: Tensor, next_value: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    # masked_fill, not a product with 0: a terminal state's value may be anything, NaN included
    return torch.add(reward, next_value.masked_fill(terminated, 0.0), alpha=gamma)


def _decayed_sum(delta: Tensor, decay: Tensor) -> Tensor:
    """x_t = delta_t + decay_t x_{t+1}, backwards from x_T = 0."""
    # unbind, then one fused op a step: for small tensors the time is the number of calls
    deltas, decays = delta.unbind(), decay.unbind()
    sums = [deltas[-1]]
    for t in range(len(deltas) - 2, -1, -1):
        sums.append(torch.addcmul(deltas[t], decays[t], sums[-1]))
    return torch.stack(sums[::-1])


def _check_shapes(*tensors: Tensor) -> None:
    # [T, N] against [T, N, 1] would broadcast to [T, N, N] and train on nonsense
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"shapes {', '.join(map(str, shapes))}: must all be the same [T, *lead]")
