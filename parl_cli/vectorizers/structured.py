"""How a space lies in an array: plain for one array, structured for Dict and Tuple.

An item of a Box, Discrete, MultiDiscrete or MultiBinary space is an array of the space's shape and dtype. An item of a
Dict or Tuple space, nested as deep as it likes, is one element of a numpy structured dtype: a field per key (the keys
of a Dict; "0", "1", … for a Tuple), each laid out by the same rule. So every observation is one row of one array,
which can be sliced, copied and shared like any other, and `row["camera"]` is the array under that key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from parl_cli.errors import SpaceError

_ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def item_layout(space: spaces.Space, kind: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one item.

    Args:
        space: any space of arrays, or of arrays in dicts and tuples.
        kind: `observation` or `action`, for the error.

    Raises:
        SpaceError: a space with no fixed layout (Text, Sequence, Graph, …).
    """
    if isinstance(space, _ARRAY_SPACES):
        return tuple(space.shape or ()), np.dtype(space.dtype)
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        raise SpaceError(  # ends with Gymnasium's words
            f"{kind} space {space}: must be Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple of these, "
            "perhaps by a wrapper of the env; anything else "
            "has a dynamic shape so its not possible to make a static shared memory."
        )
    parts = {key: item_layout(part, kind) for key, part in parts_of(space)}
    return (), np.dtype([(key, dtype, shape) for key, (shape, dtype) in parts.items()])


def parts_of(space: spaces.Dict | spaces.Tuple) -> list[tuple[str, spaces.Space]]:
    """(field name, space) of each part."""
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return [(str(index), part) for index, part in enumerate(space.spaces)]


def to_item(space: spaces.Space, value: Any, name: str) -> Any:
    """One value of the space, checked, as it can be assigned to an element of its array.

    Args:
        space: what it should belong to.
        value: what an env gave.
        name: what to call it in an error.

    Raises:
        ValueError: a wrong shape, missing or unknown keys.
        TypeError: a dtype that cannot be cast.
    """
    if isinstance(space, spaces.Dict):
        keys = list(space.spaces)
        if not isinstance(value, Mapping) or set(value) != set(keys):
            given = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"{name} is {given}; the space says a dict of {keys}")
        return tuple(to_item(part, value[key], f"{name}[{key!r}]") for key, part in parts_of(space))
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, Sequence) or len(value) != len(space.spaces):
            raise ValueError(f"{name} is {type(value).__name__}; the space says {len(space.spaces)} parts")
        return tuple(to_item(part, value[i], f"{name}[{i}]") for i, part in enumerate(space.spaces))
    return to_array(value, *item_layout(space, name), name)


def to_array(value: Any, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
    """`value` as an array that can be written into one of `shape` and `dtype` without harm; raises if it cannot."""
    array = np.asarray(value)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; the {name} space says {shape}")
    if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"{name} has dtype {array.dtype}; the {name} space says {dtype}")
    return array


def has_nan(items: np.ndarray) -> bool:
    """Whether there is a NaN in an array of items; infinity is not one, and some spaces allow it."""
    if items.dtype.names:
        return any(has_nan(items[name]) for name in items.dtype.names)
    if items.dtype.kind != "f":
        return False
    if not items.size:
        return False
    flat = items.ravel()
    least = flat[flat.argmin()]  # the first NaN if there is one; a quarter of the time of `min`, and no overflow
    return bool(least != least)


def unpack(space: spaces.Space, array: Any, *, copy: bool = False) -> Any:
    """The array (or one element) as Gymnasium gives it: a dict or tuple of arrays where the space is one.

    They are views, strided and perhaps not aligned, which not every library takes; with `copy`, arrays of their own,
    and an int where the element is a Discrete space's, as envs give it.
    """
    if array.dtype.names is not None and isinstance(space, spaces.Dict):
        return {key: unpack(part, array[key], copy=copy) for key, part in parts_of(space)}
    if array.dtype.names is not None and isinstance(space, spaces.Tuple):
        return tuple(unpack(part, array[key], copy=copy) for key, part in parts_of(space))
    if copy and not array.ndim and isinstance(space, spaces.Discrete):
        return int(array)
    return array.copy() if copy else array


def write_batch(space: spaces.Space, batch: Any, rows: np.ndarray, name: str) -> None:
    """Write Gymnasium's batch (dicts and tuples of arrays [B, …]), or an array that is laid out already.

    Args:
        space: of one item.
        batch: B items.
        rows: [B, *item], written to.
        name: what to call it in an error.

    Raises:
        ValueError: wrong shapes or keys.
        TypeError: a dtype that cannot be cast.
    """
    if (
        rows.dtype.names is not None
        and isinstance(space, spaces.Dict | spaces.Tuple)
        and not isinstance(batch, np.ndarray)
    ):
        parts = parts_of(space)
        keys: list[Any] = [key if isinstance(space, spaces.Dict) else int(key) for key, _ in parts]
        given = set(batch) if isinstance(batch, Mapping) else set(range(len(batch)))
        if given != set(keys):
            raise ValueError(f"{name} have {sorted(map(str, given))}: must have {keys}")
        for (field, part), key in zip(parts, keys, strict=True):
            write_batch(part, batch[key], rows[field], f"{name}[{key!r}]")
        return
    array = np.asarray(batch)
    if array.shape != rows.shape:
        raise ValueError(f"{name} have shape {array.shape}: must be {rows.shape}")
    if array.dtype != rows.dtype and not np.can_cast(array.dtype, rows.dtype, "same_kind"):
        raise TypeError(f"{name} have dtype {array.dtype}: action space {space} takes {rows.dtype}")
    rows[...] = array
