"""A whole experiment as one object, and the three jobs of the command line: train, resume, evaluate."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from parl_cli import build, plugins
from parl_cli.config import EvalCommand, ResumeCheckpointConfig, ResumeCommand, TrainConfig, parse_train, to_plain
from parl_cli.envs.factory import env_spec
from parl_cli.errors import CheckpointError, ConfigError, ParlError
from parl_cli.functional.noise import stream_key
from parl_cli.metrics import console
from parl_cli.metrics.csv import CsvSink
from parl_cli.metrics.jsonl import JsonlSink, read_jsonl
from parl_cli.metrics.progress import make_progress
from parl_cli.metrics.sinks import Sink, SinkGroup
from parl_cli.metrics.tensorboard import TensorBoardSink
from parl_cli.reports.learning_curve import plot_learning_curve
from parl_cli.training import checkpoint
from parl_cli.training.evaluate import MAX_PARALLEL, Evaluation, evaluate
from parl_cli.training.hooks import CheckpointHook, EvalHook, MetricsHook, StopSignal
from parl_cli.training.learner import NonFiniteError
from parl_cli.training.loop import train
from parl_cli.training.run_dir import RunDir, unwritable
from parl_cli.training.video import VideoRecorder
from parl_cli.types import Metrics


class Experiment:
    """Env, vectorizer, policy, algorithm and actors of one config, in one run folder.

    Args:
        config: a validated config.
        run: the run folder, made already.
    """

    def __init__(self, config: TrainConfig, run: RunDir) -> None:
        self.config = config
        self.run = run
        torch.set_num_threads(config.num_threads or 1)
        self.spec = env_spec(config.env)
        self.learner = build.make_learner(config, self.spec)
        self.policy = self.learner.algo.policy
        self.pool = build.make_pool(config, self.policy)
        self._eval_vectorizer: Any = None
        copies: list[Sink] = [CsvSink(run.path / "metrics.csv")] if config.logger.csv else []
        if config.logger.tensorboard:
            copies.append(TensorBoardSink(run.path / "tensorboard"))
        self.sinks = SinkGroup(JsonlSink(run.metrics), copies)
        self._display: Callable[[Metrics], None] = lambda row: None
        self.metrics = MetricsHook(
            self.sinks,
            lambda row: self._display(row),
            [self.pool.actor.watch, self.learner.watch],
            config.logger.every_steps,
        )
        self.checkpoints = CheckpointHook(
            run.checkpoints, self.save, config.checkpoint.every_steps, config.checkpoint.keep
        )
        self.eval: EvalHook | None = None
        if config.eval.every_steps is not None:
            self.eval = EvalHook(
                config.eval.every_steps,
                self.evaluate,
                self.metrics,
                config.eval.target_return,
                self.checkpoints.write_best,
            )

    def __enter__(self) -> Experiment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def train(self, display: Callable[[Metrics], None] | None = None) -> str:
        """Train until the budget is used, a target is reached, or a signal comes; leaves a checkpoint.

        Args:
            display: shows each metrics row to a person.

        Returns:
            Why it ended; see `training.loop.train`.
        """
        if display is not None:
            self._display = display
        hooks = [hook for hook in (self.metrics, self.eval, self.checkpoints) if hook is not None]
        for hook in hooks:
            hook.begin(self.learner.env_steps)
        with StopSignal() as stop:
            reason = train(self.learner, self.pool, [*hooks, stop], self.config.total_steps)
            self.checkpoints.write(self.learner)
        return reason

    def evaluate(self, episodes: int | None = None) -> Evaluation:
        """Play evaluation episodes with the present weights."""
        episodes = episodes or self.config.eval.episodes
        if self._eval_vectorizer is None or self._eval_vectorizer.num_envs != min(episodes, MAX_PARALLEL):
            self._close_eval()
            self._eval_vectorizer = build.make_eval_vectorizer(
                self.config.env, seed=self.config.seed, episodes=episodes
            )
        return evaluate(
            self.policy,
            self._eval_vectorizer,
            episodes,
            noise_key=stream_key(self.config.seed, "eval", "noise"),
            deterministic=self.config.eval.deterministic,
        )

    def save(self, path: Path) -> None:
        """Write everything that training depends on into a checkpoint folder."""
        checkpoint.save(
            path,
            env_steps=self.learner.env_steps,
            config=to_plain(self.config),
            policy=self.policy.state_dict(),
            training={
                "learner": self.learner.state_dict(),
                "pool": self.pool.state_dict(),
                "metrics": self.metrics.state_dict(),
                "eval": None if self.eval is None else self.eval.state_dict(),
            },
        )

    def restore(self, saved: checkpoint.Checkpoint, *, replay: bool = True) -> None:
        """Go back to where a checkpoint of this run was taken: metrics are cut there, later checkpoints dropped.

        Args:
            saved: the checkpoint.
            replay: re-step unfinished episodes (exact), or begin new ones.

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
            if self.eval is not None and training["eval"] is not None:
                self.eval.load_state_dict(training["eval"])
            self.pool.load_state_dict(training["pool"], replay=replay)
            self.metrics.load_state_dict(training["metrics"])  # last: it cuts metrics.jsonl
        # whatever wrong types and shapes lead to; damage ends here, before a step is trained on it
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"checkpoint={saved.path}: its training state does not fit ({type(error).__name__}: {error}); "
                "take another checkpoint"
            ) from None
        self.checkpoints.rewind(self.learner.env_steps)

    def close(self) -> None:
        """End envs, workers and sinks."""
        self.pool.close()
        self._close_eval()
        self.sinks.close()

    def _close_eval(self) -> None:
        if self._eval_vectorizer is not None:
            self._eval_vectorizer.close()
            self._eval_vectorizer = None


