"""The jobs of the command line, train, resume, evaluate and bench: what does the work, with words for a person."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from parl_cli import build, plugins, registry
from parl_cli.bench.candidates import winning_command
from parl_cli.bench.measure import Bench
from parl_cli.config import BenchCommand, EvalCommand, ResumeCheckpointConfig, ResumeCommand, TrainConfig, to_plain
from parl_cli.envs.factory import TEST_ROLE, check_rendering, env_spec
from parl_cli.errors import CheckpointError, ConfigError, WriteError, writing
from parl_cli.experiment import Experiment
from parl_cli.experiment.making import changed, config_to_go_on
from parl_cli.functional.noise import stream_key
from parl_cli.metrics import console
from parl_cli.metrics.jsonl import read_jsonl
from parl_cli.metrics.progress import make_progress
from parl_cli.per_policy import parts
from parl_cli.reports.bench import BenchProgress, print_report, reason
from parl_cli.reports.bench_chart import plot_bench
from parl_cli.training import checkpoint
from parl_cli.training.evaluate import EvaluationGroup, evaluate
from parl_cli.training.run_dir import RunDir
from parl_cli.training.video import VideoRecorder

log = logging.getLogger(__name__)


def train_run(config: TrainConfig, run_dir: Path, argv: Sequence[str], preset: str | None = None) -> float | None:
    """Train in a new run folder; `parl train`'s job.

    Args:
        config: from `build.validate`.
        run_dir: the folder to make.
        argv: what the user typed.
        preset: where the hyper-parameters come from, to be shown.

    Returns:
        Mean return of the last 100 training episodes; None if none has finished.
    """
    with Experiment.start(config, run_dir, argv) as experiment:
        return _run(experiment, preset)


def resume_run(command: ResumeCommand) -> float | None:
    """Go on with a run from a checkpoint of it; `parl resume`'s job.

    Returns:
        As `train_run`.

    Raises:
        ConfigError: no such run, another process is training it, or it is finished and no more steps are asked for.
    """
    run = RunDir.open(command.run)
    with run.held():
        return _resume(run, command)


def _resume(run: RunDir, command: ResumeCommand) -> float | None:
    checkpoint.tidy(run.checkpoints)  # a save that was cut off may have put the last one aside
    saved = None
    if command.step is not None:
        saved = checkpoint.load(run.checkpoints / str(command.step))
    elif checkpoint.numbered(run.checkpoints):
        saved = checkpoint.load(checkpoint.last(run.path))
    elif run.metrics.is_file() and run.metrics.stat().st_size:
        # whatever was killed before its first checkpoint has no rows
        raise CheckpointError(
            f"run={command.run}: has rows of metrics, but no checkpoint to go on from; bring one back to "
            f"{run.checkpoints}, or begin a new run from weights that are left, with init_from=CHECKPOINT"
        )
    values = _own_config(run, saved)
    budget = values.get("total_steps")
    values = changed(values, total_steps=command.total_steps, device=command.device)
    config = config_to_go_on(values, saved, command.plugins, _typed("resume", command))
    done = 0 if saved is None else saved.env_steps
    # killed or stopped between its last update and saying that it is finished: there is that left to do
    is_less = isinstance(budget, int) and config.total_steps < budget
    is_left = run.info().get("status") in ("running", "interrupted") and not is_less
    if done >= config.total_steps and not is_left:
        raise ConfigError(
            f"run={command.run}: finished, {done:,} of {config.total_steps:,} steps are done; "
            f"add total_steps={2 * max(done, config.total_steps)} to train on"
        )
    run.check_writable()
    if saved is None:  # killed before its first checkpoint: it begins again
        run.set_config(to_plain(config))
        with Experiment.restart(config, run) as experiment:
            return _run(experiment)
    with Experiment(config, run) as experiment:
        experiment.restore(saved, replay=(command.checkpoint.env or config.checkpoint.env) == "replay")
        run.set_config(to_plain(config))
        earlier = run.info().get("resumed_at")
        run.set_status("running", resumed_at=[*(earlier if isinstance(earlier, list) else []), done])
        return _run(experiment)


def _own_config(run: RunDir, saved: checkpoint.Checkpoint | None) -> dict[str, Any]:
    """The config that a run has by now: its checkpoint's, with the budget of config.yaml.

    A resume with `total_steps` writes that into config.yaml as it begins; killed before its next checkpoint, the last
    one still has the old budget.
    """
    try:
        own = run.config()
    except CheckpointError as error:
        if saved is None:
            raise CheckpointError(f"run={run.path}: has no checkpoint to resume from, and {error}") from None
        log.warning("%s; total_steps is the checkpoint's, %s", error, saved.config.get("total_steps"))
        return saved.config
    return own if saved is None else changed(saved.config, total_steps=own.get("total_steps"))


def evaluate_run(command: EvalCommand) -> dict[str, Any]:
    """Play a checkpoint's policy and write eval.json; `parl eval`'s job.

    Returns:
        What eval.json holds.
    """
    saved = checkpoint.load(checkpoint.find(command.checkpoint))
    plugins.require(saved.config, command.plugins, _typed("eval", command))
    config = dataclasses.replace(build.check_fits(saved, saved.config), device=command.device)
    policies = _policies_to_play(command, config, saved)
    seed = config.seed if command.seed is None else command.seed
    watching = command.render is not None or command.video
    if command.render is not None and command.video:
        raise ConfigError(f"render={command.render} video=true: an env draws for one of them; leave one out")
    if watching and command.num_envs not in (None, 1):
        raise ConfigError(f"num_envs={command.num_envs}: with render or video one env is watched; leave it out")
    if watching:
        check_rendering(config.env)
    vectorizer = build.make_eval_vectorizer(
        config.env,
        seed=seed,
        episodes=command.episodes,
        role=TEST_ROLE,
        num_envs=1 if watching else command.num_envs,
        max_episode_steps=command.max_episode_steps,
        render_mode="rgb_array" if command.video else command.render,
    )
    with ExitStack() as stack:
        stack.callback(vectorizer.close)
        folder = stack.enter_context(_eval_folder(command, saved.path))
        video = stack.enter_context(VideoRecorder(vectorizer, folder / "video.mp4")) if command.video else None
        each = [
            evaluate(
                policy,
                vectorizer,
                command.episodes,
                noise_key=stream_key(seed, "eval", "noise"),
                deterministic=command.deterministic,
                on_step=None if video is None else video.capture,
            )
            for policy in policies
        ]
        result = each[0] if len(each) == 1 else EvaluationGroup.of(each)
        report = result.summary() | {
            "checkpoint": str(saved.path),
            "policy_id": command.policy_id,
            "env_steps": saved.env_steps,
            "env": config.env.id or config.env.name,
            "deterministic": command.deterministic,
            "seed": seed,
            "returns": result.returns.tolist(),
            "lengths": result.lengths.tolist(),
        }
        _write_json(folder / "eval.json", report)
    low, high = report["ci95"]
    shown = {
        "return": f"{report['mean_return']:.1f} ± {report['std_return']:.1f}",
        "95 % interval": f"{low:.1f} to {high:.1f}",
        "length": f"{report['mean_length']:.1f} steps",
        **_each_policy(command, report),
        "episodes": f"{report['episodes']}, {'deterministic' if command.deterministic else 'sampled'}",
        "checkpoint": f"{console.short_path(saved.path)} ({saved.env_steps:,} steps)",
        "written to": console.short_path(folder),
    }
    console.print_result(shown, title=f"{config.algo.name} on {config.env.name}")
    return report


def _policies_to_play(command: EvalCommand, config: TrainConfig, saved: checkpoint.Checkpoint) -> list[Any]:
    """The networks of a checkpoint that `parl eval` is asked for, with their weights.

    Raises:
        ConfigError: no such policy; several of them where only one can be watched.
    """
    own, number = parts(config), config.num_policies
    if command.policy_id is not None:
        if command.policy_id >= number:
            last = f"has policies 0 to {number - 1}" if number > 1 else "has only policy 0"
            raise ConfigError(f"policy_id={command.policy_id}: the checkpoint {last}")
        own = [own[command.policy_id]]
    if len(own) > 1 and (command.video or command.render is not None):
        key = "video=true" if command.video else f"render={command.render}"
        raise ConfigError(f"{key}: shows one policy, and the checkpoint has {number}; add policy_id=0")
    policies, spec, device = [], env_spec(config.env), build.policy_device(config)
    for part in own:
        policy = build.make_policy(spec, part.config, part.policy_id)
        checkpoint.load_weights(policy, saved.weights_of(part.policy_id, number), saved.path)
        policies.append(policy.to(device))
    return policies


def _each_policy(command: EvalCommand, report: dict[str, Any]) -> dict[str, str]:
    """What there is to say of policies, where there are several."""
    if command.policy_id is not None:
        return {"policy": str(command.policy_id)}
    each = report.get("policies", {})
    return {f"policy {i}": f"{one['mean_return']:.1f} ± {one['std_return']:.1f}" for i, one in each.items()}


def bench_job(config: TrainConfig, command: BenchCommand, overrides: Sequence[str]) -> dict[str, Any]:
    """Measure a job, and write bench.json and bench.png; `parl bench`'s work.

    Args:
        config: from `build.validate`.
        command: the keys that are `parl bench`'s own.
        overrides: what the user typed.

    Returns:
        What bench.json holds.
    """
    folder = _untaken(Path("outputs/bench") / _now()) if command.output is None else Path(command.output)
    with _results_folder(folder):
        with BenchProgress() as progress:
            report = Bench(config, command, progress).run()
        train = winning_command(report.winner.candidate, config, overrides)
        data = {"argv": ["parl", "bench", *overrides]} | report.to_plain() | {"command": train}
        data["reason"] = reason(data)
        _write_json(folder / "bench.json", data)
        with writing(folder / "bench.png"):
            plot_bench(data, folder / "bench.png")
    print_report(data, console.short_path(folder), train)
    return data


def _typed(name: str, command: EvalCommand | ResumeCommand) -> Callable[[str], str]:
    """From plug-ins to the command as the user typed it, every key that has not its default, and with them."""
    words = ["parl", name]
    for field in dataclasses.fields(command):
        key, value = field.name, getattr(command, field.name)
        if key == "plugins" or value == field.default:
            continue
        if isinstance(value, ResumeCheckpointConfig):
            key, value = f"{key}.env", value.env
        words.append(shlex.quote(f"{key}={str(value).lower() if isinstance(value, bool) else value}"))
    return lambda modules: " ".join([*words, f"'plugins=[{modules}]'"])


def _run(experiment: Experiment, preset: str | None = None) -> float | None:
    """Train with a display, and say how it ended."""
    config, run = experiment.config, experiment.run
    assert run is not None
    rollout_steps = config.algo.num_steps * config.num_envs // config.num_policies
    updates = -(-config.total_steps // rollout_steps)
    essentials = ({} if preset is None else {"tuned": preset}) | _essentials(experiment, run, updates)
    console.print_start(essentials, title=f"{config.algo.name} on {config.env.name}")
    history = list(read_jsonl(run.metrics))
    progress = make_progress(updates * rollout_steps, config.name, live=config.logger.live, history=history)
    with progress:
        reason = experiment.train_until(config.total_steps, progress.update)
    place = console.short_path(run.path)
    commands = {"evaluate": console.command_line(["parl", "eval", f"checkpoint={place}"], config.plugins)}
    if experiment.stopped_by is not None and reason != "budget":
        commands["go on"] = console.command_line(["parl", "resume", f"run={place}"], config.plugins)
    title = {"budget": "finished"}.get(reason, reason)
    console.print_result(progress.tracker.summary() | {"run folder": place}, title=title, commands=commands)
    if experiment.stopped_by is not None:
        # whoever waits for this process must know: 130 for Ctrl-C, 143 for SIGTERM; the rest of a sweep is not run
        raise SystemExit(128 + experiment.stopped_by)
    return experiment.metrics.window.metrics().get("episode/return_mean")


def _essentials(experiment: Experiment, run: RunDir, updates: int) -> dict[str, object]:
    config, algo = experiment.config, experiment.config.algo
    num_envs = config.num_envs // config.num_policies
    rows = algo.num_steps * num_envs
    workers = getattr(config.vectorizer, "num_workers", None)
    vectorizer = config.vectorizer.name if workers is None else f"{config.vectorizer.name}, {workers} workers"
    essentials: dict[str, object] = {
        "env": f"{config.env.id or config.env.name} × {config.num_envs} ({vectorizer})",
        "rollout": f"{algo.num_steps} steps × {num_envs} envs = {rows:,}",
    }
    if config.num_policies > 1:
        essentials["policies"] = f"{config.num_policies}, with envs of their own; what is counted here is of each"
    if hasattr(algo, "num_minibatches"):
        size = rows // algo.num_minibatches
        epochs = getattr(algo, "num_epochs", 1)
        essentials["learning"] = f"{epochs} epochs × {algo.num_minibatches} minibatches of {size:,}"
    actors = config.actors
    if hasattr(actors, "num_actors"):
        essentials["actors"] = (
            f"{actors.num_actors} ({actors.name}) × {config.num_envs // actors.num_actors} envs, at most "
            f"{actors.max_policy_lag} updates behind"
        )
    steps_envs = registry.load("vectorizer", config.vectorizer.name)
    for key, part in (("actors", experiment.pool), ("vectorizer", steps_envs)):
        if not getattr(part, "replayable", True):
            essentials["on resume"] = f"envs begin new episodes: {key}={getattr(config, key).name} cannot re-step any"
            break
    at_least = "at least " if getattr(steps_envs, "has_filler", False) else ""
    return essentials | {
        "budget": f"{config.total_steps:,} steps = {at_least}{updates:,} updates ({updates * rows:,} steps)",
        "device": f"{experiment.learner.device}, {config.num_threads} threads",
        "seed": str(config.seed),
        "run folder": console.short_path(run.path),
    }


def _eval_folder(command: EvalCommand, saved: Path) -> AbstractContextManager[Path]:
    """Where eval.json goes."""
    if command.output is not None:
        return _results_folder(Path(command.output))
    run = saved.parent.parent if saved.parent.name == "checkpoints" else saved
    return _results_folder(_untaken(run / "eval" / _now()))


@contextmanager
def _results_folder(folder: Path) -> Iterator[Path]:
    """A folder for results; made before there are any, and gone again if it comes to nothing.

    Raises:
        ConfigError: it cannot be made, or what the block wrote with `errors.writing` cannot be written.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except BaseException as error:
        for place in new:
            if place == folder:
                shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):
                place.rmdir()
        if isinstance(error, WriteError):
            raise ConfigError(
                f"cannot write to {error.path} ({error.why}); name another folder with output=FOLDER"
            ) from None
        raise


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with writing(path):
        path.write_text(json.dumps(data, indent=1) + "\n")


def _now() -> str:
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def _untaken(folder: Path) -> Path:
    """The folder, or with `-2`, `-3` … the first like it that is not there."""
    names = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))
    return next(place for place in itertools.chain([folder], names) if not place.exists())
