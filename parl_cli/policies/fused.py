"""Perceptrons with a backward pass of their own, over parameters that lie end to end in one tensor.

At the sizes of classic control a network costs more to dispatch than to compute: dozens of autograd nodes, a gradient
tensor per parameter. Here a whole actor-critic is one node, its parameters are one leaf and its gradient is one
tensor. It is the same function as the modules that own the parameters, to rounding; losses do not know of it.

With h_0 = x, layers h_k = f(h_{k−1} W_kᵀ + b_k) and heads y_j = h_K V_jᵀ + c_j, rows being samples, the chain rule
gives from G_j = ∂L/∂y_j, going down:

    ∂L/∂V_j = G_jᵀ h_K      ∂L/∂c_j = 1ᵀ G_j      E_K = Σ_j G_j V_j
    D_k = E_k ⊙ f'_k        ∂L/∂W_k = D_kᵀ h_{k−1}  ∂L/∂b_k = 1ᵀ D_k      E_{k−1} = D_k W_k

where f' is computed from h_k = f(z_k), so that no z is kept: tanh' = 1 − h², relu' = [h > 0], elu' = 1 or h + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _tanh_(z: Tensor) -> Tensor:
    """In place; on a CPU by numpy, whose vectorised tanh is several times as fast as torch's."""
    if z.device.type != "cpu":
        return z.tanh_()
    array = z.numpy()
    np.tanh(array, out=array)
    return z


class _Activation(NamedTuple):
    apply_: Callable[[Tensor], Tensor]  # in place
    backward: Callable[[Tensor, Tensor], Tensor]  # (∂L/∂h, h) → ∂L/∂z


_aten = torch.ops.aten
ACTIVATIONS = {
    "tanh": _Activation(_tanh_, _aten.tanh_backward),
    "relu": _Activation(torch.relu_, lambda grad, h: _aten.threshold_backward(grad, h, 0)),
    "elu": _Activation(nn.functional.elu_, lambda grad, h: _aten.elu_backward(grad, 1, 1, 1, True, h)),
}


class FlatParameters:
    """Parameters end to end in one tensor, their gradients in another.

    The parameters stay what they are to everyone else, names and shapes included: only their `data` and `grad` become
    views. A gradient that reaches a parameter and one that reaches `data` add up in the same place, so `grad` must be
    zeroed, never dropped.

    Args:
        parameters: of one dtype, on one device, in this order.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        flat = torch.cat([p.detach().flatten() for p in self.parameters])
        self.grad = torch.zeros_like(flat)
        for parameter, data, grad in zip(self.parameters, self.views(flat), self.views(self.grad), strict=True):
            parameter.data, parameter.grad = data, grad
        self.data = flat.requires_grad_()
        self.data.grad = self.grad

    def views(self, flat: Tensor) -> list[Tensor]:
        """One view per parameter, of its shape, into a tensor as long as `data`."""
        pieces = flat.split([p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """None: a copied module's parameters have storage of their own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class Perceptron(NamedTuple):
    """Hidden layers and the heads that read the last of them."""

    layers: list[nn.Linear]
    heads: list[nn.Linear]


class FusedPerceptrons:
    """Several perceptrons on the same input.

    Args:
        perceptrons: whose heads, in order, are the outputs.
        activation: a key of `ACTIVATIONS`, after every hidden layer.
        constants: columns [D] that every row of the first output ends in (a Gaussian's log-std), or None.
    """

    def __init__(
        self, perceptrons: Sequence[Perceptron], activation: str, constants: nn.Parameter | None = None
    ) -> None:
        self.perceptrons = list(perceptrons)
        self.activation = activation
        self.constants = constants
        self.flat: FlatParameters | None = None  # set: gradients go there, and `__call__` may be used

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """`x` [*lead, F] → every head's output [*lead, …], differentiable in `flat.data`."""
        assert self.flat is not None
        outputs = _Fused.apply(self.flat.data, x.reshape(-1, x.shape[-1]), self)
        return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)

    def infer(self, x: Tensor, index: int) -> list[Tensor]:
        """The outputs of one perceptron's heads, without gradients."""
        with torch.no_grad():
            return self.run(x, index)[1]

    def run(self, x: Tensor, index: int) -> tuple[list[Tensor], list[Tensor]]:
        """What each layer of one perceptron reads, x first, and what its heads put out."""
        layers, heads = self.perceptrons[index]
        apply_ = ACTIVATIONS[self.activation].apply_
        hidden = [x]
        for layer in layers:
            hidden.append(apply_(nn.functional.linear(hidden[-1], layer.weight, layer.bias)))
        outputs = [nn.functional.linear(hidden[-1], head.weight, head.bias) for head in heads]
        if index == 0 and self.constants is not None:
            outputs[0] = torch.cat([outputs[0], self.constants.expand(*x.shape[:-1], -1)], dim=-1)
        return hidden, outputs


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, x: Tensor, network: FusedPerceptrons) -> tuple[Tensor, ...]:
        runs = [network.run(x, index) for index in range(len(network.perceptrons))]
        ctx.network = network
        ctx.save_for_backward(*(h for hidden, _ in runs for h in hidden))
        return tuple(y for _, outputs in runs for y in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        network: FusedPerceptrons = ctx.network
        backward = ACTIVATIONS[network.activation].backward
        grads: dict[Tensor, Tensor] = {}
        saved, pending = list(ctx.saved_tensors), list(output_grads)
        if network.constants is not None:
            grads[network.constants] = pending[0][:, -len(network.constants) :].sum(0)
            pending[0] = pending[0][:, : -len(network.constants)]
        x_grad = None
        for layers, heads in network.perceptrons:
            hidden = [saved.pop(0) for _ in range(len(layers) + 1)]
            below = None
            for head in heads:
                grad = pending.pop(0)
                grads[head.weight], grads[head.bias] = grad.t() @ hidden[-1], grad.sum(0)
                below = grad @ head.weight if below is None else below.addmm_(grad, head.weight)
            for layer, h, h_before in zip(reversed(layers), reversed(hidden), reversed(hidden[:-1]), strict=False):
                grad = backward(below, h)
                grads[layer.weight], grads[layer.bias] = grad.t() @ h_before, grad.sum(0)
                if layer is not layers[0] or ctx.needs_input_grad[1]:
                    below = grad @ layer.weight
            if ctx.needs_input_grad[1]:
                x_grad = below if x_grad is None else x_grad + below
        return torch.cat([grads[p].reshape(-1) for p in network.flat.parameters]), x_grad, None
