"""Adam and gradient clipping over parameters that lie in one tensor: a few kernels, whatever the network's depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parl_cli.algos.common import check_optimizer_state
from parl_cli.policies.fused import FlatParameters


class FlatAdam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1), with a learning rate per group of parameters.

    Calls the kernel behind `torch.optim.Adam(fused=True)` on everything at once, without what that class does around
    it, which on a small network costs several times the arithmetic. What it saves is what that class would.

    Args:
        flat: all parameters.
        groups: the same parameters, in the order of the saved state.
        learning_rate: alpha of every group, until `learning_rates` says otherwise.
        eps: added to the root of the second moment.
        betas: decay of the first and the second moment.
    """

    def __init__(
        self,
        flat: FlatParameters,
        groups: Sequence[Sequence[Tensor]],
        *,
        learning_rate: float,
        eps: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.flat = flat
        self.learning_rates = [learning_rate] * len(groups)
        self.eps = eps
        self.betas = betas
        self._step = torch.zeros((), device=flat.data.device)
        tensors = flat.data, flat.grad, torch.zeros_like(flat.data), torch.zeros_like(flat.data)
        self._whole = [[tensor] for tensor in tensors]
        views = dict(zip(flat.parameters, zip(*map(flat.views, tensors), strict=True), strict=True))
        self._groups = [list(map(list, zip(*(views[p] for p in group), strict=True))) for group in groups]
        moments = [views[p][2:] for group in groups for p in group]
        self._state = [{"step": self._step, "exp_avg": m, "exp_avg_sq": v} for m, v in moments]

    def zero_grad(self) -> None:
        """Forget the gradient; in place, since parameters hold views of it."""
        self.flat.grad.zero_()

    @torch.no_grad()
    def step(self, max_grad_norm: float | None = None) -> Tensor:
        """One update from the gradient, whose norm is first clipped to `max_grad_norm`.

        Returns:
            The gradient's norm before clipping, a scalar.

        Raises:
            RuntimeError: the parameters were moved or replaced.
        """
        self.flat.check()
        norm = torch.linalg.vector_norm(self.flat.grad)
        if max_grad_norm is not None:
            self.flat.grad.div_((norm / max_grad_norm).clamp_(min=1.0))
        self._step.add_(1)
        if len(set(self.learning_rates)) == 1:
            self._update(self._whole, self.learning_rates[0])
        else:
            for group, learning_rate in zip(self._groups, self.learning_rates, strict=True):
                self._update(group, learning_rate)
        return norm

    def _update(self, tensors: list[list[Tensor]], learning_rate: float) -> None:
        data, grads, exp_avgs, exp_avg_sqs = tensors
        torch._fused_adam_(
            data,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [],
            [self._step] * len(data),
            lr=learning_rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """As `optimizer_state` gives it of a `torch.optim.Adam` over the same groups."""
        return {str(index): dict(entry) for index, entry in enumerate(self._state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; {} is the state before the first update.

        Raises:
            ValueError: it is not the state of these parameters.
        """
        check_optimizer_state([entry["exp_avg"] for entry in self._state], state)
        steps = {float(entry["step"]) for entry in state.values()}
        if len(steps) > 1 or not all(step >= 0 and step.is_integer() for step in steps):
            raise ValueError(f"optimizer state has steps {sorted(steps)}: must be one count")
        for index, entry in enumerate(self._state):
            for name, tensor in entry.items():
                tensor.copy_(state[str(index)][name]) if state else tensor.zero_()
