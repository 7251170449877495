"""A search: Optuna proposes values, the scheduler trains them, the ledger remembers.

The ledger and the trials' metrics are the truth. The study is made from them anew whenever the search goes on, so a
search that was killed at any moment continues, and nothing that a file says is ever unpickled. study.journal, beside
sweep.json, is Optuna's copy, for its own tools (`optuna-dashboard study.journal`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from parl_cli import plugins
from parl_cli.errors import ConfigError, ParlError, suggest
from parl_cli.metrics.catalog import CATALOG, lookup
from parl_cli.sweeps.ledger import Job, Ledger, State
from parl_cli.sweeps.objectives import reports, values_of
from parl_cli.sweeps.options import SearchConfig
from parl_cli.sweeps.scheduler import Plan
from parl_cli.sweeps.space import Dimension, override, parse_space, with_value

if TYPE_CHECKING:
    import optuna

STUDY = "study.journal"

_OPTUNA_STATES = {State.DONE: "COMPLETE", State.PRUNED: "PRUNED", State.FAILED: "FAIL"}


class Search(Plan):
    """Proposes trials until there are enough, prunes those that fall behind, and knows the best.

    Args:
        ledger: of the search, perhaps with trials.

    Raises:
        ConfigError: Optuna is missing, or the options do not fit each other or the config.
    """

    def __init__(self, ledger: Ledger) -> None:
        assert isinstance(ledger.options, SearchConfig)
        self.optuna = import_optuna(ledger.options)
        self.ledger = ledger
        self.options = ledger.options
        check_options(self.options)
        self.space = parse_space(self.options.space, ledger.base["config"])
        self._reported: dict[int, int] = {}  # by trial, the last of its reports
        self.study = self._make_study()

    def more(self) -> Job | None:
        """The next trial; one whose values do not fit together has failed at once."""
        while len(self.ledger.jobs) < self.options.num_trials:
            trial = self.study.ask({key: dimension.distribution() for key, dimension in self.space.items()})
            job = self._add(trial.params)
            if job.state == State.WAITING:
                return job
            self.ended(job)
        return None

    def behind(self, job: Job, env_steps: int) -> str:
        """Report how far a trial is, and ask the pruner."""
        if self.options.pruner == "none":
            return ""
        if env_steps * self.options.num_reports // job.total_steps <= self._reported.get(job.number, 0):
            return ""
        trial = self.optuna.Trial(self.study, self.study.trials[job.number]._trial_id)
        for number, value in self._reports(job).items():
            if number <= self._reported.get(job.number, 0):
                continue
            self._reported[job.number] = number
            trial.report(value, number)
            share = number / self.options.num_reports
            if share < 1 and trial.should_prune():  # one that is done has nothing to save
                return f"behind the others after {share:.0%}: {self.options.objectives[0]} {value:.4g}"
        return ""

    def ended(self, job: Job) -> None:
        """Tell the study what the trial came to."""
        self._rate(job)
        self.ledger.save()
        state = self.optuna.trial.TrialState[_OPTUNA_STATES[job.state]]
        self.study.tell(job.number, job.result.get("values"), state=state)

    def best(self) -> list[Job]:
        """The best trial; with several objectives, all that no other beats in each of them.

        Raises:
            ParlError: no trial came to an end.
        """
        if not self.ledger.of_state(State.DONE):
            raise ParlError(f"none of {len(self.ledger.jobs)} trials came to an end; see {self.ledger.path}")
        trials = [self.study.best_trial] if len(self.options.objectives) == 1 else self.study.best_trials
        return [self.ledger.jobs[trial.number] for trial in trials]

    def values(self, job: Job) -> dict[str, Any]:
        """What a trial was trained with, by key."""
        return {key: dimension.value(job.params[key]) for key, dimension in self.space.items()}

    def importances(self) -> Mapping[str, float]:
        """How much each key moved the first objective, summing to 1; nothing where there are too few trials."""
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        if len(self.ledger.of_state(State.DONE)) < 4 or len(self.space) < 2:
            return {}
        sign = -1 if self.options.objectives[0].direction == "maximize" else 1
        several = len(self.options.objectives) > 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it looks for what makes the target low: that is what the sign is for
            return get_param_importances(
                self.study,
                evaluator=PedAnovaImportanceEvaluator(),  # the one that needs no further package
                target=(lambda trial: sign * trial.values[0]) if several else None,
            )

    def _add(self, params: Mapping[str, Any]) -> Job:
        """A trial's job; failed at once, with the reason, where its values do not fit together."""
        values = {key: dimension.value(params[key]) for key, dimension in self.space.items()}
        config = self.ledger.base["config"]
        for key, value in values.items():
            config = with_value(config, key, value)
        overrides = [*self.ledger.base["overrides"], *(override(key, value) for key, value in values.items())]
        job = self.ledger.add(overrides, config, str(len(self.ledger.jobs)), ["parl", "train", *overrides], params)
        try:
            validate(config)
        except ConfigError as error:
            job.state, job.reason = State.FAILED, " ".join(str(error).split())
        self.ledger.save()
        return job

    def _rate(self, job: Job) -> None:
        """Put a done trial's values beside its result; without them it has failed after all."""
        if job.state != State.DONE or "values" in job.result:
            return
        values = values_of(self.ledger.folder(job) / "metrics.jsonl", self.options.objectives)
        for objective, value in zip(self.options.objectives, values, strict=True):
            if value is None:
                job.state, job.reason = State.FAILED, f"its metrics have no {objective.metric}"
                return
        job.result["values"] = values

    def _reports(self, job: Job) -> dict[int, float]:
        file = self.ledger.folder(job) / "metrics.jsonl"
        return reports(file, self.options.objectives[0], job.total_steps, self.options.num_reports)

    def _make_study(self) -> optuna.Study:
        """A study that knows the ledger's trials."""
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        file = self.ledger.path / STUDY
        for stale in (file, file.with_name(f"{STUDY}.lock")):
            stale.unlink(missing_ok=True)
        for job in self.ledger.jobs:
            self._rate(job)  # it may have ended while nobody looked
        trials = [self._frozen(job) for job in self.ledger.jobs]
        study = self.optuna.create_study(
            # a lock that is a file: the default is a link, and a kill may leave it in a folder that refuses links
            storage=JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file)))),
            study_name=self.ledger.path.name,
            directions=[objective.direction for objective in self.options.objectives],
            sampler=self._sampler([trial for trial in trials if trial.state.name == "COMPLETE"]),
            pruner=self._pruner(),
        )
        study.add_trials(trials)
        return study

    def _frozen(self, job: Job) -> optuna.trial.FrozenTrial:
        """A ledger's trial as Optuna keeps it."""
        found = self._reports(job) if self.options.pruner != "none" and job.state != State.FAILED else {}
        self._reported[job.number] = max(found, default=0)
        return self.optuna.trial.create_trial(
            state=self.optuna.trial.TrialState[_OPTUNA_STATES.get(job.state, "RUNNING")],
            params=job.params,
            distributions={key: dimension.distribution() for key, dimension in self.space.items()},
            values=job.result.get("values"),
            intermediate_values=found,
        )

    def _sampler(self, done: list[optuna.trial.FrozenTrial]) -> optuna.samplers.BaseSampler:
        samplers = self.optuna.samplers
        seed = self.options.seed + len(self.ledger.jobs)  # one that goes on must not propose its first values again
        if self.options.sampler == "random":
            return samplers.RandomSampler(seed)
        if self.options.sampler == "cmaes":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # source_trials may change one day; the tests will tell
                return samplers.CmaEsSampler(
                    seed=seed,
                    # its distribution starts from the best tenth of what is known, which must be one at least
                    source_trials=done if len(done) >= 10 else None,
                    warn_independent_sampling=False,
                )
        return samplers.TPESampler(seed=seed, constant_liar=True)  # trials that run count as bad: none is tried twice

    def _pruner(self) -> optuna.pruners.BasePruner:
        pruners, number = self.optuna.pruners, self.options.num_reports
        if self.options.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=math.ceil(number / 5))
        if self.options.pruner == "hyperband":
            return pruners.HyperbandPruner(min_resource=max(1, number // 9), max_resource=number)
        return pruners.NopPruner()


def check_space(options: SearchConfig, config: Mapping[str, Any]) -> dict[str, Dimension]:
    """The dimensions, once it is known that their ends are valid.

    Args:
        options: of the search.
        config: what is searched around; valid.

    Raises:
        ConfigError: naming the key and the value; an objective that no trial would ever measure.
    """
    for objective in options.objectives:
        if objective.metric.startswith("eval/") and config["eval"]["every_steps"] is None:
            raise ConfigError(
                f"sweep.objectives: {objective.metric} is measured by evaluations, and there are none; "
                "add eval.every_steps=10000"
            )
        may_log_others = config["plugins"] or plugins.installed()
        if not may_log_others and lookup(objective.metric) is None:
            hint = suggest(objective.metric, [metric.name for metric in CATALOG])
            raise ConfigError(f"sweep.objectives: no metric is called {objective.metric}; {hint}")
    space = parse_space(options.space, config)
    for key, dimension in space.items():
        for value in dimension.corners():
            try:
                validate(with_value(config, key, value))
            except ConfigError as error:
                raise ConfigError(f"sweep.space: {key}={options.space[key]}: {error}") from error
    return space


def check_options(options: SearchConfig) -> None:
    """Refuse options that exclude each other.

    Raises:
        ConfigError: naming them.
    """
    if not options.objectives:
        raise ConfigError("sweep.objectives=[]: nothing to optimise; leave it out, or give at least one")
    if options.cluster is not None and options.num_jobs is None:
        raise ConfigError(
            f"sweep.num_jobs=null: all {options.num_trials} trials at once in a cluster would learn nothing from each "
            "other; say how many, like sweep.num_jobs=4"
        )
    if len({str(objective) for objective in options.objectives}) < len(options.objectives):
        raise ConfigError("sweep.objectives: one of them stands there twice")
    if len(options.objectives) > 1 and options.pruner != "none":
        raise ConfigError(f"sweep.pruner={options.pruner}: needs a single objective; add sweep.pruner=none")
    if len(options.objectives) > 1 and options.sampler == "cmaes":
        raise ConfigError("sweep.sampler=cmaes: needs a single objective; choose sweep.sampler=tpe")


def import_optuna(options: SearchConfig) -> Any:
    """Optuna, silent but for warnings.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna

        if options.sampler == "cmaes":
            import cmaes  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"a search needs {error.name}; pip install 'parl-cli[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def validate(values: Mapping[str, Any]) -> None:
    """Check a whole config.

    Raises:
        ConfigError: it does not fit.
    """
    from parl_cli.build import validate as validate_values

    validate_values(values)
