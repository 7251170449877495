"""A perceptron actor-critic with a backward pass of its own, over parameters that lie end to end in one tensor.

At the sizes of classic control a network costs more to dispatch than to compute: dozens of autograd nodes, a gradient
per parameter. Here actor and critic are one node, their parameters one leaf, their gradient one tensor, and layers of
equal place are computed side by side, [2, …]. It is the same function as the modules that own the parameters, to
rounding; losses do not know of it.

With h_0 = x, layers h_k = f(h_{k−1} W_kᵀ + b_k) and a head y = h_K Vᵀ + c, rows being samples, the chain rule gives
from G = ∂L/∂y, going down:

    ∂L/∂V = Gᵀ h_K        ∂L/∂c = 1ᵀ G              E_K = G V (of a shared trunk: the sum over heads)
    D_k = E_k ⊙ f'(z_k)   ∂L/∂W_k = D_kᵀ h_{k−1}    ∂L/∂b_k = 1ᵀ D_k    E_{k−1} = D_k W_k

where f' is computed from h_k, so that no z is kept: tanh' = 1 − h², relu' = [h > 0], elu' = 1 or h + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _tanh_(z: Tensor) -> Tensor:
    """In place; on a CPU by numpy, whose vectorised tanh is several times as fast as torch's."""
    if z.device.type != "cpu":
        return z.tanh_()
    array = z.numpy()
    np.tanh(array, out=array)
    return z


class Activation(NamedTuple):
    """A non-linearity f whose slope can be told from what it puts out."""

    apply_: Callable[[Tensor], Tensor]  # in place
    backward: Callable[[Tensor, Tensor], Tensor]  # (∂L/∂h, h) → ∂L/∂z


_aten = torch.ops.aten
FUSED_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: Activation(_tanh_, _aten.tanh_backward),
    nn.ReLU: Activation(torch.relu_, lambda grad, h: _aten.threshold_backward(grad, h, 0)),
    nn.ELU: Activation(F.elu_, lambda grad, h: _aten.elu_backward(grad, 1, 1, 1, True, h)),
}


class FlatParameters:
    """Parameters end to end in one tensor, their gradients in another.

    The parameters stay what they are to everyone else, names and shapes included: only their `data` and `grad` become
    views. A gradient that reaches a parameter and one that reaches `data` add up in the same place, so `grad` is to be
    zeroed, never dropped.

    Args:
        parameters: of one dtype, on one device, in this order.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.data = torch.cat([p.detach().flatten() for p in self.parameters])
        self.grad = torch.zeros_like(self.data)
        for parameter, data, grad in zip(self.parameters, self.views(self.data), self.views(self.grad), strict=True):
            parameter.data, parameter.grad = data, grad
        self.leaf = self.data.detach().requires_grad_()  # the same memory, as autograd sees it
        self.leaf.grad = self.grad

    def views(self, flat: Tensor) -> list[Tensor]:
        """One view per parameter, of its shape, into a tensor as long as `data`."""
        pieces = flat.split([p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def check(self) -> None:
        """Refuse to go on where the parameters are no longer views: what is learned would not reach them.

        Raises:
            RuntimeError: somebody replaced them, or moved them to another device or dtype.
        """
        if self.parameters[0].data_ptr() != self.data.data_ptr():
            raise RuntimeError("parameters were moved or replaced after flatten(policy); copy values into them instead")

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """None: a copied module's parameters have memory of their own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def flatten(policy: nn.Module) -> FlatParameters:
    """All parameters of a policy end to end, in the order that its own `flatten` wants, if it has one.

    For the algorithm that learns them. Afterwards weights are loaded by copying, as `load_state_dict` does; a policy
    that moves to another device must do so before.
    """
    own = getattr(policy, "flatten", None)
    return FlatParameters(list(policy.parameters())) if own is None else own()


Linear = tuple[Tensor, Tensor]  # weight [out, in], bias [out]: parameters


