"""The newest weights in shared memory: one learner writes, actors read, nobody waits for anybody.

There are two copies, written in turns. A reader takes the newer one and looks afterwards whether it is still the one
that it began with; if the writer has come round meanwhile, there is a newer one to take (a sequence lock over a double
buffer). So a reader never gets half of one version and half of another, and begins again only if two versions were
published while it copied one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parl_cli.types import Snapshot
from parl_cli.vectorizers.blocks import Layout, arrays_over, buffer_size

_INT64 = np.dtype(np.int64)
_HEADER: Layout = {
    "newest": ((1,), _INT64),  # number of the last publication that is whole; 0: there is none
    "holds": ((2,), _INT64),  # by copy, the publication in it; −1 while it is written
    "version": ((2,), _INT64),  # by copy, of the weights in it
}


def weights_layout(weights: Mapping[str, Tensor]) -> Layout:
    """Shapes and dtypes of a policy's state dict."""
    return {name: (tuple(w.shape), torch.empty(0, dtype=w.dtype).numpy().dtype) for name, w in weights.items()}


class SharedWeights:
    """Room for two copies of a policy's state dict.

    Args:
        buffer: `size(layout)` bytes of shared memory, zeroed before the first of its users comes.
        layout: from `weights_layout`.
    """

    def __init__(self, buffer: Any, layout: Layout) -> None:
        header = arrays_over(buffer, _HEADER)
        self.newest, self.holds, self.version = header["newest"], header["holds"], header["version"]
        first, length = buffer_size(_HEADER), buffer_size(layout)
        self.copies = [np.ndarray(length, np.uint8, buffer, first + k * length) for k in (0, 1)]
        self.layout = layout

    @staticmethod
    def size(layout: Layout) -> int:
        """Bytes that it needs."""
        return buffer_size(_HEADER) + 2 * buffer_size(layout)


class WeightsWriter:
    """The learner's end."""

    def __init__(self, shared: SharedWeights) -> None:
        self._shared = shared
        self._tensors = [_tensors(copy, shared.layout) for copy in shared.copies]

    def publish(self, snapshot: Snapshot) -> None:
        """Write a snapshot into the older copy and make it the newest."""
        shared = self._shared
        number = int(shared.newest[0]) + 1
        k = number % 2
        shared.holds[k] = -1
        _fence()
        shared.version[k] = snapshot.version
        for name, tensor in self._tensors[k].items():
            tensor.copy_(snapshot.weights[name])
        _fence()
        shared.holds[k] = number
        _fence()
        shared.newest[0] = number

    def newest(self) -> dict[str, Tensor]:
        """What was published last; a view that the next but one publication overwrites."""
        return self._tensors[int(self._shared.newest[0]) % 2]


class WeightsReader:
    """An actor's end."""

    def __init__(self, shared: SharedWeights) -> None:
        self._shared = shared
        self._copy = np.empty_like(shared.copies[0])
        self._tensors = _tensors(self._copy, shared.layout)
        self._number = 0
        self._version = -1

    def load_into(self, policy: Any) -> int:
        """Give a policy the newest weights, which must have been published; returns their version."""
        if self._take():
            policy.load_state_dict(self._tensors)
        return self._version

    def _take(self) -> bool:
        """Copy the newest weights, if they are new."""
        shared = self._shared
        while (number := int(shared.newest[0])) != self._number:
            _fence()
            k = number % 2
            self._version = int(shared.version[k])
            np.copyto(self._copy, shared.copies[k])
            _fence()
            if shared.holds[k] == number:
                self._number = number
                return True
        return False


def _tensors(memory: np.ndarray, layout: Layout) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays_over(memory, layout).items()}


def _fence() -> None:
    """Keep what stands before it in the code before what stands behind it, as seen by other processes.

    On x86 that is so anyway. Elsewhere a lock does it: what comes before it is given back stays before, and what comes
    after it is taken again stays behind.
    """
    for _ in range(2):
        with _lock:
            pass


_lock = threading.Lock()
