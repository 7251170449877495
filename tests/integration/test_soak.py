"""A small run of the soak benchmark: workers that die at random, and every transition accounted for."""

import sys

import pytest

from parl_cli.vectorizers import SubprocessVectorizer
from tests.benchmarks.soak import soak
from tests.helpers.soak_env import FAULTS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


@pytest.mark.parametrize("vectorizer", ["subprocess", "async"])
def test_every_transition_is_delivered_or_masked_whatever_kills_the_workers(vectorizer):
    result = soak(100_000, len(FAULTS) + 2, vectorizer)
    assert [line for line in result.table() if not line[2]] == []
    assert set(result.injected) >= set(FAULTS)
    assert result.restarts >= len(FAULTS)
    assert result.masked >= result.restarts


def test_a_row_that_does_not_follow_is_told(monkeypatch):
    receive = SubprocessVectorizer.recv

    def tampered(self, timeout=None):
        step = receive(self, timeout)
        step.reward[0] += 1
        return step

    monkeypatch.setattr(SubprocessVectorizer, "recv", tampered)
    result = soak(640, 0)
    assert len(result.wrong) == 10
    assert [what for what, _, good in result.table() if not good] == ["delivered + masked", "rows out of order"]
