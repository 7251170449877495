import pytest

from parl_cli.errors import ConfigError
from parl_cli.metrics import control_groups
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


@pytest.mark.parametrize("share", ["0", "-2", "many", ""])
def test_a_share_that_is_no_number_of_cores_is_refused(monkeypatch, share):
    monkeypatch.setenv("PARL_CORES", share)
    with pytest.raises(ConfigError, match=f"^PARL_CORES={share}: must be a whole number of cores, at least 1"):
        available_cores()


@pytest.mark.parametrize(
    ("own", "folder", "limit"),
    [
        ("0::/a/b", "", lambda cores: {"cpu.max": f"{cores * 50_000:.0f} 50000\n"}),
        (
            "4:memory:/c\n3:cpu,cpuacct:/a/b\n0::/",
            "cpu",
            lambda cores: {"cpu.cfs_quota_us": f"{cores * 50_000:.0f}\n", "cpu.cfs_period_us": "50000\n"},
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_cores_are_what_the_tightest_container_lets_us_use(monkeypatch, tmp_path, own, folder, limit):
    monkeypatch.setattr(control_groups, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(64), raising=False)
    monkeypatch.delenv("PARL_CORES", raising=False)
    (tmp_path / "own").write_text(own + "\n")

    def bound(place, files):
        path = tmp_path / folder / place
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (path / name).write_text(text)

    assert available_cores() == 64
    bound("", limit(9))  # a container that does not see its path from outside has the root alone
    assert available_cores() == 9
    bound("a/b", limit(3.5))
    assert available_cores() == 4
    bound("a", limit(0.5))
    assert available_cores() == 1
    bound("a", {name: "max 50000\n" if name == "cpu.max" else "-1\n" for name in limit(1)})
    assert available_cores() == 4
