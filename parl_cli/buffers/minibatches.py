"""Shuffled minibatches over a rollout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def minibatches(
    batch: Mapping[str, Tensor], num_minibatches: int, generator: torch.Generator, *, whole_columns: bool = False
) -> Iterator[dict[str, Tensor]]:
    """One epoch: every step of the rollout once, in a fresh random order, cut into equal parts.

    Each tensor is gathered once per epoch; a minibatch is a view into that.

    Args:
        batch: tensors [T, N(, A), *item]; a column's initial recurrent state, under the key `state`, is [N(, A), S].
        num_minibatches: parts; must divide T·N (or N, with `whole_columns`).
        generator: CPU generator that shuffles.
        whole_columns: keep time in order for a recurrent policy: minibatches are [T, n(, A), *item]. Otherwise
            time and columns are flattened: minibatches are [B(, A), *item].

    Raises:
        ValueError: parts that do not divide.
    """
    lead = next(tensor for name, tensor in batch.items() if name != "state")
    rows = lead.shape[1] if whole_columns else lead.shape[0] * lead.shape[1]
    if rows % num_minibatches:
        what = "columns" if whole_columns else "steps"
        raise ValueError(f"num_minibatches={num_minibatches}: must divide the rollout's {rows} {what}")
    order = torch.randperm(rows, generator=generator).to(lead.device)
    size = rows // num_minibatches
    if whole_columns:
        shuffled = {k: v[order] if k == "state" else v[:, order] for k, v in batch.items()}
        for start in range(0, rows, size):
            part = slice(start, start + size)
            yield {k: v[part] if k == "state" else v[:, part] for k, v in shuffled.items()}
        return
    shuffled = {k: v.flatten(0, 1)[order] for k, v in batch.items()}
    for start in range(0, rows, size):
        yield {k: v[start : start + size] for k, v in shuffled.items()}
