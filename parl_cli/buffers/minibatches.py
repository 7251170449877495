"""Shuffled minibatches over a rollout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def minibatches(
    batch: Mapping[str, Tensor], num_minibatches: int, generator: torch.Generator, *, whole_columns: bool = False
) -> Iterator[dict[str, Tensor]]:
    """One epoch: every step of the rollout once, in a fresh random order, cut into equal parts.

    Each tensor is gathered once per epoch; a minibatch is a view into that: [B(, A), *item], or with `whole_columns`
    [T, n(, A), *item]. For the arguments see `shuffle`.
    """
    return unstack(shuffle(batch, num_minibatches, generator, whole_columns=whole_columns))


def shuffle(
    batch: Mapping[str, Tensor], num_minibatches: int, generator: torch.Generator, *, whole_columns: bool = False
) -> dict[str, Tensor]:
    """The minibatches of one epoch, stacked along a new first dimension M.

    Args:
        batch: tensors [T, N(, A), *item]; a column's initial recurrent state, under the key `state`, is [N(, A), S].
        num_minibatches: M; must divide T·N (or N, with `whole_columns`).
        generator: CPU generator that shuffles.
        whole_columns: keep time in order for a recurrent policy: [M, T, n(, A), *item]. Otherwise time and columns
            are flattened: [M, B(, A), *item].

    Raises:
        ValueError: parts that do not divide.
    """
    lead = next(tensor for name, tensor in batch.items() if name != "state")
    rows = lead.shape[1] if whole_columns else lead.shape[0] * lead.shape[1]
    if rows % num_minibatches:
        what = "columns" if whole_columns else "steps"
        raise ValueError(f"num_minibatches={num_minibatches}: must divide the rollout's {rows} {what}")
    order = torch.randperm(rows, generator=generator).to(lead.device)
    parts = num_minibatches, rows // num_minibatches
    if not whole_columns:
        return {k: v.flatten(0, 1)[order].unflatten(0, parts) for k, v in batch.items()}
    return {
        k: v[order].unflatten(0, parts) if k == "state" else v[:, order].unflatten(1, parts).movedim(1, 0)
        for k, v in batch.items()
    }


def unstack(stacked: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The minibatches of `shuffle`, one after the other."""
    for parts in zip(*(tensor.unbind() for tensor in stacked.values()), strict=True):
        yield dict(zip(stacked, parts, strict=True))
