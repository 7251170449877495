"""Weights & Biases (the extra `wandb`): the run's rows over env steps, online or offline.

W&B's own step is the env step: it rises only, so the rows of one step (an update and its evaluation) become one, and
what it knows already is not told again (`remote`). A resumed W&B run begins one behind its last step, so it
drops an evaluation that is told apart from its update. Offline runs lie in the run folder, a folder for each time
that the run was resumed, all with the same id: `wandb sync --append <run>/wandb/offline-run-*` makes one run of them.
"""

from __future__ import annotations

import importlib.util
import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from parl_cli.config import option
from parl_cli.errors import ConfigError
from parl_cli.metrics.remote import RemoteSink, Written, log
from parl_cli.metrics.sinks import RunRecord


@dataclass(frozen=True)
class WandbConfig:
    """Where the run goes; W&B's own variables (WANDB_MODE, WANDB_BASE_URL …) count, too."""

    project: str = option("parl", "W&B project")
    entity: str | None = option(None, "user or team; null: your default one")
    group: str | None = option(None, "group of runs; null: the sweep's folder, where the run is of one")
    tags: list[str] = option([], "tags")
    mode: Literal["online", "offline"] | None = option(None, "online or offline; null: WANDB_MODE, else online")


class WandbSink(RemoteSink):
    """Rows to Weights & Biases."""

    Config = WandbConfig
    summary = "Weights & Biases, online or offline"

    @classmethod
    def check(cls, options: WandbConfig) -> None:
        """Whether it can work here, found out without asking anybody.

        Raises:
            ConfigError: wandb is not installed, or has no key for its server.
        """
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError('logger.sinks.wandb: wandb is not installed; pip install "parl-cli[wandb]"')
        if _mode(options) == "online" and not _has_key():
            # wandb would ask for it, on the terminal, in the middle of the training
            raise ConfigError(
                "logger.sinks.wandb: no API key; run wandb login, set WANDB_API_KEY, or choose "
                "logger.sinks.wandb.mode=offline"
            )

    @classmethod
    def make(cls, run: RunRecord, options: WandbConfig) -> WandbSink:
        """The sink of a run."""
        return cls(_WandbRun(run, options), run.folder, "wandb")


class _WandbRun:
    def __init__(self, run: RunRecord, options: WandbConfig) -> None:
        self.run = run
        self.options = options
        self._run: Any = None

    def begin(self, run_id: str | None) -> str:
        import wandb

        options = self.options
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            group=options.group or self.run.sweep,
            tags=options.tags,
            name=self.run.name,
            config=dict(self.run.config),
            id=run_id,
            resume="allow",
            mode=_mode(options),
            dir=str(self.run.folder),
            # the terminal is ours
            settings=wandb.Settings(console="off", silent=True, disable_code=True),
        )
        log.info("W&B: %s", Path(self._run.dir).parent if _mode(options) == "offline" else self._run.url)
        return str(self._run.id)

    def send(self, rows: list[Written]) -> None:
        for written in rows:
            values = {name: value for name, value in written.row.items() if name != "env_steps"}
            self._run.log(values | {"_timestamp": written.time}, step=int(written.row["env_steps"]))

    def end(self, status: str) -> None:
        self._run.finish(exit_code=int(status == "failed"))


def _mode(options: WandbConfig) -> str:
    return options.mode or os.environ.get("WANDB_MODE") or "online"


def _has_key() -> bool:
    """Whether wandb finds credentials by itself: in its variables, or in the netrc file of `wandb login`."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for place in places:
        try:
            if netrc.netrc(os.path.expanduser(place)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
