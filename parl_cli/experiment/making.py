"""How an experiment is made: from overrides, from a config, or from a checkpoint, in a run folder or in none.

```python
with Experiment.compose(["env=cartpole", "num_envs=8"]) as experiment:
    experiment.train(50_000)
    print(experiment.evaluate(20)["mean_return"])
```

Without a run folder nothing is written anywhere; with one, it is the folder that `parl train` would leave, and
`parl eval` and `parl resume` take it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from parl_cli import build, plugins
from parl_cli.composition.compose import compose, plain, presets_named, session
from parl_cli.config import TrainConfig, to_plain
from parl_cli.errors import ConfigError, WriteError
from parl_cli.experiment.running import PathLike, Runner
from parl_cli.training import checkpoint
from parl_cli.training.run_dir import RunDir, check_empty, unwritable
from parl_cli.types import Hook

log = logging.getLogger(__name__)


class Experiment(Runner):
    """Env, vectorizer, policy, algorithm and actors of one config. A context manager; `close` ends its workers.

    Made by `compose` (from overrides, as on the command line) or by `load` (from a checkpoint). The number of threads
    that torch computes with becomes the config's, in the whole process.

    Args:
        config: a validated config.
        run: the run folder, made already; None writes nothing.
        hooks: asked after every update, once parl's own are done; see `parl_cli.types.Hook`. One that raises
            `parl_cli.training.loop.StopTraining` ends the call of `train`.

    Attributes:
        config: the typed config.
        spec: the env's spaces.
        policy: the network; learner.algo: the algorithm. Of several policies a list of them, and learner.learners.
        policies: each network by policy id.
        stopped_by: the signal that ended training, the last time; None if something else did.
    """

    @classmethod
    def compose(
        cls,
        overrides: Sequence[str] = (),
        *,
        config_dir: str | None = None,
        run_dir: PathLike | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Experiment:
        """A new experiment, composed and validated as by `parl train`.

        Args:
            overrides: what would be typed, `["env=cartpole", "algo.gamma=0.98", "plugins=[my_module]"]`.
            config_dir: a folder with configs of your own; `./conf` is searched anyway.
            run_dir: where the run is to be written: config, metrics, checkpoints; a folder that is new or empty.
                None writes nothing.
            hooks: see the class.

        Raises:
            ConfigError: whatever does not fit; nothing has been written then.
        """
        for text in overrides:
            if text.lstrip("+~").startswith(("hydra.", "hydra/")):
                raise ConfigError(f"{text}: belongs to the command line; name a folder with run_dir=")
        folder = _new_folder(run_dir)
        plugins.activate(overrides)
        with session(config_dir) as hydra:
            job = compose(hydra, "train", overrides)
            values = plain(job)
        with presets_named(job):
            config = build.validate(values)
        return cls.start(config, folder, list(overrides), hooks)

    @classmethod
    def start(
        cls, config: TrainConfig, run_dir: Path | None = None, argv: Sequence[str] = (), hooks: Sequence[Hook] = ()
    ) -> Experiment:
        """A new experiment at step 0, with the weights of `init_from`; `vectorizer=auto` is decided here, once.

        Args:
            config: from `build.validate`.
            run_dir: the run folder to make; it holds a checkpoint at once, so a run killed at any moment resumes.
            argv: what the user typed, to be recorded.
            hooks: see the class.

        Raises:
            ConfigError: the folder holds a run already, or cannot be written; it is left as it was. Whatever else
                breaks, e.g. an env that cannot be built in a worker, is recorded in run.json.
        """
        config, why = build.choose_vectorizer(config)
        if why:
            log.info(why)
        run = None if run_dir is None else RunDir.create(run_dir, to_plain(config), argv)
        with _discarded_after(ConfigError, run):
            return cls.restart(config, run, hooks)

    @classmethod
    def restart(cls, config: TrainConfig, run: RunDir | None, hooks: Sequence[Hook] = ()) -> Experiment:
        """As `start`, in a run folder that is there, of a run that has no checkpoint yet."""
        try:
            with _naming_the_folder(), ExitStack() as stack:
                experiment = stack.enter_context(cls(config, run, hooks))
                if config.init_from is not None:
                    experiment.set_parameters(dict.fromkeys(experiment.policies, config.init_from))
                experiment.keeper.begin_folder()
                stack.pop_all()
        except BaseException as error:
            if run is not None and not isinstance(error, ConfigError):
                run.set_failed(error)
            raise
        return experiment

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        plugins: Sequence[str] = (),
        total_steps: int | None = None,
        device: str | None = None,
        replay: bool = True,
        run_dir: PathLike | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Experiment:
        """The experiment as it was when a checkpoint was written: weights, optimizer, counters, envs.

        What it trains next is what the first one would have trained, bit for bit, in lock-step inline mode.

        Args:
            path: a checkpoint folder, a run folder (its last checkpoint), or `latest`. It is only read.
            plugins: modules to import first; a checkpoint cannot import them itself.
            total_steps: the budget that schedules run over; None is the checkpoint's own.
            device: None is the checkpoint's own.
            replay: re-step unfinished episodes (exact); False begins new ones, for irreproducible envs. Vectorizers
                that cannot re-step (async, native) begin new ones always.
            run_dir: a folder, new or empty, to write from here on; None writes nothing. What is the best there is
                found anew: the checkpoint of an earlier best is not in it.
            hooks: see the class.

        Raises:
            CheckpointError: it is missing, damaged, or not to be trusted.
            ConfigError: the folder is not empty, or cannot be written.
            EnvError: an env did not come back to the same observation. Whatever is raised, nothing has been written.
        """
        folder = _new_folder(run_dir)
        saved = checkpoint.load(checkpoint.find(os.fspath(path)))
        config = config_to_go_on(
            changed(saved.config, total_steps=total_steps, device=device),
            saved,
            plugins,
            lambda modules: f"Experiment.load({os.fspath(path)!r}, plugins={modules.split(',')})",
        )
        run = None if folder is None else RunDir.create(folder, to_plain(config), [])
        # a folder without a checkpoint would be resumed at step 0
        with _discarded_after(BaseException, run), _naming_the_folder(), ExitStack() as stack:
            experiment = stack.enter_context(cls(config, run, hooks))
            experiment.restore(saved, replay=replay, own_folder=False)
            experiment.keeper.begin_folder()
            stack.pop_all()
        return experiment


def config_to_go_on(
    values: Mapping[str, Any], saved: checkpoint.Checkpoint | None, given: Sequence[str], ask: Callable[[str], str]
) -> TrainConfig:
    """The validated config of a run that goes on.

    Args:
        values: its config, from a file, perhaps with changes of the user's.
        saved: the checkpoint to go on from; None: from the beginning.
        given: plug-ins that the user named.
        ask: the command that names plug-ins, see `plugins.require`.

    Raises:
        CheckpointError: the config or the weights are not what they must be.
        ConfigError: plug-ins are missing, or this machine cannot do it.
    """
    plugins.require(values, given, ask)
    # workers import what the config names, and so does whoever goes on from the next checkpoint
    values = {**values, "plugins": list(dict.fromkeys([*(values.get("plugins") or []), *given]))}
    if saved is None:
        return build.validate(values)
    # what it was warmed up with has done its work, and may be gone
    init_from = build.check_fits(saved, values).init_from
    return dataclasses.replace(build.validate({**values, "init_from": None}), init_from=init_from)


def changed(values: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The values with those of the changes that are not None."""
    return {**values, **{name: value for name, value in changes.items() if value is not None}}


def _new_folder(run_dir: PathLike | None) -> Path | None:
    """The run folder that a caller names, as a path.

    Raises:
        ConfigError: it is not empty.
    """
    if run_dir is None:
        return None
    folder = Path(run_dir).expanduser()
    check_empty(folder)
    return folder.absolute()  # there also after os.chdir


@contextmanager
def _discarded_after(kind: type[BaseException], run: RunDir | None) -> Iterator[None]:
    """An error of this kind leaves no run folder: with nothing to resume from, it would only be in the way."""
    try:
        yield
    except kind:
        if run is not None:
            run.discard()
        raise


@contextmanager
def _naming_the_folder() -> Iterator[None]:
    """A run folder that cannot be written is the caller's to mend: a `ConfigError` that says how."""
    try:
        yield
    except WriteError as error:
        raise unwritable(error) from None
