import pytest

from parl_cli.bench.candidates import Candidate
from parl_cli.bench.parts import Parts
from parl_cli.bench.report import Report, Result, beats
from parl_cli.config import BenchCommand
from parl_cli.vectorizers.serial import SerialVectorizer
from parl_cli.vectorizers.speed import Speed, StepCost
from parl_cli.vectorizers.thread import ThreadVectorizer
from tests.helpers.stubs import train_config


def speed(*steps_per_s):
    return Speed(list(steps_per_s), [1e-6] * len(steps_per_s))


def candidate(vectorizer=None, **changes):
    return Candidate(train_config(vectorizer=vectorizer or SerialVectorizer.Config(), **changes))


def report(*results):
    step = StepCost(1e-4, 6e-6, 1.0)
    return Report(
        train_config(),
        BenchCommand(),
        step,
        2e-5,
        True,
        {4: Parts(1e-6, 2e-6, 5e-7, 1e-6, 64)},
        list(results),
        {},
        0.9,
        1.0,
    )


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


def test_few_rounds_must_show_more():
    assert beats(speed(106, 106, 106), speed(100, 100, 100))
    assert not beats(speed(119, 119), speed(100, 100))
    assert beats(speed(121), speed(100))


def test_what_was_not_measured_end_to_end_cannot_win():
    results = [Result(candidate(), speed(999)), Result(candidate(), speed(1), speed(100))]
    assert report(*results).winner is results[1]


def test_speeds_are_compared_round_by_round():
    # the machine slowed down to a tenth after the first two rounds
    simple, other = speed(100, 100, 10, 10, 10), speed(110, 110, 11, 11, 11)
    assert beats(other, simple)
    assert not beats(simple, other)


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
    [parts] = data["parts"]
    assert (parts.pop("num_envs"), parts.pop("update_steps")) == (4, 64)
    assert parts == {"act_us": 1.0, "learn_us": 2.0, "act_cpu_us": 0.5, "learn_cpu_us": 1.0}
    assert data["wake_up_us"] == pytest.approx(20)
