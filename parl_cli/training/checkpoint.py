"""Checkpoints: a folder of safetensors and JSON, written whole or not at all, and never trusted when read.

    <step>/config.json            the resolved config
           policy.safetensors     weights and normaliser: all that acting needs
           training.safetensors   optimizer, RNG states, environments' action tails …
           training.json          counters and other plain values
           manifest.json          format version, step, size and SHA-256 of the other four and of itself

No pickle: nothing in a checkpoint can be executed. File names are fixed here, so none can point elsewhere; sizes,
hashes, headers and shapes are checked before anything is used. The hashes find damage, not malice: whoever writes a
checkpoint writes its hashes too, so what they cover is still read by `untrusted`.

A folder begins with a dot while it is written (`.tmp`), or while the one that replaces it is not in place yet
(`.old`); `tidy` clears up what a killed process left of either.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from parl_cli.errors import CheckpointError, writing
from parl_cli.training.untrusted import MAX_JSON_BYTES, parse_json, parse_tensors, read_file, refuse_live_text
from parl_cli.types import Rollout

FORMAT = 1
FILES = ("config.json", "policy.safetensors", "training.safetensors", "training.json")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: plain config, the policy's tensors, and the training state as a tree."""

    path: Path
    env_steps: int
    config: dict[str, Any]
    policy: dict[str, Tensor]
    training: dict[str, Any]

    @property
    def num_policies(self) -> int:
        """How many it says that it holds."""
        number = self.config.get("num_policies", 1)
        return number if isinstance(number, int) else 1  # it may say anything; then its weights will not fit

    def weights_of(self, policy_id: int, num_policies: int = 1) -> dict[str, Tensor]:
        """The weights for one policy of a run with `num_policies`: its own, or those of an only one for each of them.

        Raises:
            CheckpointError: it holds several, but not as many.
        """
        if self.num_policies == 1:
            return self.policy
        if self.num_policies != num_policies:
            raise CheckpointError(
                f"checkpoint={self.path}: holds {self.num_policies} policies, this run {num_policies}; in Python, "
                "Experiment.load(…).get_parameters() gives each one's weights"
            )
        prefix = f"{policy_id}."
        return {name.removeprefix(prefix): w for name, w in self.policy.items() if name.startswith(prefix)}


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
        WriteError: the disk is full or read-only; a half-written folder is removed.
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
    contents["manifest.json"] = _to_json(manifest | {"sha256": manifest_digest(manifest)})
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path, "tmp")
        try:
            temporary.mkdir()
            for name, data in contents.items():
                _write_synced(temporary / name, data)
            _sync_folder(temporary)
            _put_in_place(temporary, path)
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
    manifest = parse_json(path / "manifest.json", read_file(path / "manifest.json", MAX_JSON_BYTES))
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint={path}: manifest.json is not of format {FORMAT}; made by another version?")
    if manifest.pop("sha256", None) != manifest_digest(manifest):
        raise CheckpointError(f"checkpoint={path}: manifest.json was changed after it was saved; take another")
    env_steps = manifest.get("env_steps")
    if not isinstance(env_steps, int) or not 0 <= env_steps < 2**53:
        raise CheckpointError(f"checkpoint={path}: env_steps={env_steps} in manifest.json is no count; take another")
    contents = {name: _read_checked(path / name, manifest) for name in FILES}
    config = parse_json(path / "config.json", contents["config.json"])
    plain = parse_json(path / "training.json", contents["training.json"])
    refuse_live_text(config, path)
    policy = parse_tensors(path / "policy.safetensors", contents["policy.safetensors"])
    tensors = parse_tensors(path / "training.safetensors", contents["training.safetensors"])
    return Checkpoint(path, env_steps, config, policy, _merge(plain, tensors))


def save_rollout(path: Path, rollout: Rollout) -> None:
    """Write a rollout's tensors into one safetensors file, to look at why an update went wrong.

    Raises:
        WriteError: the disk is full or read-only.
    """
    tensors = {name: value for name, value in vars(rollout).items() if isinstance(value, Tensor)}
    tensors |= {f"extras.{name}": value for name, value in rollout.extras.items()}
    data = save_safetensors({name: _portable(value) for name, value in tensors.items()})
    with writing(path):
        path.write_bytes(data)


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], source: Path | str) -> None:
    """Put a checkpoint's weights into a network.

    Raises:
        CheckpointError: see `check_weights`.
    """
    check_weights(module, weights, source)
    module.load_state_dict(dict(weights))


