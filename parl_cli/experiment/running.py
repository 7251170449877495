"""How an experiment runs: it makes the parts of a config, trains, evaluates, and ends them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from parl_cli import build
from parl_cli.config import TrainConfig
from parl_cli.envs.factory import TEST_ROLE, env_spec
from parl_cli.errors import ConfigError, EnvError
from parl_cli.experiment.keeping import RunKeeper, make_sinks
from parl_cli.functional.noise import stream_key
from parl_cli.training import checkpoint
from parl_cli.training.evaluate import MAX_PARALLEL, Evaluation, EvaluationGroup, evaluate
from parl_cli.training.hooks import StopSignal
from parl_cli.training.loop import train
from parl_cli.training.run_dir import RunDir
from parl_cli.types import Hook, Metrics

PathLike = str | os.PathLike[str]

log = logging.getLogger(__name__)

DEFAULT = "default"  # the id of the policy, where there is only one; of several they are 0, 1, 2 …
PolicyId = int | str


class Runner:
    """An experiment without the ways to make one: `Experiment` has them, and says what the arguments are."""

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
        self.stopped_by: signal.Signals | None = None
        self._budget = 0  # env steps that were asked for
        self._eval_vectorizers: dict[tuple[int, int], Any] = {}  # by role and number of envs
        self._hold = ExitStack()  # of the run folder
        with ExitStack() as undo:
            undo.callback(self._hold.close)
            if run is not None:
                self._hold.enter_context(run.held())
            self.sinks = make_sinks(config, run)
            undo.callback(self.sinks.close)
            self.pool = build.make_pool(config, self.policy, self.spec)
            undo.pop_all()
        self.keeper = RunKeeper(config, run, self.sinks, self.learner, self.pool, self._play)
        self.metrics, self.eval = self.keeper.metrics, self.keeper.eval

    def __enter__(self) -> Self:
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
        reason = ""
        try:
            reason = self.train_until(self._budget)
        finally:
            if reason != "budget":
                self._budget = self.env_steps
        if self.stopped_by is not None:
            raise KeyboardInterrupt if self.stopped_by == signal.SIGINT else SystemExit(128 + self.stopped_by)
        return reason

    def train_until(self, total_steps: int, display: Callable[[Metrics], None] | None = None) -> str:
        """Train up to a number of env steps, counted from the beginning; leaves a run folder complete.

        Args:
            total_steps: rounded up to whole updates.
            display: shows each metrics row to a person, from here on; None: as before.

        Returns:
            As `train`; Ctrl-C and SIGTERM end it after the update and are a reason, `interrupted: SIGINT`, and
            `stopped_by`.
        """
        keeper = self.keeper
        try:
            with keeper.failures_recorded(), StopSignal() as stop:
                keeper.begin(display)
                hooks = [*keeper.hooks, *self.hooks, stop]
                reason, self.stopped_by = train(self.learner, self.pool, hooks, total_steps)
                keeper.end()
        finally:
            self.metrics.end()
        keeper.complete(reason, self.stopped_by)
        self.stopped_by = self.stopped_by or stop.received  # also one that came while the last checkpoint was written
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
        self.keeper.weights_were_set()

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
        self.keeper.save(folder)
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
        self.keeper.restore(saved, replay=replay, own_folder=own_folder)
        self._budget = self.env_steps

    def close(self) -> None:
        """End envs, workers and sinks: all, whatever one of them raises. May be called again."""
        with ExitStack() as stack:  # from the last one up
            stack.callback(self._hold.close)
            stack.callback(self.sinks.close)
            while self._eval_vectorizers:
                stack.callback(self._eval_vectorizers.popitem()[1].close)
            stack.callback(self.pool.close)

    def _play(self, episodes: int, role: int) -> Evaluation:
        key = role, min(episodes, MAX_PARALLEL)
        limit = self.config.eval.max_episode_steps
        if key not in self._eval_vectorizers:
            self._eval_vectorizers[key] = build.make_eval_vectorizer(
                self.config.env, seed=self.config.seed, episodes=episodes, role=role, max_episode_steps=limit
            )
        try:
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
        except EnvError as error:  # its numbers and seeds are not those of training
            raise EnvError(f"evaluation: {error}") from None
        return each[0] if len(each) == 1 else EvaluationGroup.of(each)
