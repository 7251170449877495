"""Adam and gradient clipping over parameters that lie in one tensor: ten kernels, whatever the network's depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parl_cli.algos.common import check_optimizer_state
from parl_cli.policies.fused import FlatParameters


class FlatAdam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1), with a learning rate per group of parameters.

    The same arithmetic as `torch.optim.Adam`, whose Python alone costs more than this, to rounding; and the same
    saved state.

    Args:
        groups: the parameters; they are made views of `flat`, which holds all of them in order.
        learning_rate: alpha, of every group until `learning_rates` says otherwise.
        eps: added to the root of the second moment.
        betas: decay of the first and the second moment.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[nn.Parameter]],
        *,
        learning_rate: float,
        eps: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.flat = FlatParameters([p for group in groups for p in group])
        self.learning_rates = [learning_rate] * len(groups)
        self.eps = eps
        self.betas = betas
        self.num_updates = 0
        data = self.flat.data.detach()
        self._exp_avg, self._exp_avg_sq = torch.zeros_like(data), torch.zeros_like(data)
        self._scratch = torch.zeros_like(data)
        sizes = [sum(p.numel() for p in group) for group in groups]
        self._slices = list(zip(data.split(sizes), self._exp_avg.split(sizes), self._scratch.split(sizes), strict=True))

    def zero_grad(self) -> None:
        """Forget the gradient; in place, since parameters hold views of it."""
        self.flat.grad.zero_()

    @torch.no_grad()
    def step(self, max_grad_norm: float | None = None) -> Tensor:
        """One update from the gradient, whose norm is first clipped to `max_grad_norm`.

        Returns:
            The gradient's norm before clipping, a scalar.
        """
        grad = self.flat.grad
        norm = torch.linalg.vector_norm(grad)
        if max_grad_norm is not None:
            grad.mul_((max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self.num_updates += 1
        beta1, beta2 = self.betas
        self._exp_avg.lerp_(grad, 1 - beta1)
        self._exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        # alpha m̂ / (√v̂ + eps) with m̂ = m / c1 and v̂ = v / c2², both corrections drawn out of the tensors
        c1, c2 = 1 - beta1**self.num_updates, math.sqrt(1 - beta2**self.num_updates)
        torch.sqrt(self._exp_avg_sq, out=self._scratch).add_(self.eps * c2)
        for learning_rate, (data, exp_avg, denominator) in zip(self.learning_rates, self._slices, strict=True):
            data.addcdiv_(exp_avg, denominator, value=-learning_rate * c2 / c1)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """As `optimizer_state` gives it of a `torch.optim.Adam` over the same groups."""
        moments = zip(self.flat.views(self._exp_avg), self.flat.views(self._exp_avg_sq), strict=True)
        step = torch.tensor(float(self.num_updates))
        return {str(i): {"step": step, "exp_avg": m, "exp_avg_sq": v} for i, (m, v) in enumerate(moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; {} is the state before the first update.

        Raises:
            ValueError: it is not the state of these parameters.
        """
        check_optimizer_state(self.flat.parameters, state)
        steps = {float(entry["step"]) for entry in state.values()} or {0.0}
        if len(steps) > 1 or not all(step >= 0 and step.is_integer() for step in steps):
            raise ValueError(f"optimizer state has steps {sorted(steps)}: must be one count")
        self.num_updates = int(steps.pop())
        for name, moments in (("exp_avg", self._exp_avg), ("exp_avg_sq", self._exp_avg_sq)):
            moments.zero_()
            for key, entry in state.items():
                self.flat.views(moments)[int(key)].copy_(entry[name])
