"""The run folder: who made it, how, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from parl_cli import __version__
from parl_cli.errors import CheckpointError, ConfigError
from parl_cli.training.checkpoint import refuse_live_text

PACKAGES = ("torch", "gymnasium", "numpy", "hydra-core", "safetensors")


class RunDir:
    """Paths and status of one run.

    Args:
        path: the folder; made by `create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.videos = path / "videos"
        self.learning_curve = path / "learning_curve.png"

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], argv: Sequence[str]) -> RunDir:
        """Make the folder and write config.yaml and run.json.

        Raises:
            ConfigError: the place is read-only or full, or already holds a run.
        """
        run = cls(path)
        if (path / "run.json").exists():
            raise ConfigError(f"hydra.run.dir={path}: holds a run already; choose another, or parl resume run={path}")
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            run._write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
            run.set_status(
                "running",
                argv=list(argv),
                seed=config["seed"],
                started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                git_sha=_git_sha(),
                parl=__version__,
                python=platform.python_version(),
                platform=platform.platform(),
                versions={name: _version(name) for name in PACKAGES},
            )
        except OSError as error:
            raise unwritable(path, error) from None
        run._link_latest()
        return run

    @classmethod
    def open(cls, text: str) -> RunDir:
        """A run folder that is there, by its path.

        Raises:
            CheckpointError: it is not a run folder.
        """
        path = Path(text)
        if not (path / "run.json").is_file():
            raise CheckpointError(
                f"run={text}: not a run folder (no run.json); name one like outputs/<name>/<timestamp>"
            )
        return cls(path.resolve())

    def info(self) -> dict[str, Any]:
        """What run.json says."""
        try:
            info = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError):
            return {}
        return info if isinstance(info, dict) else {}

    def config(self) -> dict[str, Any]:
        """What config.yaml holds, not to be trusted: plain values, nothing resolved.

        Raises:
            CheckpointError: it is missing or not a config.
        """
        try:
            values = yaml.safe_load((self.path / "config.yaml").read_text())
        except (OSError, yaml.YAMLError):
            values = None
        if not isinstance(values, dict):
            raise CheckpointError(f"run={self.path}: has no checkpoint and no readable config.yaml; train anew")
        refuse_live_text(values, self.path)
        return values

    def set_status(self, status: str, **more: Any) -> None:
        """Rewrite run.json, atomically, with a status and whatever else is known by now."""
        self._write("run.json", json.dumps(self.info() | {"status": status} | more, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text)
        temporary.replace(self.path / name)

    def _link_latest(self) -> None:
        link = self.path.parent / "latest"
        # a convenience only: some file systems have no links, and somebody's own `latest` is not touched
        with contextlib.suppress(OSError):
            if link.is_symlink():
                link.unlink()
            if not link.exists():
                link.symlink_to(self.path.name, target_is_directory=True)


def unwritable(path: Path, error: OSError) -> ConfigError:
    """The error for a folder that cannot be written: read-only, full, or not a folder."""
    return ConfigError(f"cannot write to {path}: {error.strerror}; choose another with hydra.run.dir=FOLDER")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_sha() -> str | None:
    """The commit of the working directory, where that is a git checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False, cwd=os.getcwd()
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
