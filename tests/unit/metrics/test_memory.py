import os
import sys

import psutil
import pytest

from parl_cli.metrics import control_groups, memory


@pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="elsewhere the figure is the peak")
def test_resident_memory_is_what_the_system_says():
    assert memory.rss_mb(children=False) == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.05)


def test_resident_memory_is_at_least_an_interpreter_and_at_most_this_machine():
    assert 5 < memory.rss_mb(children=False) < psutil.virtual_memory().total / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_children_are_added_without_the_pages_they_share(monkeypatch):
    pages = {os.getpid(): (1000, 400), 7: (300, 200), 8: (50, 10)}
    monkeypatch.setattr(memory, "_statm", pages.__getitem__)
    monkeypatch.setattr(memory, "_descendants", lambda: [7, 8])
    assert memory.rss_mb() == pytest.approx(1140 * os.sysconf("SC_PAGE_SIZE") / 1e6)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_child_that_has_just_ended_counts_nothing():
    assert memory._statm(2**22 + 1) == (0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_free_memory_is_what_the_system_says():
    assert memory.free_mb() == pytest.approx(psutil.virtual_memory().available / 1e6, rel=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    ("own", "folder", "limit", "used", "cache"),
    [
        ("0::/a/b", "", "memory.max", "memory.current", "inactive_file"),
        (
            "5:cpu:/c\n4:hugetlb,memory:/a/b\n0::/",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_free_memory_is_what_the_tightest_container_leaves(monkeypatch, tmp_path, own, folder, limit, used, cache):
    monkeypatch.setattr(control_groups, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(own + "\n")

    def bound(place, bytes_free):
        path = tmp_path / folder / place
        path.mkdir(parents=True, exist_ok=True)
        (path / limit).write_text(f"{bytes_free + 2_000_000}\n")
        (path / used).write_text("2500000\n")
        (path / "memory.stat").write_text(f"anon 5\n{cache} 500000\n")

    assert memory.free_mb() > 3.0  # no file there: no limit
    bound("", 3_000_000)  # a container that does not see its path from outside has the root alone
    assert memory.free_mb() == 3.0
    bound("a/b", 2_000_000)
    assert memory.free_mb() == 2.0
    bound("a", 1_000_000)
    assert memory.free_mb() == 1.0
    (tmp_path / folder / "a" / limit).write_text("max\n")
    assert memory.free_mb() == 2.0
