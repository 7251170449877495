"""Checkpoints: a folder of safetensors and JSON, written whole or not at all, and never trusted when read.

    <step>/config.json            the resolved config
           policy.safetensors     weights and normaliser: all that acting needs
           training.safetensors   optimizer, RNG states, environments' action tails …
           training.json          counters and other plain values
           manifest.json          format version, step, size and SHA-256 of the other four

No pickle: nothing in a checkpoint can be executed. File names are fixed here, so none can point elsewhere; sizes,
hashes, headers and shapes are checked before anything is used; text that would be resolved or imported later
(`${…}` interpolations, `module:Env-v0` ids) is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from parl_cli.errors import CheckpointError
from parl_cli.types import Rollout

FORMAT = 1
FILES = ("config.json", "policy.safetensors", "training.safetensors", "training.json")
MAX_JSON_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: plain config, the policy's tensors, and the training state as a tree."""

    path: Path
    env_steps: int
    config: dict[str, Any]
    policy: dict[str, Tensor]
    training: dict[str, Any]


def save(
    path: Path,
    *,
    env_steps: int,
    config: Mapping[str, Any],
    policy: Mapping[str, Tensor],
    training: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder: under a temporary name, synced to disk, then renamed.

    Args:
        path: the folder; one that is there already is replaced.
        env_steps: env steps at which it was taken.
        config: the resolved config, plain values.
        policy: the policy's state dict.
        training: nested dicts of tensors and plain values.

    Raises:
        OSError: the disk is full or read-only; a half-written folder is removed.
    """
    tensors, plain = _split(training)
    contents = {
        "config.json": _to_json(config),
        "policy.safetensors": save_safetensors({k: _portable(v) for k, v in policy.items()}),
        "training.safetensors": save_safetensors({k: _portable(v) for k, v in tensors.items()}),
        "training.json": _to_json(plain),
    }
    manifest = {
        "format": FORMAT,
        "env_steps": env_steps,
        "files": {n: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in contents.items()},
    }
    contents["manifest.json"] = _to_json(manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}-{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir()
        for name, data in contents.items():
            _write_synced(temporary / name, data)
        if path.exists():
            remove(path)
        temporary.rename(path)
        _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(path: Path) -> Checkpoint:
    """Read and check a checkpoint folder.

    Raises:
        CheckpointError: it is missing, damaged, truncated, tampered with, or holds what a checkpoint must not.
    """
    if not path.is_dir():
        raise CheckpointError(f"checkpoint={path}: no such checkpoint folder; see the run's checkpoints/")
    manifest = _read_json(path, "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint={path}: manifest.json is not of format {FORMAT}; made by another version?")
    contents = {name: _read_checked(path, name, manifest) for name in FILES}
    config = _parse_json(path, "config.json", contents["config.json"])
    plain = _parse_json(path, "training.json", contents["training.json"])
    env_steps = manifest.get("env_steps")
    if not isinstance(config, dict) or not isinstance(plain, dict) or not isinstance(env_steps, int):
        raise CheckpointError(f"checkpoint={path}: its JSON files do not hold what they should; restore a backup")
    refuse_live_text(config, path)
    policy = _parse_tensors(path, "policy.safetensors", contents["policy.safetensors"])
    tensors = _parse_tensors(path, "training.safetensors", contents["training.safetensors"])
    return Checkpoint(path, env_steps, config, policy, _merge(plain, tensors))


def save_rollout(path: Path, rollout: Rollout) -> None:
    """Write a rollout's tensors into one safetensors file, to look at why an update went wrong."""
    tensors = {name: value for name, value in vars(rollout).items() if isinstance(value, Tensor)}
    tensors |= {f"extras.{name}": value for name, value in rollout.extras.items()}
    path.write_bytes(save_safetensors({name: _portable(value) for name, value in tensors.items()}))


def refuse_live_text(config: Any, path: Path, key: str = "") -> None:
    """Refuse text in a file's config that something later could resolve or import.

    Raises:
        CheckpointError: an interpolation, an env id that names a module, a `_target_` key.
    """
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name == "_target_":
                raise CheckpointError(f"checkpoint={path}: its config holds {key}_target_, which parl never runs")
            refuse_live_text(value, path, f"{key}{name}.")
    elif isinstance(config, list):
        for item in config:
            refuse_live_text(item, path, key)
    elif isinstance(config, str):
        if "${" in config:
            raise CheckpointError(f"checkpoint={path}: its config holds an interpolation at {key[:-1]}; not resolved")
        if key == "env.id." and ":" in config:
            raise CheckpointError(
                f"checkpoint={path}: its env.id={config} would import a module; a checkpoint may not name one"
            )


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put a checkpoint's weights into a network.

    Raises:
        CheckpointError: names or shapes differ: it was made for other spaces or another network.
    """
    own = module.state_dict()
    for name in sorted(set(own) ^ set(weights)):
        where = "the network has no" if name in weights else "it lacks"
        raise CheckpointError(f"checkpoint={path}: made for another network: {where} {name}; check policy=, env=")
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"checkpoint={path}: made for other spaces: {name} has shape {list(tensor.shape)}, the network "
                f"{list(own[name].shape)}; check policy=, env="
            )
    module.load_state_dict(dict(weights))


def find(text: str, outputs: Path = Path("outputs")) -> Path:
    """The checkpoint folder that a user means.

    Args:
        text: a checkpoint folder, a run folder (its last checkpoint), or `latest` (the last of the newest run).
        outputs: where runs are.

    Raises:
        CheckpointError: there is none.
    """
    if text == "latest":
        runs = sorted(outputs.glob("*/*/checkpoints"), key=lambda p: p.stat().st_mtime)
        runs = [run for run in runs if not run.parent.is_symlink()]
        if not runs:
            raise CheckpointError(f"checkpoint=latest: there is no run under {outputs}/; train one, or name a folder")
        return last(runs[-1].parent)
    path = Path(text)
    if not path.exists():
        raise CheckpointError(f"checkpoint={text}: no such folder; name a run folder, a checkpoint folder or latest")
    if (path / "manifest.json").exists():
        return path.resolve()
    return last(path)


def last(run: Path) -> Path:
    """The newest checkpoint folder of a run.

    Raises:
        CheckpointError: it has none.
    """
    steps = numbered(run / "checkpoints")
    if not steps:
        raise CheckpointError(
            f"checkpoint={run}: no checkpoint in it; name a run folder, a checkpoint folder or latest"
        )
    return steps[-1]


def numbered(folder: Path) -> list[Path]:
    """The checkpoints of a folder by ascending step; temporary leftovers do not count."""
    found = [p for p in folder.glob("*") if p.name.isdigit() and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name))


def remove(path: Path) -> None:
    """Delete a checkpoint; first by renaming it, so that a half-deleted one is never taken for whole."""
    doomed = path.parent / f".{path.name}-{secrets.token_hex(4)}.tmp"
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _split(tree: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, value in tree.items():
        if "/" in name:
            raise ValueError(f"checkpoint key {name!r} must not contain '/'")
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, Mapping):
            inner, plain[name] = _split(value, f"{prefix}{name}/")
            tensors |= inner
        else:
            plain[name] = value
    return tensors, plain


def _merge(plain: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    for key, tensor in tensors.items():
        *folders, name = key.split("/")
        node = plain
        for folder in folders:
            inner = node.setdefault(folder, {})
            if not isinstance(inner, dict):
                raise CheckpointError(f"checkpoint tensor {key} stands where a plain value does; restore a backup")
            node = inner
        node[name] = tensor
    return plain


def _portable(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous().clone()


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read_json(path: Path, name: str) -> Any:
    return _parse_json(path, name, _read(path, name))


def _read(path: Path, name: str) -> bytes:
    try:
        file = path / name
        if name.endswith(".json") and file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"checkpoint={path}: {name} is larger than {MAX_JSON_BYTES} bytes; not read")
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint={path}: cannot read {name} ({error.strerror}); not a checkpoint?") from None


def _read_checked(path: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    data = _read(path, name)
    entry = manifest.get("files", {}).get(name) if isinstance(manifest.get("files"), dict) else None
    if not isinstance(entry, dict) or entry.get("bytes") != len(data):
        raise CheckpointError(f"checkpoint={path}: {name} is truncated or not the file that was saved; take another")
    if entry.get("sha256") != hashlib.sha256(data).hexdigest():
        raise CheckpointError(f"checkpoint={path}: {name} was changed after it was saved; take another")
    return data


def _parse_json(path: Path, name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise CheckpointError(f"checkpoint={path}: {name} is not JSON; take another checkpoint") from None


def _parse_tensors(path: Path, name: str, data: bytes) -> dict[str, Tensor]:
    header = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 0 <= header <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise CheckpointError(f"checkpoint={path}: {name} has a header of {header} bytes; damaged or hostile")
    try:
        return load_safetensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint={path}: {name} is not safetensors ({error}); take another") from None
