import os
import sys

import psutil
import pytest

from parl_cli.metrics import memory


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
def test_free_memory_is_what_the_system_says_and_less_in_a_container(monkeypatch, tmp_path):
    assert memory.free_mb() == pytest.approx(psutil.virtual_memory().available / 1e6, rel=0.2)
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    assert memory.free_mb() == 1.0
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_mb() > 1.0
