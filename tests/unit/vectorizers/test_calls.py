import pytest

from parl_cli.vectorizers.calls import available_cores, span, split


@pytest.mark.parametrize(("num_envs", "num_workers"), [(1, 1), (7, 3), (8, 2), (3, 8), (5, 5)])
def test_split_covers_every_env_once_in_order_and_evenly(num_envs, num_workers):
    ranges = split(num_envs, num_workers)
    assert [env_id for ids in ranges for env_id in ids] == list(range(num_envs))
    sizes = [len(ids) for ids in ranges]
    assert len(ranges) == min(num_envs, num_workers)
    assert max(sizes) - min(sizes) <= 1


def test_span_names_one_env_or_the_first_and_last():
    assert span(range(3, 4)) == "env 3"
    assert span(range(16, 32)) == "envs 16 to 31"


def test_a_job_beside_others_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.setenv("PARL_CORES", "3")
    assert available_cores() == 3
