"""The run folder: who made it, how, and how it ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from parl_cli import __version__
from parl_cli.errors import CheckpointError, ConfigError, WriteError, writing
from parl_cli.training.untrusted import MAX_JSON_BYTES, parse_json, parse_yaml, read_file, refuse_live_text

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

RESULTS = ("reason", "env_steps", "wall_s", "return_mean", "best_eval")  # of run.json, once the run has ended
_OF_THE_END = ("error", *RESULTS)
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
        self.learning_curve = path / "learning_curve.png"
        self._found: frozenset[str] | None = None  # what was in the folder before `create`
        self._made: list[Path] = []  # the folder and those around it, from inside out, that the run made
        self._is_held = False

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], argv: Sequence[str]) -> RunDir:
        """Make the folder and write config.yaml and run.json. Logs and a job's description may be there already.

        Raises:
            ConfigError: the place is read-only or full, or already holds a run.
        """
        run = cls(path)
        try:
            with writing(path):
                # a job killed while it made this folder left no more than an empty checkpoints/: it may begin again
                if run.metrics.exists() or (path / "run.json").exists() or any(run.checkpoints.glob("*")):
                    raise ConfigError(
                        f"hydra.run.dir={path}: holds a run already; choose another, or parl resume run={path}"
                    )
                run._made = [place for place in (path, *path.parents) if not place.exists()]
                run._found = frozenset() if run._made else frozenset(os.listdir(path))
                run.checkpoints.mkdir(parents=True, exist_ok=True)
                run.set_config(config)
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
        except WriteError as error:
            run.discard()
            raise unwritable(error) from None
        return run

    def discard(self) -> None:
        """Take away all that a new run which could not start has written, and nothing that was there before it."""
        if self._found is None:
            return
        for name in ("config.yaml", "run.json", "metrics.jsonl", "metrics.csv"):
            for file in {name, self._temporary(name).name} - self._found:
                with contextlib.suppress(OSError):
                    (self.path / file).unlink()
        for folder in {self.checkpoints.name, "tensorboard"} - self._found:
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for place in self._made:
            with contextlib.suppress(OSError):
                place.rmdir()

    @classmethod
    def open(cls, text: str) -> RunDir:
        """A run folder that is there, by its path.

        Raises:
            CheckpointError: it is not a run folder.
        """
        path = Path(os.path.realpath(text))
        if not os.path.isfile(path / "run.json"):
            raise CheckpointError(
                f"run={text}: not a run folder (no run.json), nor a sweep's (no sweep.json); name one like "
                "outputs/<name>/<timestamp>"
            )
        refuse_links(path, text)
        return cls(path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from training in this folder, until the block or this process ends; blocks may be nested.

        Where the system or the file system has no such locks (Windows, some network disks), nothing is kept.

        Raises:
            ConfigError: another process holds it, or another experiment of this one.
        """
        with contextlib.ExitStack() as stack:
            if fcntl is not None and not self._is_held:
                handle = os.open(self.path, os.O_RDONLY)
                stack.callback(os.close, handle)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ConfigError(
                        f"run={self.path}: another process is training it; wait for it, or stop it with Ctrl-C (in "
                        "Python, close the experiment)"
                    ) from None
                except OSError as error:
                    log.debug("%s cannot be locked: %s", self.path, error)
                self._is_held = True
                stack.callback(setattr, self, "_is_held", False)
            yield

    def check_writable(self) -> None:
        """Rewrite run.json as it is.

        Raises:
            ConfigError: the folder is read-only or full.
        """
        try:
            self._write("run.json", json.dumps(self.info(), indent=1) + "\n")
        except WriteError as error:
            raise ConfigError(
                f"run={self.path}: cannot write to it ({error.why}); a run is resumed in its own folder, so free "
                "the disk or copy the run"
            ) from None

    def info(self) -> dict[str, Any]:
        """What run.json says; nothing if it cannot be read."""
        try:
            return parse_json(self.path / "run.json", read_file(self.path / "run.json", MAX_JSON_BYTES))
        except CheckpointError:
            return {}

    def config(self) -> dict[str, Any]:
        """What config.yaml holds, not to be trusted: plain values, nothing resolved.

        Raises:
            CheckpointError: it is missing or not a config.
        """
        values = parse_yaml(self.path / "config.yaml")
        refuse_live_text(values, self.path)
        return values

    def set_status(self, status: str, **more: Any) -> None:
        """Rewrite run.json, atomically, with a status and whatever else is known by now.

        What it said of an earlier end is dropped: a run that goes on is neither failed nor finished.

        Raises:
            WriteError: the folder is read-only or full.
        """
        begun = {name: value for name, value in self.info().items() if name not in _OF_THE_END}
        self._write("run.json", json.dumps(begun | {"status": status} | more, indent=1) + "\n")

    def set_failed(self, error: BaseException, text: str | None = None) -> None:
        """Say in run.json what ended the run, where that can still be written: the error is the news.

        Args:
            error: what ended it.
            text: how it is told; None: its type and its message.
        """
        with contextlib.suppress(WriteError):
            self.set_status("failed", error=f"{type(error).__name__}: {error}" if text is None else text)

    def set_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml, atomically: the config that the run has from here on.

        Raises:
            WriteError: the folder is read-only or full.
        """
        self._write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def link_latest(self) -> None:
        """Point the `latest` link beside the folder to it."""
        link = self.path.parent / "latest"
        # a convenience only: some file systems have no links, and somebody's own `latest` is not touched
        with contextlib.suppress(OSError):
            if link.is_symlink():
                link.unlink()
            if not link.exists():
                link.symlink_to(self.path.name, target_is_directory=True)

    def _write(self, name: str, text: str) -> None:
        temporary = self._temporary(name)
        with writing(self.path / name):
            temporary.unlink(missing_ok=True)  # a link by that name would be followed
            temporary.write_text(text)
            temporary.replace(self.path / name)

    def _temporary(self, name: str) -> Path:
        return self.path / f".{name}.tmp"


def refuse_links(path: Path, text: str, but: str = "") -> None:
    """Refuse a folder with links in it, through which what is written would land elsewhere.

    Args:
        path: the folder, perhaps not there yet.
        text: what was typed for it.
        but: a name that may be one.

    Raises:
        CheckpointError: naming the link.
    """
    for entry in (*path.glob("*"), *path.glob("checkpoints/*")):
        if entry.is_symlink() and entry.name != but:
            raise CheckpointError(
                f"run={text}: {entry.relative_to(path)} is a link, and what is written there would land elsewhere; "
                "put the real file or folder in its place"
            )


def check_empty(path: Path) -> None:
    """Refuse a folder for a new run that holds anything: checkpoints are deleted in it, and files replaced.

    The command line asks `commands._job.make_dir` instead, before there are logs in the folder.

    Raises:
        ConfigError: it is not empty.
    """
    try:
        is_taken = path.is_dir() and any(path.iterdir())
    except OSError as error:
        raise unwritable(WriteError(path, error)) from None
    if is_taken:
        what = "holds a run already" if (path / "run.json").exists() else "is not empty"
        raise ConfigError(f"run_dir={path}: {what}; name a folder that is new or empty")


def unwritable(error: WriteError) -> ConfigError:
    """The error for a run folder that cannot be written: read-only, full, or not a folder."""
    return ConfigError(
        f"cannot write to {error.path}: {error.why}; choose another with hydra.run.dir=FOLDER (in Python run_dir=)"
    )


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
