import subprocess
import sys
import time

import psutil
import pytest

from parl_cli.metrics import cpu

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children have no clock that can be read")

SPIN = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"


@linux
def test_what_a_child_computes_is_added_while_it_runs():
    with subprocess.Popen([sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        meter = cpu.CpuMeter()
        before, own = meter.seconds(), time.process_time()
        child.stdout.readline()
        mine = time.process_time() - own
        assert meter.counts_children
        assert 0.1 < meter.seconds() - before - mine < 1.0
        child.communicate(b"\n", timeout=30)


@linux
def test_a_child_that_has_ended_counts_nothing():
    others = cpu.CpuMeter().seconds() - time.process_time()  # other tests' children, such as multiprocessing's own
    with subprocess.Popen([sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        meter = cpu.CpuMeter()
        child.communicate(b"\n", timeout=30)
    assert meter.seconds() == pytest.approx(time.process_time() + others, abs=0.1)


def test_without_such_clocks_this_process_alone_is_counted(monkeypatch):
    monkeypatch.setattr(cpu, "_clock_of", lambda pid: None)
    meter = cpu.CpuMeter()
    assert not meter.counts_children
    assert meter.seconds() == pytest.approx(time.process_time(), abs=0.1)


@linux
def test_processes_below_are_found_down_to_the_last():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        found = cpu.processes_below()
        assert child.pid in found
        assert {p.pid for p in psutil.Process(child.pid).children()} < set(found)
        child.communicate(b"\n", timeout=30)
    assert child.pid not in cpu.processes_below()


def test_of_a_core_one_gets_something_and_never_more_than_all():
    assert 0 < cpu.core_share() < 1.05


def test_a_share_is_what_was_computed_while_the_time_passed(monkeypatch):
    seconds = iter([0.0, 1.0, 2.0, 4.0])
    computed = iter([10.0, 11.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(time, "process_time", lambda: next(computed))
    assert cpu.core_share(3.0) == 0.25