def train_run(config: TrainConfig, run_dir: Path, argv: Sequence[str]) -> float | None:
    """Train in a new run folder; `parl train`'s job.

    Args:
        config: from `build.validate`.
        run_dir: the folder to make.
        argv: what the user typed.

    Returns:
        Mean return of the last 100 training episodes; None if none has finished.
    """
    run = RunDir.create(run_dir, to_plain(config), argv)
    try:
        experiment = _started(config, run)
    except ConfigError:
        run.discard()
        raise
    with experiment:
        return _run(experiment)


def resume_run(command: ResumeCommand) -> float | None:
    """Go on with a run from a checkpoint of it; `parl resume`'s job.

    Returns:
        As `train_run`.

    Raises:
        ConfigError: no such run, or it is finished and no more steps are asked for.
    """
    run = RunDir.open(command.run)
    saved = None
    if command.step is not None:
        saved = checkpoint.load(run.checkpoints / str(command.step))
    elif checkpoint.numbered(run.checkpoints):
        saved = checkpoint.load(checkpoint.last(run.path))
    values = run.config() if saved is None else saved.config
    plugins.require(values, command.plugins, _typed("resume", command))
    changes = {"total_steps": command.total_steps, "device": command.device}
    values |= {name: value for name, value in changes.items() if value is not None}
    if saved is None:
        config = build.validate(values)
    else:
        # what it was warmed up with has done its work, and may be gone
        init_from = _check_fits(saved, values).init_from
        config = dataclasses.replace(build.validate({**values, "init_from": None}), init_from=init_from)
    done = 0 if saved is None else saved.env_steps
    if done >= config.total_steps:
        raise ConfigError(
            f"run={command.run}: finished, {done:,} of {config.total_steps:,} steps are done; "
            f"add total_steps={2 * config.total_steps} to train on"
        )
    run.check_writable()
    if saved is None:  # killed before its first checkpoint: it begins again
        run.metrics.unlink(missing_ok=True)
        with _started(config, run) as experiment:
            return _run(experiment)
    with Experiment(config, run) as experiment:
        experiment.restore(saved, replay=(command.checkpoint.env or config.checkpoint.env) == "replay")
        earlier = run.info().get("resumed_at")
        run.set_status("running", resumed_at=[*(earlier if isinstance(earlier, list) else []), done])
        return _run(experiment)