def check_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], source: Path | str) -> None:
    """Check that weights fit a network, which may be on the `meta` device.

    Args:
        module: the network.
        weights: by name.
        source: the checkpoint they come from; text for what is none, which messages then begin with.

    Raises:
        CheckpointError: names or shapes differ (it was made for other spaces or another network), or a weight is NaN.
    """
    own = module.state_dict()
    label = source if isinstance(source, str) else f"checkpoint={source}"
    for name in sorted(set(own) ^ set(weights)):
        where = "the network has no" if name in weights else "it lacks"
        raise CheckpointError(f"{label}: made for another network: {where} {name}; check policy=, env=")
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{label}: made for other spaces: {name} has shape {list(tensor.shape)}, the network "
                f"{list(own[name].shape)}; check policy=, env="
            )
        if tensor.is_complex() or not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{label}: {name} holds NaN or infinity; take an earlier checkpoint")


def find(text: str, outputs: Path = Path("outputs"), key: str = "checkpoint") -> Path:
    """The checkpoint folder that a user means.

    Args:
        text: a checkpoint folder, a run folder (its last checkpoint), or `latest` (the last of the newest run).
        outputs: where runs are.
        key: what the user typed it for.

    Raises:
        CheckpointError: there is none.
    """
    if text == "latest":
        return last(latest_run(outputs, key), key)
    name = os.path.expanduser(text)
    if not os.path.exists(name):  # unlike Path.exists it takes any text
        if Path(name).name == "best":
            raise CheckpointError(f"{key}={text}: no such folder; only evaluations choose one: eval.every_steps=…")
        raise CheckpointError(f"{key}={text}: no such folder; name a run folder, a checkpoint folder or latest")
    path = Path(name)
    if (path / "manifest.json").exists():
        return path.resolve()
    return last(path, key)


def latest_run(outputs: Path, key: str = "checkpoint") -> Path:
    """The run below `outputs`, alone or of a sweep, that wrote a checkpoint last.

    Raises:
        CheckpointError: there is none.
    """
    runs = [run for run in _runs_below(outputs) if numbered(run / "checkpoints")]
    if not runs:
        raise CheckpointError(
            f"{key}=latest: there is no run with a checkpoint under {outputs}/; train one, or name a folder"
        )
    return max(runs, key=lambda run: (run / "checkpoints").stat().st_mtime_ns)


def _runs_below(place: Path) -> Iterator[Path]:
    """Folders with checkpoints; links are not followed: `latest` is one of its neighbours."""
    for folder, folders, _ in os.walk(place):
        if "checkpoints" in folders:
            folders.clear()
            yield Path(folder)


def last(run: Path, key: str = "checkpoint") -> Path:
    """The newest checkpoint folder of a run.

    Raises:
        CheckpointError: it has none.
    """
    steps = numbered(run / "checkpoints")
    if not steps:
        raise CheckpointError(f"{key}={run}: no checkpoint in it; name a run folder, a checkpoint folder or latest")
    return steps[-1]


def numbered(folder: Path) -> list[Path]:
    """The checkpoints of a folder by ascending step; temporary leftovers do not count."""
    found = [p for p in folder.glob("*") if p.name.isascii() and p.name.isdigit() and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name))


def remove(path: Path) -> None:
    """Delete a checkpoint; first by renaming it, so that a half-deleted one is never taken for whole.

    Raises:
        WriteError: the disk is read-only.
    """
    doomed = _beside(path, "tmp")
    with writing(path):
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Clear up what killed processes left in a folder of checkpoints; nobody may be writing there.

    Raises:
        WriteError: the disk is read-only.
    """
    for old in folder.glob(".*.old"):
        path = folder / old.name[1:].rpartition("-")[0]
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with writing(path):
                old.rename(path)
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """What `manifest.json` holds as its own `sha256`: the digest of all the rest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _beside(path: Path, kind: str) -> Path:
    return path.parent / f".{path.name}-{secrets.token_hex(4)}.{kind}"


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished folder; one that is there already steps aside first, since no rename replaces a full folder."""
    if not path.exists():
        temporary.rename(path)
        _sync_folder(path.parent)
        return
    old = _beside(path, "old")
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


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


def _read_checked(path: Path, manifest: Mapping[str, Any]) -> bytes:
    files = manifest.get("files")
    entry = files.get(path.name) if isinstance(files, dict) else None
    if not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
        raise CheckpointError(f"checkpoint={path.parent}: manifest.json says nothing of {path.name}; take another")
    limit = min(entry["bytes"], MAX_JSON_BYTES) if path.suffix == ".json" else entry["bytes"]
    data = read_file(path, limit)
    if len(data) != entry["bytes"]:
        raise CheckpointError(f"checkpoint={path.parent}: {path.name} is truncated; take another")
    if entry.get("sha256") != hashlib.sha256(data).hexdigest():
        raise CheckpointError(f"checkpoint={path.parent}: {path.name} was changed after it was saved; take another")
    return data