class FusedActorCritic:
    """A policy and a value function on the same input, as two perceptrons of one shape, or one with two heads.

    Args:
        trunks: the hidden layers of the policy and of the value function, or of their shared trunk.
        policy_head: puts out P numbers.
        value_head: puts out one.
        activation: a key of `FUSED_ACTIVATIONS`, after every hidden layer.
        constants: [D] to append to what the policy head puts out (a Gaussian's log-std), or None.
    """

    def __init__(
        self,
        trunks: Sequence[Sequence[Linear]],
        policy_head: Linear,
        value_head: Linear,
        activation: type[nn.Module],
        constants: Tensor | None,
    ) -> None:
        self.trunks = [list(trunk) for trunk in trunks]
        self.policy_head = policy_head
        self.value_head = value_head
        self.activation = activation
        self.num_outputs = len(policy_head[1])
        self.constants = constants
        self.flat: FlatParameters | None = None
        self.num_others = 0  # numbers in `flat` that belong to none of these layers
        self.layers: list[tuple[Tensor, Tensor]] = []  # weights [trunks, out, in], biases [trunks, 1, out]

    def policy(self, x: Tensor) -> Tensor:
        """What the policy puts out, [*lead, P + D], without gradients."""
        with torch.no_grad():
            return self.with_constants(F.linear(self._hidden(x, self.trunks[0]), *self.policy_head))

    def value(self, x: Tensor) -> Tensor:
        """V [*lead], without gradients."""
        with torch.no_grad():
            return F.linear(self._hidden(x, self.trunks[-1]), *self.value_head).squeeze(-1)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`policy` and `value`, with gradients that go to the flat parameters; needs `attach`."""
        assert self.flat is not None
        return _Fused.apply(self.flat.leaf, x, self)

    def parameters(self) -> list[Tensor]:
        """In the order that `attach` wants: what is computed side by side lies side by side."""
        hidden = [p for layers in zip(*self.trunks, strict=True) for pair in zip(*layers, strict=True) for p in pair]
        constants = [] if self.constants is None else [self.constants]
        return [*hidden, *self.policy_head, *constants, *self.value_head]

    def attach(self, flat: FlatParameters) -> None:
        """Send gradients to `flat`, which begins with `parameters()`."""
        self.flat = flat
        self.num_others = len(flat.data) - sum(p.numel() for p in self.parameters())
        self.layers = []
        start, count = 0, len(self.trunks)
        for weight, bias in self.trunks[0]:
            end = start + count * weight.numel()
            weights = flat.data[start:end].view(count, *weight.shape)
            start = end + count * bias.numel()
            self.layers.append((weights, flat.data[end:start].view(count, 1, len(bias))))

    def _hidden(self, x: Tensor, trunk: list[Linear]) -> Tensor:
        apply_ = FUSED_ACTIVATIONS[self.activation].apply_
        for weight, bias in trunk:
            x = apply_(F.linear(x, weight, bias))
        return x

    def with_constants(self, out: Tensor) -> Tensor:
        """The policy head's output [*lead, P], and the constants behind it in every row."""
        if self.constants is None:
            return out
        return torch.cat([out, self.constants.expand(*out.shape[:-1], -1)], dim=-1)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leaf: Tensor, x: Tensor, network: FusedActorCritic) -> tuple[Tensor, Tensor]:
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        apply_ = FUSED_ACTIVATIONS[network.activation].apply_
        hidden = [rows.expand(len(network.trunks), *rows.shape)]
        for weight, bias in network.layers:
            hidden.append(apply_(torch.baddbmm(bias, hidden[-1], weight.transpose(1, 2))))
        tops = hidden[-1].unbind()
        policy = network.with_constants(F.linear(tops[0], *network.policy_head))
        value = F.linear(tops[-1], *network.value_head)
        ctx.network, ctx.lead = network, x.shape[:-1]
        ctx.save_for_backward(*hidden)
        return policy if x.dim() == 2 else policy.view(*ctx.lead, -1), value.view(ctx.lead)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a fused network has no second derivatives; learn without policy.flatten()")
        network: FusedActorCritic = ctx.network
        hidden = ctx.saved_tensors
        tops = hidden[-1].unbind()
        rows = hidden[-1].shape[1]
        policy_grad, value_grad = grads[0].reshape(rows, -1), grads[1].reshape(rows, 1)
        out_grad = policy_grad if network.constants is None else policy_grad[:, : network.num_outputs]
        # one sum for the head's bias and the constants, which lie behind it
        pieces = [out_grad.t() @ tops[0], policy_grad.sum(0), value_grad.t() @ tops[-1], value_grad.sum(0)]
        below = [out_grad @ network.policy_head[0], value_grad @ network.value_head[0]]
        grad = torch.stack(below) if len(tops) == 2 else below[0].add_(below[1]).unsqueeze(0)
        for k in reversed(range(len(network.layers))):
            grad = FUSED_ACTIVATIONS[network.activation].backward(grad, hidden[k + 1])
            pieces[:0] = torch.bmm(grad.transpose(1, 2), hidden[k]), grad.sum(1)
            if k > 0 or ctx.needs_input_grad[1]:
                grad = torch.bmm(grad, network.layers[k][0])
        if network.num_others:
            pieces.append(grad.new_zeros(network.num_others))
        x_grad = grad.sum(0).view(*ctx.lead, -1) if ctx.needs_input_grad[1] else None
        return torch.cat([piece.reshape(-1) for piece in pieces]), x_grad, None