def evaluate_run(command: EvalCommand) -> dict[str, Any]:
    """Play a checkpoint's policy and write eval.json; `parl eval`'s job.

    Returns:
        What eval.json holds.
    """
    saved = checkpoint.load(checkpoint.find(command.checkpoint))
    plugins.require(saved.config, command.plugins, _typed("eval", command))
    config = dataclasses.replace(_check_fits(saved, saved.config), device=command.device)
    policy = build.make_policy(env_spec(config.env), config)
    checkpoint.load_weights(policy, saved.policy, saved.path)
    policy = policy.to(build.policy_device(config))
    seed = config.seed if command.seed is None else command.seed
    watching = command.render is not None or command.video
    vectorizer = build.make_eval_vectorizer(
        config.env,
        seed=seed,
        episodes=command.episodes,
        num_envs=1 if watching else command.num_envs,
        render_mode="rgb_array" if command.video else command.render,
    )
    with ExitStack() as stack:
        stack.callback(vectorizer.close)
        folder = stack.enter_context(_eval_folder(command, saved.path))
        video = stack.enter_context(VideoRecorder(vectorizer, folder / "video.mp4")) if command.video else None
        result = evaluate(
            policy,
            vectorizer,
            command.episodes,
            noise_key=stream_key(seed, "eval", "noise"),
            deterministic=command.deterministic,
            on_step=None if video is None else video.capture,
        )
        report = result.summary() | {
            "checkpoint": str(saved.path),
            "env_steps": saved.env_steps,
            "env": config.env.id or config.env.name,
            "deterministic": command.deterministic,
            "seed": seed,
            "returns": result.returns.tolist(),
            "lengths": result.lengths.tolist(),
        }
        (folder / "eval.json").write_text(json.dumps(report, indent=1) + "\n")
    low, high = report["ci95"]
    shown = {
        "return": f"{report['mean_return']:.1f} ± {report['std_return']:.1f}",
        "95 % interval": f"{low:.1f} to {high:.1f}",
        "length": f"{report['mean_length']:.1f} steps",
        "episodes": f"{command.episodes}, {'deterministic' if command.deterministic else 'sampled'}",
        "checkpoint": f"{_short(saved.path)} ({saved.env_steps:,} steps)",
        "written to": _short(folder),
    }
    console.print_result(shown, title=f"{config.algo.name} on {config.env.name}")
    return report


def _typed(name: str, command: EvalCommand | ResumeCommand) -> str:
    """A command as the user typed it, without its plug-ins: every key that has not its default."""
    words = ["parl", name]
    for field in dataclasses.fields(command):
        key, value = field.name, getattr(command, field.name)
        if key == "plugins" or value == field.default:
            continue
        if isinstance(value, ResumeCheckpointConfig):
            key, value = f"{key}.env", value.env
        words.append(shlex.quote(f"{key}={str(value).lower() if isinstance(value, bool) else value}"))
    return " ".join(words)


def _started(config: TrainConfig, run: RunDir) -> Experiment:
    """An experiment at step 0, with a checkpoint: a run that is killed at any moment can be resumed."""
    with ExitStack() as stack:
        try:
            experiment = stack.enter_context(Experiment(config, run))
            if config.init_from is not None:
                warm = checkpoint.load(checkpoint.find(config.init_from))
                checkpoint.load_weights(experiment.policy, warm.policy, warm.path)
            experiment.checkpoints.write(experiment.learner)
        except OSError as error:
            raise unwritable(run.path, error) from None
        stack.pop_all()
    run.link_latest()
    return experiment


