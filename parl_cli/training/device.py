"""Which device the learner computes on, or an actor."""

from __future__ import annotations

import re

import torch

from parl_cli.errors import ConfigError


def select_device(name: str, *, prefers_accelerator: bool, key: str = "device") -> torch.device:
    """The device that a key of the config names.

    Args:
        name: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto`: the accelerator if there is one and the network is worth it.
        prefers_accelerator: what the policy says of itself; a small perceptron is faster on the CPU.
        key: the key, for messages.

    Raises:
        ConfigError: an unknown name, or a device this machine does not have.
    """
    if name == "auto":
        if prefers_accelerator and torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if prefers_accelerator and torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:(0|[1-9][0-9]{0,5}))?", name):
        raise ConfigError(f"{key}={name}: must be auto, cpu, cuda, cuda:N or mps")
    if name.startswith("cuda"):  # before torch reads it, whose numbers have 8 bits: cuda:256 would be cuda:0
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= count:
            raise ConfigError(f"{key}={name}: this machine has {count} CUDA devices; use {key}=auto or {key}=cpu")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{key}=mps: this machine has no Metal device; use {key}=auto or {key}=cpu")
    return device
