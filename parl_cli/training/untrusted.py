"""Reading files that nobody vouches for: bounded in time and memory, and nothing in them acts.

A checkpoint or a run folder may come from anywhere. What is read here is plain values and tensors; text that
something later could resolve (`${…}`), import (`module:Env-v0`), or send to the terminal (control characters) is
refused; so are pipes and devices, whose end would never come. Every refusal is a `CheckpointError` of one line.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from parl_cli.errors import CheckpointError

MAX_JSON_BYTES = 64 * 2**20
MAX_YAML_BYTES = 2**17  # PyYAML takes a second for it
MAX_HEADER_BYTES = 16 * 2**20
MAX_INT_DIGITS = 20  # 64 bits; longer ones overflow wherever they are compared with a float
MAX_DEPTH = 64  # of nested values: what walks them later is recursive

# besides those that move the cursor, halves of surrogate pairs: no output takes them
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_WAY_OUT = "take another checkpoint"


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """A regular file's content.

    Raises:
        CheckpointError: missing, unreadable, not a regular file, or larger than `max_bytes` or than the memory.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError(f"checkpoint={path.parent}: {path.name} is not a regular file; {_WAY_OUT}")
        if max_bytes is not None and info.st_size > max_bytes:
            raise CheckpointError(
                f"checkpoint={path.parent}: {path.name} has {info.st_size:,} bytes instead of at most "
                f"{max_bytes:,}; {_WAY_OUT}"
            )
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint={path.parent}: cannot read {path.name} ({error.strerror}); not a checkpoint?"
        ) from None
    except MemoryError:
        raise CheckpointError(f"checkpoint={path.parent}: {path.name} does not fit in memory; {_WAY_OUT}") from None


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, the content of `path`.

    Raises:
        CheckpointError: not JSON, not an object, nested too deeply, or with numbers beyond 64 bits.
    """
    try:
        values = json.loads(data, parse_int=_parse_int)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or _too_deep(values):
        raise CheckpointError(f"checkpoint={path.parent}: {path.name} is not a JSON object; {_WAY_OUT}")
    return values


def parse_yaml(path: Path) -> dict[str, Any]:
    """The YAML mapping in a file: plain values, no aliases (a page of them unfolds into billions of values).

    Raises:
        CheckpointError: unreadable, too large, or not such a mapping.
    """
    text = read_file(path, MAX_YAML_BYTES)
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):  # bit by bit: loading at once takes minutes for deep brackets
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                raise CheckpointError(f"checkpoint={path.parent}: {path.name} holds aliases or is nested too deeply")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"checkpoint={path.parent}: {path.name} is not a YAML mapping; {_WAY_OUT}")
    return values


def parse_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors in `data`, the content of the safetensors file `path`.

    Raises:
        CheckpointError: not safetensors, or with a header that is too large or does not fit the data.
    """
    header = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 0 <= header <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise CheckpointError(
            f"checkpoint={path.parent}: {path.name} has a header of {header} bytes; damaged or hostile; {_WAY_OUT}"
        )
    try:
        return load_safetensors(data)
    except (SafetensorError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint={path.parent}: {path.name} is not safetensors ({error}); {_WAY_OUT}"
        ) from None


def refuse_live_text(values: Any, path: Path, key: str = "") -> None:
    """Refuse text in a file's config, keys included, that something later could resolve, import or obey.

    Raises:
        CheckpointError: an interpolation, an env id that names a module, a `_target_` key, a control character.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            refuse_live_text(name, path, key)
            if name == "_target_":
                raise CheckpointError(
                    f"checkpoint={path}: its config holds {_dotted(key, name)}, which parl never runs"
                )
            refuse_live_text(value, path, _dotted(key, str(name)))
    elif isinstance(values, list):
        for item in values:
            refuse_live_text(item, path, key)
    elif isinstance(values, str):
        if "${" in values:
            raise CheckpointError(f"checkpoint={path}: its config holds an interpolation at {key}, never resolved here")
        if _CONTROL.search(values):
            raise CheckpointError(f"checkpoint={path}: its config holds a control character at {key}")
        if key == "env.id" and ":" in values:
            raise CheckpointError(
                f"checkpoint={path}: its env.id={values} would import a module; a checkpoint may not name one"
            )


def _too_deep(values: Any) -> bool:
    level = [values]
    for _ in range(MAX_DEPTH):
        groups = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [value for group in groups for value in group]
        if not level:
            return False
    return True


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _parse_int(text: str) -> int:
    if len(text) > MAX_INT_DIGITS:
        raise ValueError("beyond 64 bits")
    return int(text)
