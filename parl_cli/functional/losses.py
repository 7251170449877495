"""The pieces of PPO's loss, and the rules that steer it between updates.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv:1707.06347), cited as PPO.

The tensor functions work per sample, `[*lead]` in and out; `masked_mean` turns samples into a loss.
r = pi_new(a|o) / pi_old(a|o), with log-probabilities joint over action dimensions.

`mask` is bool, true for a real transition; None stands for all true, and saves its cost. Masked rows may hold anything,
NaN included, as long as it was not computed from trainable weights: a NaN that is masked out here still comes back in
the backward pass of the op that made it.

The functions at the end take and give plain floats: they run once per update.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of `x` over real transitions, a scalar; 0 where there is none.

    Args:
        x: [*lead].
        mask: bool [*lead], or None for all true.

    Raises:
        ValueError: the shapes differ.
    """
    if mask is None:
        return x.mean()
    if x.shape != mask.shape:
        raise ValueError(f"x {tuple(x.shape)} and mask {tuple(mask.shape)}: must have the same shape")
    return x.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def backward_of_mean(x: Tensor, mask: Tensor | None) -> None:
    """What `masked_mean(x, mask).backward()` does to the gradients, without the reductions.

    Straight to autograd's engine: `Tensor.backward` with a gradient compares sizes by way of sympy, whose import takes
    most of a second of every run, and the comparison as long as a layer of a small network.
    """
    weights = torch.full_like(x, 1.0 / x.numel()) if mask is None else mask.to(x.dtype) / mask.sum().clamp(min=1)
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward((x,), (weights,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def ppo_clip_loss(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """PPO's clipped surrogate, PPO eq. 7, as a loss: −min(r A, clip(r, 1 − eps, 1 + eps) A), to be minimised.

    Only one of the two bounds can be the smaller, by the sign of A, so this is −min(r A, A + eps |A|).

    The gradient is 0 where the step has gone far enough: r > 1 + eps with A > 0, r < 1 − eps with A < 0. A ratio that
    is out on the other side keeps its gradient, so that a bad step can be taken back.

    Args:
        ratio: r, [*lead].
        advantage: A, [*lead].
        clip_range: eps, greater than 0.

    Returns:
        Loss per sample, [*lead].
    """
    cost = -advantage
    return torch.maximum(cost * ratio, torch.sub(cost, cost.abs(), alpha=clip_range))


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, clip_range: float | None = None) -> Tensor:
    """Half the squared error of the critic, optionally clipped.

    PPO eq. 9 has (V − V_targ)²; the half is OpenAI Baselines', whose value coefficient 0.5 everyone has copied. The
    clipped form is Baselines' too (detail 9 of Huang et al. 2022, "The 37 implementation details of PPO"):
    ½ max((V − R)², (V_old + clip(V − V_old, ±eps) − R)²).

    Args:
        value: V, [*lead].
        old_value: V when the rollout was made, [*lead]; only read when clipping.
        returns: R, [*lead].
        clip_range: eps, in units of the return; None for no clipping.

    Returns:
        Loss per sample, [*lead].
    """
    error = F.mse_loss(value, returns, reduction="none")
    if clip_range is not None:
        clipped = old_value + (value - old_value).clamp(-clip_range, clip_range)
        error = torch.maximum(error, F.mse_loss(clipped, returns, reduction="none"))
    return 0.5 * error


def approx_kl(log_ratio: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(pi_old || pi_new), per sample: (r − 1) − log r.

    Schulman 2020, "Approximating KL Divergence". Its mean over actions that pi_old drew is unbiased, and no sample is
    negative.

    Args:
        log_ratio: log r = log pi_new(a|o) − log pi_old(a|o), [*lead].
    """
    return torch.expm1(log_ratio) - log_ratio  # expm1: exp(x) − 1 − x loses every digit near 0


@torch.no_grad()
def normalize_advantage(advantage: Tensor, mask: Tensor | None, eps: float = 1e-8, *, batch_dims: int = 0) -> Tensor:
    """Advantages shifted and scaled to mean 0 and standard deviation 1 over real transitions; masked rows become 0.

    The population's standard deviation, so that a single sample gives 0 and not NaN.

    Args:
        advantage: [*lead].
        mask: bool [*lead], or None for all true.
        eps: added to the standard deviation.
        batch_dims: how many of the first dimensions are apart: with 1, [M, ...] is M minibatches.
    """
    dims = tuple(range(batch_dims, advantage.dim()))
    if mask is None:
        std, mean = torch.std_mean(advantage, dims, correction=0, keepdim=True)
        return (advantage - mean) / (std + eps)
    count = mask.sum(dims, keepdim=True).clamp(min=1)
    centred = advantage - advantage.masked_fill(~mask, 0.0).sum(dims, keepdim=True) / count
    centred = centred.masked_fill(~mask, 0.0)
    return centred / ((centred.square().sum(dims, keepdim=True) / count).sqrt() + eps)


@torch.no_grad()
def explained_variance(value: Tensor, returns: Tensor, mask: Tensor | None) -> Tensor:
    """How much of the returns' variance the critic explains: 1 − Var(R − V) / Var(R), a scalar.

    1 is a perfect critic, 0 one no better than a constant, below 0 a worse one. NaN where the returns do not vary:
    there is nothing to explain.

    Args:
        value: V, [*lead].
        returns: R, [*lead].
        mask: bool [*lead], or None for all true.
    """
    variance = _masked_variance(returns, mask)
    magnitude = masked_mean(returns.square(), mask)
    # a constant's variance is rounding noise; dividing by it would give a figure of any size
    undefined = variance <= magnitude * torch.finfo(returns.dtype).eps ** 2 * 16
    return (1.0 - _masked_variance(returns - value, mask) / variance).masked_fill(undefined, torch.nan)


def kl_penalty_coef(coef: float, kl: float, target: float) -> float:
    """The next KL-penalty coefficient beta of PPO's eq. 8, by the rule below it.

    Doubled when the update's KL was above 1.5 · target, halved when it was below target / 1.5; kept between 1e-6 and
    1e6, so that it comes back from a long time on one side.

    Args:
        coef: beta, greater than 0.
        kl: mean KL(pi_old || pi_new) after the update.
        target: d_targ, greater than 0.
    """
    if kl > 1.5 * target:
        return max(coef, min(coef * 2.0, 1e6))
    return min(coef, max(coef / 2.0, 1e-6)) if kl < target / 1.5 else coef


def kl_adaptive_lr(lr: float, kl: float, target: float, *, factor: float = 1.5, min_lr: float, max_lr: float) -> float:
    """The next learning rate, steered by how far the policy moved.

    The practice of RSL-RL (Rudin et al. 2022, "Learning to Walk in Minutes", arXiv:2109.11978, whose code has this rule
    with factor 1.5): divided by `factor` when the KL was above 2 · target, multiplied by it when the KL was below
    target / 2. A KL of exactly 0 changes nothing: the first minibatch has it by construction.

    Args:
        lr: the learning rate the KL was measured with.
        kl: mean KL(pi_old || pi_new).
        target: the KL to hold, greater than 0.
        factor: size of a step, greater than 1.
        min_lr: lower bound of the result.
        max_lr: upper bound of the result.
    """
    if kl > 2.0 * target:
        lr = lr / factor
    elif 0.0 < kl < target / 2.0:
        lr = lr * factor
    return min(max(lr, min_lr), max_lr)


def _masked_variance(x: Tensor, mask: Tensor | None) -> Tensor:
    return masked_mean((x - masked_mean(x, mask)).square(), mask)
