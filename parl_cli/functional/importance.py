"""Importance ratios pi(a|o) / mu(a|o): how far the policy that learns is from the one that acted.

`mask` is bool, true for a real transition; None stands for all true. Everything runs without autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parl_cli.functional.losses import masked_mean
from parl_cli.types import Metrics


@torch.no_grad()
def effective_share(log_ratio: Tensor, mask: Tensor | None = None) -> Tensor:
    """The effective sample size of importance-weighted samples, as a share of their number: (Σ r)² / (n Σ r²).

    Kish 1965, "Survey Sampling". 1 where all ratios are equal, 1/n where one of them outweighs all others.

    Args:
        log_ratio: log r, [*lead].
        mask: bool [*lead], or None.

    Returns:
        A scalar in (0, 1]; NaN where nothing is real.
    """
    kept = log_ratio.flatten() if mask is None else log_ratio[mask]
    # by logarithms: r² leaves float32 when log r = 44
    log_share = 2 * kept.logsumexp(0) - (2 * kept).logsumexp(0)
    return log_share.exp() / kept.numel()


@torch.no_grad()
def ratio_metrics(log_ratio: Tensor, rho_bar: float, mask: Tensor | None) -> Metrics:
    """What V-trace makes of the ratios: the mean of min(rho_bar, r), the share of Σ r that this clips off, the ESS.

    Half of all ratios are above 1 after the smallest step: the share of samples that are clipped would say nothing.

    Args:
        log_ratio: log r, [*lead].
        rho_bar: V-trace's clip.
        mask: bool [*lead], or None.
    """
    ratio = log_ratio.exp()
    clipped, whole = masked_mean(ratio.clamp(max=rho_bar), mask), masked_mean(ratio, mask)
    return {
        "vtrace/rho_mean": float(clipped),
        "vtrace/clipped_share": float(1 - clipped / whole),
        "policy/ess": float(effective_share(log_ratio, mask)),
    }
