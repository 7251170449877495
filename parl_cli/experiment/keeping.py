"""What is kept of an experiment: its metrics and checkpoints, and in the run folder how it began and ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import Signals
from typing import Any

from parl_cli import registry
from parl_cli.config import TrainConfig, to_plain
from parl_cli.envs.factory import EVAL_ROLE
from parl_cli.errors import CheckpointError, ParlError, WriteError, writing
from parl_cli.metrics.jsonl import JsonlSink
from parl_cli.metrics.sinks import NoFile, RunRecord, SinkGroup
from parl_cli.reports.learning_curve import plot_learning_curve
from parl_cli.training import checkpoint
from parl_cli.training.evaluate import Evaluation
from parl_cli.training.hooks import CheckpointHook, EvalHook, MetricsHook
from parl_cli.training.learner import NonFiniteError
from parl_cli.training.run_dir import RunDir
from parl_cli.types import Metrics


class RunKeeper:
    """Writes down what an experiment does, and brings it back to where a checkpoint was taken.

    Around a training it is told of in this order: `begin`, an `after_update` of each of its `hooks` after every
    update, `end`, `complete`; and all but the last within `failures_recorded`. Without a run folder nothing is
    written, and the rest is the same.

    Args:
        config: the experiment's.
        run: the run folder; None writes nothing.
        sinks: where rows go, from `make_sinks`; closed by whoever made them.
        learner: what a checkpoint holds.
        pool: likewise.
        play: plays so many episodes with the present weights, on the seeds of a role.

    Attributes:
        metrics: makes the rows.
        checkpoints: writes checkpoints; None without a run folder.
        eval: evaluates now and then; None where the config does not ask for it.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunDir | None,
        sinks: SinkGroup,
        learner: Any,
        pool: Any,
        play: Callable[[int, int], Evaluation],
    ) -> None:
        self.config, self.run, self.sinks = config, run, sinks
        self.learner, self.pool = learner, pool
        self.metrics = MetricsHook(
            sinks,
            _show_nothing,
            [pool.watch, learner.watch],
            config.logger.every_steps,
            pool.metrics,
            config.num_policies,
        )
        self.checkpoints: CheckpointHook | None = None
        if run is not None:
            every_steps, keep = config.checkpoint.every_steps, config.checkpoint.keep
            self.checkpoints = CheckpointHook(run.checkpoints, self.save, every_steps, keep)
        self.eval: EvalHook | None = None
        if config.eval.every_steps is not None:
            self.eval = EvalHook(
                config.eval.every_steps,
                lambda: play(config.eval.episodes, EVAL_ROLE),
                self.metrics,
                config.eval.target_return,
                _ignore if self.checkpoints is None else self.checkpoints.write_best,
            )

    @property
    def hooks(self) -> list[Any]:
        """What looks at every update, in order: an evaluation stands in the checkpoint of its step."""
        return [hook for hook in (self.metrics, self.eval, self.checkpoints) if hook is not None]

    def begin_folder(self) -> None:
        """What a new run folder has before the first update: a checkpoint, and the link to it."""
        if self.run is not None and self.checkpoints is not None:
            self.checkpoints.write(self.learner)
            self.run.link_latest()

    def begin(self, display: Callable[[Metrics], None] | None) -> None:
        """Training begins, at the learner's step.

        Args:
            display: shows each row to a person, from here on; None: as before.
        """
        if display is not None:
            self.metrics.display = display
        for hook in self.hooks:
            hook.begin(self.learner.env_steps)
        if self.run is not None:
            self.run.set_status("running")
        if self.checkpoints is not None and self.checkpoints.is_outdated:
            self.checkpoints.write(self.learner)  # killed from here on, it goes on with these weights

    def end(self) -> None:
        """Training has ended, at the learner's step."""
        if self.checkpoints is not None:
            self.checkpoints.write(self.learner)

    def complete(self, reason: str, stopped_by: Signals | None) -> None:
        """Leave the run folder as one finds it after `parl train`.

        Args:
            reason: why training ended.
            stopped_by: the signal that ended it.
        """
        if self.run is None:
            return
        self.run.set_status(
            "finished" if stopped_by is None else "interrupted",
            reason=reason,
            env_steps=self.learner.env_steps,
            wall_s=self.metrics.time_s,
            return_mean=self.metrics.window.metrics().get("episode/return_mean"),
            best_eval=None if self.eval is None else self.eval.best,
        )
        self.sinks.flush()
        if self.config.logger.plot:
            with writing(self.run.learning_curve):
                plot_learning_curve(self.run.metrics, self.run.learning_curve)

    @contextmanager
    def failures_recorded(self) -> Iterator[None]:
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

    def weights_were_set(self) -> None:
        """The last checkpoint, though it be of this very step, holds other weights."""
        if self.checkpoints is not None:
            self.checkpoints.is_outdated = True

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        checkpoint.save(
            path,
            env_steps=self.learner.env_steps,
            config=to_plain(self.config),
            policy=self.learner.policy.state_dict(),
            training={
                "learner": self.learner.state_dict(),
                "pool": self.pool.state_dict(),
                "metrics": self.metrics.state_dict(),
                "eval": None if self.eval is None else self.eval.state_dict(),
            },
        )

    def restore(self, saved: checkpoint.Checkpoint, *, replay: bool, own_folder: bool) -> None:
        """The inverse of `save`; see `Runner.restore`."""
        training = saved.training
        checkpoint.load_weights(self.learner.policy, saved.policy, saved.path)
        try:
            self.learner.load_state_dict(training["learner"])
            if not 0 <= self.learner.updates <= self.learner.env_steps == saved.env_steps:
                raise ValueError(
                    f"{self.learner.updates} updates and {self.learner.env_steps} of {saved.env_steps} env steps"
                )
            if self.eval is not None and training["eval"] is not None and (own_folder or self.run is None):
                self.eval.load_state_dict(training["eval"])
            self.pool.load_state_dict(training["pool"], replay=replay)
            self.metrics.load_state_dict(training["metrics"])
            if own_folder:
                self.sinks.check(training["metrics"]["sinks"])
        # whatever wrong types and shapes lead to; damage ends here, before a step is trained on it
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"checkpoint={saved.path}: its training state does not fit ({type(error).__name__}: {error}); "
                "take another checkpoint"
            ) from None
        if not own_folder:
            return
        # checkpoints first: killed in between, the last one that is left still fits a metrics.jsonl that is too long
        if self.checkpoints is not None and not self.checkpoints.rewind(self.learner.env_steps) and self.eval:
            self.eval.best = None  # a later one had taken its place; the next one is the best that there is
        self.sinks.load_state_dict(training["metrics"]["sinks"])


def make_sinks(config: TrainConfig, run: RunDir | None) -> SinkGroup:
    """metrics.jsonl, and its copies that the config names; without a run folder, nothing."""
    if run is None:
        return SinkGroup(NoFile())
    record = RunRecord(run.path, to_plain(config))
    copies = [registry.load("sink", name).make(record, options) for name, options in config.logger.sinks.items()]
    return SinkGroup(JsonlSink(run.metrics), copies)


def _show_nothing(row: Metrics) -> None:
    """For those who do not watch."""


def _ignore(learner: Any) -> None:
    """Where no best checkpoint is kept."""
