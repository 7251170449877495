"""Which device the learner computes on."""

from __future__ import annotations

import re

import torch

from parl_cli.errors import ConfigError


def select_device(name: str, *, prefers_accelerator: bool) -> torch.device:
    """The device that `device=` names.

    Args:
        name: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto`: the accelerator if there is one and the network is worth it.
        prefers_accelerator: what the policy says of itself; a small perceptron is faster on the CPU.

    Raises:
        ConfigError: an unknown name, or a device this machine does not have.
    """
    if name == "auto":
        if prefers_accelerator and torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if prefers_accelerator and torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ConfigError(f"device={name}: must be auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"device={name}: this machine has {count} CUDA devices; use device=auto or device=cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: this machine has no Metal device; use device=auto or device=cpu")
    return device
