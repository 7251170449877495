"""What several algorithms need and no paper owns."""

from __future__ import annotations

from typing import Any

import torch


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's per-parameter state, keyed by text: a tree that a checkpoint can hold without pickle.

    Hyper-parameters are left out: they come from the config and its schedules.
    """
    return {str(index): dict(entry) for index, entry in optimizer.state_dict()["state"].items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `optimizer_state`."""
    groups = optimizer.state_dict()["param_groups"]
    entries = {int(index): dict(entry) for index, entry in state.items()}
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