def _run(experiment: Experiment) -> float | None:
    """Train with a display, say how it ended, and leave the run folder complete."""
    config, run, learner = experiment.config, experiment.run, experiment.learner
    rollout_steps = config.algo.num_steps * config.num_envs
    updates = -(-config.total_steps // rollout_steps)
    console.print_start(_essentials(experiment, updates), title=f"{config.algo.name} on {config.env.name}")
    history = list(read_jsonl(run.metrics))
    progress = make_progress(updates * rollout_steps, config.name, live=config.logger.live, history=history)
    try:
        with progress:
            reason = experiment.train(progress.update)
    except NonFiniteError as error:
        path = run.path / "nonfinite.safetensors"
        checkpoint.save_rollout(path, error.rollout)
        run.set_status("failed", error=str(error))
        raise type(error)(f"{error}; the rollout is in {path}", error.rollout) from None
    except BaseException as error:
        with suppress(OSError):  # on a full disk this fails too; the first error is the news
            run.set_status("failed", error=f"{type(error).__name__}: {error}")
        if isinstance(error, OSError):
            raise ParlError(
                f"{run.path}: cannot be written ({error.strerror or error}); make room, then parl resume "
                f"run={_short(run.path)}"
            ) from error
        raise
    final_return = experiment.metrics.window.metrics().get("episode/return_mean")
    interrupted = reason.startswith("interrupted")
    run.set_status(
        "interrupted" if interrupted else "finished",
        reason=reason,
        env_steps=learner.env_steps,
        wall_s=experiment.metrics.time_s,
        return_mean=final_return,
        best_eval=None if experiment.eval is None else experiment.eval.best,
    )
    experiment.sinks.flush()
    if config.logger.plot:
        plot_learning_curve(run.metrics, run.learning_curve)
    place = _short(run.path)
    with_plugins = f" 'plugins=[{','.join(config.plugins)}]'" if config.plugins else ""
    commands = {"evaluate": f"parl eval checkpoint={place}{with_plugins}"}
    if interrupted:
        commands["go on"] = f"parl resume run={place}{with_plugins}"
    title = {"budget": "finished"}.get(reason, reason)
    console.print_result(progress.tracker.summary() | {"run folder": place}, title=title, commands=commands)
    if interrupted:
        # whoever waits for this process must know: 130 for Ctrl-C, 143 for SIGTERM; the rest of a sweep is not run
        raise SystemExit(128 + signal.Signals[reason.removeprefix("interrupted: ")])
    return final_return


def _essentials(experiment: Experiment, updates: int) -> dict[str, object]:
    config, algo = experiment.config, experiment.config.algo
    rows = algo.num_steps * config.num_envs
    workers = getattr(config.vectorizer, "num_workers", None)
    vectorizer = config.vectorizer.name if workers is None else f"{config.vectorizer.name}, {workers} workers"
    essentials: dict[str, object] = {
        "env": f"{config.env.id or config.env.name} × {config.num_envs} ({vectorizer})",
        "rollout": f"{algo.num_steps} steps × {config.num_envs} envs = {rows:,}",
    }
    if hasattr(algo, "num_minibatches"):
        size = rows // algo.num_minibatches
        essentials["learning"] = f"{algo.num_epochs} epochs × {algo.num_minibatches} minibatches of {size:,}"
    return essentials | {
        "budget": f"{config.total_steps:,} steps = {updates:,} updates ({updates * rows:,} steps)",
        "device": f"{experiment.learner.device}, {config.num_threads} threads",
        "seed": str(config.seed),
        "run folder": _short(experiment.run.path),
    }


def _check_fits(saved: checkpoint.Checkpoint, values: Mapping[str, Any]) -> TrainConfig:
    """A checkpoint's config, typed, once its weights are known to be those of the network that it describes.

    The network is only outlined for that: a file could ask for one larger than the memory.
    """
    try:
        config = parse_train(values)
        spec = env_spec(config.env)
        with torch.device("meta"):
            outline = build.make_policy(spec, config)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint={saved.path}: its config does not fit: {error}") from None
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint={saved.path}: its config describes no network: {error}") from None
    checkpoint.check_weights(outline, saved.policy, saved.path)
    return config


@contextmanager
def _eval_folder(command: EvalCommand, saved: Path) -> Iterator[Path]:
    """Where eval.json goes; made before anything is played, and gone again if that comes to nothing."""
    if command.output is not None:
        folder = Path(command.output)
    else:
        run = saved.parent.parent if saved.parent.name == "checkpoints" else saved
        folder = _untaken(run / "eval" / time.strftime("%Y-%m-%d_%H-%M-%S"))
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except BaseException as error:
        for place in new:
            if place == folder:
                shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):
                place.rmdir()
        if isinstance(error, OSError):
            raise ConfigError(
                f"cannot write to {folder} ({error.strerror or error}); name another folder with output=FOLDER"
            ) from None
        raise


def _untaken(folder: Path) -> Path:
    """The folder, or with `-2`, `-3` … the first like it that is not there."""
    names = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))
    return next(place for place in itertools.chain([folder], names) if not place.exists())


def _short(path: Path) -> str:
    """A path as the user would type it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
