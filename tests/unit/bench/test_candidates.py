import dataclasses
import shlex

import pytest

from parl_cli import build
from parl_cli.actors.thread import ThreadActors
from parl_cli.bench import candidates
from parl_cli.bench.candidates import Candidate
from parl_cli.config import BenchCommand, EnvConfig
from parl_cli.envs.factory import env_spec
from parl_cli.errors import ConfigError
from parl_cli.vectorizers.asynchronous import AsyncVectorizer
from parl_cli.vectorizers.serial import SerialVectorizer
from parl_cli.vectorizers.subprocess import SubprocessVectorizer
from parl_cli.vectorizers.thread import ThreadVectorizer
from tests.helpers.stubs import train_config

SPEC = env_spec(EnvConfig(id="CartPole-v1"))


def candidate(vectorizer=None, **changes):
    return Candidate(train_config(vectorizer=vectorizer or SerialVectorizer.Config(), **changes))


def refuse_nothing(who, why):
    raise AssertionError(f"{who}: {why}")


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
    assert candidates.spread(most, count) == numbers


def test_only_options_that_a_vectorizer_has_are_varied():
    assert candidates.variants(SerialVectorizer.Config(), 2, 8, False) == [{}]
    assert candidates.variants(ThreadVectorizer.Config(), 2, 8, False) == [{"num_workers": 1}, {"num_workers": 2}]
    groups = candidates.variants(AsyncVectorizer.Config(), 2, 8, False)
    assert groups == [{"num_workers": w, "num_groups": g} for w in (1, 2) for g in candidates.NUM_GROUPS]


def test_there_are_never_more_workers_than_envs():
    assert [each["num_workers"] for each in candidates.variants(ThreadVectorizer.Config(), 64, 3, True)] == [1, 2, 3]


def test_the_config_s_own_vectorizer_keeps_its_options():
    config = train_config(vectorizer=SubprocessVectorizer.Config(num_workers=1, context="forkserver"), num_envs=8)
    command = BenchCommand(vectorizers=["serial", "subprocess", "thread"])
    found = list(candidates.candidates(config, command, SPEC, refuse_nothing))
    assert found[0].config.vectorizer == SerialVectorizer.Config()
    contexts = {each.config.vectorizer.context for each in found if each.name == "subprocess"}
    assert contexts == {"forkserver"}
    assert all(each.config.num_threads for each in found)  # resolved


def test_auto_is_not_compared_with_what_it_chooses_from():
    assert "auto" not in candidates.chosen_names(BenchCommand())
    with pytest.raises(ConfigError, match=r"vectorizers=\[auto\]: no such vectorizer"):
        candidates.chosen_names(BenchCommand(vectorizers=["auto"]))


def test_tuning_leaves_out_sizes_that_the_algorithm_refuses():
    config = train_config(num_envs=24)
    config = dataclasses.replace(config, algo=dataclasses.replace(config.algo, num_steps=2, num_minibatches=16))
    refused = {}
    found = candidates.sizes(config, BenchCommand(tune=True), SPEC, refused.__setitem__)
    assert [sized.num_envs for sized in found] == [16, 24, 32, 64, 128, 256]
    assert list(refused) == ["num_envs=8"]
    assert "algo.num_minibatches=16" in refused["num_envs=8"]
    assert [sized.num_envs for sized in candidates.sizes(config, BenchCommand(), SPEC, refuse_nothing)] == [24]


def test_actors_share_the_envs_and_the_cores(monkeypatch):
    monkeypatch.setattr(candidates, "available_cores", lambda: 8)
    monkeypatch.setattr(build, "available_cores", lambda: 8)
    config = train_config(num_envs=12, actors=ThreadActors.Config(num_actors=4))
    assert len(build.envs_of_one_actor(config)) == 3
    found = candidates.candidates(config, BenchCommand(vectorizers=["thread"]), SPEC, refuse_nothing)
    assert [each.options["num_workers"] for each in found] == [1, 2]


def test_tuning_leaves_out_sizes_that_the_actors_cannot_share():
    config = train_config(num_envs=12, actors=ThreadActors.Config(num_actors=3, max_policy_lag=0))
    refused = {}
    found = candidates.sizes(config, BenchCommand(tune=True), SPEC, refused.__setitem__)
    assert [sized.num_envs for sized in found] == [12]
    assert "actors.num_actors=3" in refused["num_envs=8"]


def test_a_candidate_is_named_by_what_is_varied():
    assert str(candidate()) == "serial"
    assert str(candidate(ThreadVectorizer.Config(num_workers=1))) == "thread, 1 worker"
    assert str(candidate(AsyncVectorizer.Config(num_workers=2, num_groups=4))) == "async, 2 workers, 4 groups"


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
    assert candidates.winning_command(candidate(vectorizer), config, typed) == f"parl train {words}"


def test_the_command_keeps_the_winner_s_own_options_and_names_another_number_of_envs():
    config = train_config(vectorizer=SubprocessVectorizer.Config(), num_envs=4)
    typed = ["num_envs=4", "vectorizer=subprocess", "vectorizer.context=forkserver", "env.kwargs={a: 1}"]
    won = candidate(SubprocessVectorizer.Config(num_workers=2, context="forkserver"), num_envs=64)
    assert shlex.split(candidates.winning_command(won, config, typed)) == [
        *("parl", "train", "vectorizer.context=forkserver", "env.kwargs={a: 1}", "num_envs=64"),
        *("vectorizer=subprocess", "vectorizer.num_workers=2"),
    ]
