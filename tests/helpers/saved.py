"""What a checkpoint does to a state, without files."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor


def as_saved(tree: Any) -> Any:
    """The state as it comes back: copies of tensors, plain values through JSON; anything else fails."""
    if isinstance(tree, dict):
        assert all(isinstance(key, str) and "/" not in key for key in tree)
        return {key: as_saved(value) for key, value in tree.items()}
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    return json.loads(json.dumps(tree))
