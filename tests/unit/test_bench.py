import dataclasses
import shlex

import pytest

from parl_cli import bench
from parl_cli.bench import Bench, Candidate, Parts, Report, Result
from parl_cli.config import BenchCommand
from parl_cli.errors import ConfigError
from parl_cli.vectorizers.asynchronous import AsyncVectorizer
from parl_cli.vectorizers.serial import SerialVectorizer
from parl_cli.vectorizers.speed import Speed, StepCost
from parl_cli.vectorizers.subprocess import SubprocessVectorizer
from parl_cli.vectorizers.thread import ThreadVectorizer
from tests.helpers.stubs import train_config, weights_hash


def speed(*steps_per_s):
    return Speed(list(steps_per_s), [1e-6] * len(steps_per_s))


def candidate(vectorizer=None, **changes):
    return Candidate(train_config(vectorizer=vectorizer or SerialVectorizer.Config(), **changes))


def report(*results):
    step = StepCost(1e-4, 6e-6, 1.0)
    return Report(train_config(), BenchCommand(), step, 2e-5, True, {4: Parts(1e-6, 2e-6, 64)}, list(results), {}, 1.0)


# ---- what is compared ----


@pytest.mark.parametrize(
    ("most", "count", "numbers"),
    [
        (1, 4, [1]),
        (2, 4, [1, 2]),
        (4, 4, [1, 2, 3, 4]),
        (8, 4, [1, 2, 4, 8]),
        (64, 4, [1, 4, 16, 64]),
        (64, 7, [1, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_numbers_of_workers_go_from_one_to_all_cores(most, count, numbers):
    assert bench.spread(most, count) == numbers


def test_only_options_that_a_vectorizer_has_are_varied():
    assert bench.variants(SerialVectorizer.Config(), 2, 8, False) == [{}]
    assert bench.variants(ThreadVectorizer.Config(), 2, 8, False) == [{"num_workers": 1}, {"num_workers": 2}]
    groups = bench.variants(AsyncVectorizer.Config(), 2, 8, False)
    assert groups == [{"num_workers": w, "num_groups": g} for w in (1, 2) for g in bench.NUM_GROUPS]


def test_there_are_never_more_workers_than_envs():
    assert [each["num_workers"] for each in bench.variants(ThreadVectorizer.Config(), 64, 3, True)] == [1, 2, 3]


def test_the_config_s_own_vectorizer_keeps_its_options():
    config = train_config(vectorizer=SubprocessVectorizer.Config(num_workers=1, context="forkserver"), num_envs=8)
    command = BenchCommand(vectorizers=["serial", "subprocess", "thread"])
    found = list(Bench(config, command)._candidates(config))
    assert found[0].config.vectorizer == SerialVectorizer.Config()
    contexts = {each.config.vectorizer.context for each in found if each.name == "subprocess"}
    assert contexts == {"forkserver"}
    assert all(each.config.num_threads for each in found)  # resolved


def test_auto_is_not_compared_with_what_it_chooses_from():
    assert "auto" not in bench.chosen_names(BenchCommand())
    with pytest.raises(ConfigError, match=r"vectorizers=\[auto\]: no such vectorizer"):
        bench.chosen_names(BenchCommand(vectorizers=["auto"]))


def test_tuning_leaves_out_sizes_that_the_algorithm_refuses():
    config = train_config(num_envs=24)
    config = dataclasses.replace(config, algo=dataclasses.replace(config.algo, num_steps=2, num_minibatches=16))
    run = Bench(config, BenchCommand(tune=True))
    assert [sized.num_envs for sized in run._sizes()] == [16, 24, 32, 64, 128, 256]
    assert list(run.refused) == ["num_envs=8"]
    assert [sized.num_envs for sized in Bench(config, BenchCommand())._sizes()] == [24]


def test_a_candidate_is_named_by_what_is_varied():
    assert str(candidate()) == "serial"
    assert str(candidate(ThreadVectorizer.Config(num_workers=1))) == "thread, 1 worker"
    assert str(candidate(AsyncVectorizer.Config(num_workers=2, num_groups=4))) == "async, 2 workers, 4 groups"


# ---- who wins ----


def test_the_fastest_wins():
    results = [Result(candidate(), speed(1), speed(100, 90, 80)), Result(candidate(), speed(1), speed(120, 110, 99))]
    assert report(*results).winner is results[1]


@pytest.mark.parametrize(
    "faster",
    [
        speed(104, 104, 104, 104, 104),  # by too little
        speed(150, 150, 150, 90, 90),  # not always
        speed(50, 50, 50, 50, 50),
    ],
)
def test_what_is_not_clearly_faster_does_not_beat_what_is_simpler(faster):
    results = [Result(candidate(), speed(1), speed(100, 100, 100, 100, 100)), Result(candidate(), speed(1), faster)]
    assert report(*results).winner is results[0]


def test_what_was_not_measured_end_to_end_cannot_win():
    results = [Result(candidate(), speed(999)), Result(candidate(), speed(1), speed(100))]
    assert report(*results).winner is results[1]


def test_speeds_are_compared_round_by_round():
    # the machine slowed down to a tenth after the first two rounds
    simple, other = speed(100, 100, 10, 10, 10), speed(110, 110, 11, 11, 11)
    assert bench.beats(other, simple)
    assert not bench.beats(simple, other)


# ---- what is printed ----


@pytest.mark.parametrize(
    ("vectorizer", "typed", "words"),
    [
        (None, ["env=cartpole", "seconds=1", "output=a b", "tune=false"], "env=cartpole vectorizer=serial"),
        (
            SubprocessVectorizer.Config(num_workers=2),
            ["vectorizers=[serial,subprocess]", "vectorizer=thread", "vectorizer.num_workers=4", "seed=3"],
            "seed=3 vectorizer=subprocess vectorizer.num_workers=2",
        ),
        (
            AsyncVectorizer.Config(num_workers=2, num_groups=4),
            ["+tune=true"],
            "vectorizer=async vectorizer.num_workers=2 vectorizer.num_groups=4",
        ),
    ],
)
def test_the_command_is_the_job_with_what_won(vectorizer, typed, words):
    config = train_config(vectorizer=ThreadVectorizer.Config())
    assert bench.winning_command(candidate(vectorizer), config, typed) == f"parl train {words}"


def test_the_command_keeps_the_winner_s_own_options_and_names_another_number_of_envs():
    config = train_config(vectorizer=SubprocessVectorizer.Config(), num_envs=4)
    typed = ["num_envs=4", "vectorizer=subprocess", "vectorizer.context=forkserver", "env.kwargs={a: 1}"]
    won = candidate(SubprocessVectorizer.Config(num_workers=2, context="forkserver"), num_envs=64)
    assert shlex.split(bench.winning_command(won, config, typed)) == [
        *("parl", "train", "vectorizer.context=forkserver", "env.kwargs={a: 1}", "num_envs=64"),
        *("vectorizer=subprocess", "vectorizer.num_workers=2"),
    ]


def test_a_report_is_plain_values():
    shares = {"time/env_share": 0.25, "time/act_share": 0.75}
    first = Result(candidate(), speed(200_000.0), speed(50_000.0), shares)
    second = Result(candidate(ThreadVectorizer.Config(num_workers=2)), speed(100_000.0))
    data = report(first, second).to_plain()
    assert data["winner"] == data["vectorizers"][0]
    assert data["winner"]["end_to_end"]["us_per_step"] == pytest.approx(20)
    assert data["winner"]["end_to_end"]["shares"] == {"env": 0.25, "act": 0.75}
    assert data["vectorizers"][1]["end_to_end"] is None
    assert data["vectorizers"][1]["num_workers"] == 2
    assert data["parts"] == [{"num_envs": 4, "act_us": 1.0, "learn_us": 2.0, "update_steps": 64}]
    assert data["wake_up_us"] == pytest.approx(20)


# ---- measuring ----


def test_learning_is_measured_from_the_same_state_each_time(monkeypatch):
    config = train_config()
    seen = []
    original = bench.build.make_learner

    def watched(*args):
        learner = original(*args)
        step = learner.step

        def noting(rollouts):
            seen.append((learner.updates, weights_hash(learner.algo.policy)))
            return step(rollouts)

        learner.step = noting
        return learner

    monkeypatch.setattr(bench.build, "make_learner", watched)
    parts = bench.measure_parts(config, Bench(config, BenchCommand()).spec, 0.05)
    assert len(seen) > 2
    assert len(set(seen)) == 1
    assert parts.update_steps == config.num_envs * config.algo.num_steps
    assert 0 < parts.act_s < 0.1
    assert 0 < parts.learn_s < 0.1


def test_a_tuning_trains_only_the_most_promising(monkeypatch):
    monkeypatch.setattr(bench, "FINALISTS", 2)
    monkeypatch.setattr(bench, "TUNED_NUM_ENVS", (2, 8))
    monkeypatch.setattr(bench, "step_cost", lambda env_fn, seconds: StepCost(1e-4, 6e-6, 1.0))
    monkeypatch.setattr(bench, "wake_up_s", lambda: 1e-5)
    stages = []
    command = BenchCommand(seconds=0.01, tune=True, vectorizers=["serial", "thread"])
    found = Bench(train_config(), command, lambda stage, now: stages.append(stage)).run()
    sizes = [result.candidate.config.num_envs for result in found.results]
    assert sorted(set(sizes)) == [2, 4, 8]
    assert sum(bool(result.end_to_end.steps_per_s) for result in found.results) == 2
    assert "end to end, 2 ways" in stages
    assert list(found.parts) == [2, 4, 8]
