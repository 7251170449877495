"""A whole experiment as one object: what the command line is a thin layer on, and what `parl_cli.Experiment` is.

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
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from parl_cli import build, plugins, registry
from parl_cli.composition.compose import compose, plain, presets_named, session
from parl_cli.config import TrainConfig, to_plain
from parl_cli.envs.factory import EVAL_ROLE, TEST_ROLE, env_spec
from parl_cli.errors import CheckpointError, ConfigError, ParlError, WriteError, writing
from parl_cli.functional.noise import stream_key
from parl_cli.metrics.jsonl import JsonlSink
from parl_cli.metrics.sinks import NoFile, RunRecord, SinkGroup
from parl_cli.reports.learning_curve import plot_learning_curve
from parl_cli.training import checkpoint
from parl_cli.training.evaluate import MAX_PARALLEL, Evaluation, EvaluationGroup, evaluate
from parl_cli.training.hooks import CheckpointHook, EvalHook, MetricsHook, StopSignal
from parl_cli.training.learner import NonFiniteError
from parl_cli.training.loop import train
from parl_cli.training.run_dir import RunDir, check_empty, unwritable
from parl_cli.types import Hook, Metrics

PathLike = str | os.PathLike[str]

log = logging.getLogger(__name__)

DEFAULT = "default"  # the id of the policy, where there is only one; of several they are 0, 1, 2 …
PolicyId = int | str


class Experiment:
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

    def __init__(self, config: TrainConfig, run: RunDir | None = None, hooks: Sequence[Hook] = ()) -> None:
        self.config = config
        self.run = run
        self.hooks = list(hooks)
        torch.set_num_threads(config.num_threads or 1)
        self.spec = env_spec(config.env)
        self.learner = build.make_learner(config, self.spec)
        self.policy = self.learner.policy
        several = config.num_policies > 1
        self.policies: dict[PolicyId, Any] = dict(enumerate(self.policy)) if several else {DEFAULT: self.policy}
        self.sinks = _make_sinks(config, run)
        try:
            self.pool = build.make_pool(config, self.policy, self.spec)
        except BaseException:
            self.sinks.close()
            raise
        self.stopped_by: signal.Signals | None = None
        self._budget = 0  # env steps that were asked for
        self._eval_vectorizers: dict[tuple[int, int], Any] = {}  # by role and number of envs
        self._display: Callable[[Metrics], None] = _show_nothing
        self.metrics = MetricsHook(
            self.sinks,
            lambda row: self._display(row),
            [self.pool.watch, self.learner.watch],
            config.logger.every_steps,
            self.pool.metrics,
            config.num_policies,
        )
        self.checkpoints: CheckpointHook | None = None
        if run is not None:
            every_steps, keep = config.checkpoint.every_steps, config.checkpoint.keep
            self.checkpoints = CheckpointHook(run.checkpoints, self._save, every_steps, keep)
        self.eval: EvalHook | None = None
        if config.eval.every_steps is not None:
            self.eval = EvalHook(
                config.eval.every_steps,
                lambda: self._play(config.eval.episodes, EVAL_ROLE),
                self.metrics,
                config.eval.target_return,
                _ignore if self.checkpoints is None else self.checkpoints.write_best,
            )

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
        try:
            return cls.restart(config, run, hooks)
        except ConfigError:
            if run is not None:
                run.discard()
            raise

    @classmethod
    def restart(cls, config: TrainConfig, run: RunDir | None, hooks: Sequence[Hook] = ()) -> Experiment:
        """As `start`, in a run folder that is there, of a run that has no checkpoint yet."""
        try:
            with ExitStack() as stack:
                experiment = stack.enter_context(cls(config, run, hooks))
                if config.init_from is not None:
                    experiment.set_parameters(dict.fromkeys(experiment.policies, config.init_from))
                experiment._begin_folder()
                stack.pop_all()
        except WriteError as error:
            raise unwritable(error) from None
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
        try:
            with ExitStack() as stack:
                experiment = stack.enter_context(cls(config, run, hooks))
                experiment.restore(saved, replay=replay, own_folder=False)
                experiment._begin_folder()
                stack.pop_all()
        except BaseException as error:
            if run is not None:
                run.discard()  # without a checkpoint, resume would begin at step 0
            if isinstance(error, WriteError):
                raise unwritable(error) from None
            raise
        return experiment

    def __enter__(self) -> Experiment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as closing:
            if error is None:
                raise
            log.warning("closing failed too (%s: %s)", type(closing).__name__, closing)

    @property
    def env_steps(self) -> int:
        """Env steps done since the beginning."""
        return self.learner.env_steps

    def train(self, env_steps: int | None = None) -> str:
        """Train on. May be called again and again: budgets add up, and several calls train what one would.

        Schedules run over the config's `total_steps`, whatever the calls. A hook or an evaluation that stops
        training ends this call, and what is left of its budget is void.

        Args:
            env_steps: how many more, rounded up to whole updates; None: until the config's `total_steps` are done.

        Returns:
            Why it ended: `budget`, or what the hook that stopped it said.

        Raises:
            KeyboardInterrupt: Ctrl-C; the update was finished, and `train` can go on.
            SystemExit: SIGTERM; likewise.
            NonFiniteError: NaN or infinity came up.
        """
        if env_steps is not None and env_steps < 0:
            raise ConfigError(f"env_steps={env_steps}: must be at least 0")
        self._budget = max(self._budget, self.config.total_steps) if env_steps is None else self._budget + env_steps
        reason = self.train_until(self._budget)
        if reason != "budget":
            self._budget = self.env_steps
        if self.stopped_by is not None:
            raise KeyboardInterrupt if self.stopped_by == signal.SIGINT else SystemExit(128 + self.stopped_by)
        return reason

    def train_until(self, total_steps: int, display: Callable[[Metrics], None] | None = None) -> str:
        """Train up to a number of env steps, counted from the beginning; leaves a run folder complete.

        Args:
            total_steps: rounded up to whole updates.
            display: shows each metrics row to a person.

        Returns:
            As `train`; Ctrl-C and SIGTERM end it after the update and are a reason, `interrupted: SIGINT`, and
            `stopped_by`.
        """
        self._display = display or _show_nothing
        own: list[Any] = [hook for hook in (self.metrics, self.eval, self.checkpoints) if hook is not None]
        for hook in own:
            hook.begin(self.env_steps)
        with self._failures_recorded(), StopSignal() as stop:
            if self.run is not None:
                self.run.set_status("running")
            if self.checkpoints is not None and self.checkpoints.is_outdated:
                self.checkpoints.write(self.learner)  # killed from here on, it goes on with these weights
            reason, self.stopped_by = train(self.learner, self.pool, [*own, *self.hooks, stop], total_steps)
            if self.checkpoints is not None:
                self.checkpoints.write(self.learner)
        self.metrics.end()
        self._complete(reason)
        return reason

    def evaluate(self, episodes: int | None = None) -> dict[str, Any]:
        """Play episodes with the present weights: those of `parl eval`, which neither trained nor chose anything.

        Args:
            episodes: how many; None is the config's `eval.episodes`.

        Returns:
            `mean_return std_return ci95 mean_length episodes`, as in eval.json; with several policies, over the
            episodes of all, and each one's in `policies`.
        """
        episodes = self.config.eval.episodes if episodes is None else episodes
        if episodes < 1:
            raise ConfigError(f"episodes={episodes}: must be at least 1")
        return self._play(episodes, TEST_ROLE).summary()

    def get_parameters(self) -> dict[PolicyId, dict[str, Tensor]]:
        """A copy of each policy's weights and buffers, on the CPU, by policy id.

        The id of an only one is `default`; of several they are 0, 1, 2 and so on.
        """
        return {
            policy_id: {name: value.detach().cpu().clone() for name, value in policy.state_dict().items()}
            for policy_id, policy in self.policies.items()
        }

    def set_parameters(self, parameters: Mapping[Any, Mapping[str, Tensor] | PathLike]) -> None:
        """Put weights into the policies. Optimizers and counters stay as they are: `load` brings those.

        Args:
            parameters: by policy id, a state dict, or the path of a checkpoint or run folder: of as many policies,
                or of a single one.

        Raises:
            ConfigError: an unknown policy id; names, shapes or values that do not fit. No policy is changed then.
        """
        chosen = []
        for policy_id, source in parameters.items():
            if policy_id not in self.policies:
                known = " and ".join(map(repr, self.policies)) if len(self.policies) > 1 else f"only {DEFAULT!r}"
                raise ConfigError(f"set_parameters: no policy is called {policy_id!r}; there is {known}")
            label: Path | str = f"set_parameters: {policy_id}"
            if not isinstance(source, Mapping):
                saved = checkpoint.load(checkpoint.find(os.fspath(source)))
                index = list(self.policies).index(policy_id)
                source, label = saved.weights_of(index, len(self.policies)), saved.path
            checkpoint.check_weights(self.policies[policy_id], source, label)
            chosen.append((policy_id, source))
        for policy_id, weights in chosen:
            self.policies[policy_id].load_state_dict(dict(weights))
        if self.checkpoints is not None:
            self.checkpoints.is_outdated = True

    def save(self, path: PathLike) -> Path:
        """Write a checkpoint, for `load`, `parl eval` and `init_from`; an older checkpoint there is replaced.

        Args:
            path: the checkpoint folder; what is in between is made.

        Returns:
            The folder.

        Raises:
            ConfigError: there is something else by that name.
            WriteError: the disk is full or read-only.
        """
        folder = Path(path).expanduser()
        if folder.exists() and not (folder / "manifest.json").is_file():
            raise ConfigError(f"save({os.fspath(path)!r}): is there, and is no checkpoint; name another folder")
        self._save(folder)
        return folder

    def restore(self, saved: checkpoint.Checkpoint, *, replay: bool = True, own_folder: bool = True) -> None:
        """Go back to where a checkpoint of this config was taken.

        Args:
            saved: the checkpoint.
            replay: re-step unfinished episodes (exact), or begin new ones.
            own_folder: the checkpoint is of this very run folder: metrics.jsonl is cut there, and later checkpoints
                are dropped. In another, there is no best checkpoint, and so no best evaluation yet.

        Raises:
            CheckpointError: it does not fit this experiment; the run folder is as it was.
            EnvError: an env did not come back to the same observation; likewise.
        """
        training = saved.training
        checkpoint.load_weights(self.policy, saved.policy, saved.path)
        try:
            self.learner.load_state_dict(training["learner"])
            if not 0 <= self.learner.updates <= self.learner.env_steps == saved.env_steps:
                raise ValueError(
                    f"{self.learner.updates} updates and {self.learner.env_steps} of {saved.env_steps} env steps"
                )
            if self.eval is not None and training["eval"] is not None and (own_folder or self.run is None):
                self.eval.load_state_dict(training["eval"])
            self.pool.load_state_dict(training["pool"], replay=replay)
            metrics = training["metrics"]
            self.metrics.load_state_dict(metrics, cut=own_folder)  # last: it cuts metrics.jsonl
        # whatever wrong types and shapes lead to; damage ends here, before a step is trained on it
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"checkpoint={saved.path}: its training state does not fit ({type(error).__name__}: {error}); "
                "take another checkpoint"
            ) from None
        self._budget = self.env_steps
        if own_folder and self.checkpoints is not None:
            self.checkpoints.rewind(self.env_steps)

    def close(self) -> None:
        """End envs, workers and sinks: all, whatever one of them raises. May be called again."""
        with ExitStack() as stack:  # from the last one up
            stack.callback(self.sinks.close)
            while self._eval_vectorizers:
                stack.callback(self._eval_vectorizers.popitem()[1].close)
            stack.callback(self.pool.close)

    def _begin_folder(self) -> None:
        """What a new run folder has before the first update: a checkpoint, and the link to it."""
        if self.run is not None and self.checkpoints is not None:
            self.checkpoints.write(self.learner)
            self.run.link_latest()

    def _play(self, episodes: int, role: int) -> Evaluation:
        key = role, min(episodes, MAX_PARALLEL)
        if key not in self._eval_vectorizers:
            self._eval_vectorizers[key] = build.make_eval_vectorizer(
                self.config.env, seed=self.config.seed, episodes=episodes, role=role
            )
        each = [
            evaluate(
                policy,
                self._eval_vectorizers[key],
                episodes,
                noise_key=stream_key(self.config.seed, "eval", "noise"),
                deterministic=self.config.eval.deterministic,
            )
            for policy in self.policies.values()
        ]
        return each[0] if len(each) == 1 else EvaluationGroup.of(each)

    def _save(self, path: Path) -> None:
        checkpoint.save(
            path,
            env_steps=self.env_steps,
            config=to_plain(self.config),
            policy=self.policy.state_dict(),
            training={
                "learner": self.learner.state_dict(),
                "pool": self.pool.state_dict(),
                "metrics": self.metrics.state_dict(),
                "eval": None if self.eval is None else self.eval.state_dict(),
            },
        )

    def _complete(self, reason: str) -> None:
        """Leave the run folder as one finds it after `parl train`."""
        if self.run is None:
            return
        self.run.set_status(
            "finished" if self.stopped_by is None else "interrupted",
            reason=reason,
            env_steps=self.env_steps,
            wall_s=self.metrics.time_s,
            return_mean=self.metrics.window.metrics().get("episode/return_mean"),
            best_eval=None if self.eval is None else self.eval.best,
        )
        self.sinks.flush()
        if self.config.logger.plot:
            with writing(self.run.learning_curve):
                plot_learning_curve(self.run.metrics, self.run.learning_curve)

    @contextmanager
    def _failures_recorded(self) -> Iterator[None]:
        """Write what ends the block into run.json, and the rollout that NaN came from beside it."""
        try:
            yield
        except BaseException as error:
            if self.run is None:
                raise
            self.run.set_failed(error, str(error) if isinstance(error, NonFiniteError) else None)
            if isinstance(error, NonFiniteError):
                path = self.run.path / "nonfinite.safetensors"
                with suppress(WriteError):
                    checkpoint.save_rollout(path, error.rollout)
                    raise type(error)(f"{error}; the rollout is in {path}", error.rollout) from None
            if isinstance(error, WriteError):
                raise ParlError(f"{error}; make room, then parl resume run={self.run.path}") from error
            raise


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
    if saved is None:
        return build.validate(values)
    # what it was warmed up with has done its work, and may be gone
    init_from = build.check_fits(saved, values).init_from
    return dataclasses.replace(build.validate({**values, "init_from": None}), init_from=init_from)


def changed(values: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The values with those of the changes that are not None."""
    return {**values, **{name: value for name, value in changes.items() if value is not None}}


def _new_folder(run_dir: PathLike | None) -> Path | None:
    """The run folder that a caller names, as a path; it must be new or empty."""
    if run_dir is None:
        return None
    folder = Path(run_dir).expanduser()
    check_empty(folder)
    return folder


def _make_sinks(config: TrainConfig, run: RunDir | None) -> SinkGroup:
    if run is None:
        return SinkGroup(NoFile())
    record = RunRecord(run.path, to_plain(config))
    copies = [registry.load("sink", name).make(record, options) for name, options in config.logger.sinks.items()]
    return SinkGroup(JsonlSink(run.metrics), copies)


def _show_nothing(row: Metrics) -> None:
    """For those who do not watch."""


def _ignore(learner: Any) -> None:
    """Where no best checkpoint is kept."""
