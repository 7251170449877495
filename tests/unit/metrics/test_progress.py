import io

import pytest
from rich.console import Console

from parl_cli.metrics.panel import LivePanel
from parl_cli.metrics.plain import PlainLines
from parl_cli.metrics.progress import make_progress


def make(terminal, encoding="utf-8", term="xterm"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=file, force_terminal=terminal, _environ={"TERM": term})


def test_terminal_gets_the_live_panel():
    assert isinstance(make_progress(10, to=make(True)), LivePanel)


@pytest.mark.parametrize(
    ("out", "live"),
    [(make(False), True), (make(True), False), (make(True, encoding="ascii"), True), (make(True, term="dumb"), True)],
    ids=["pipe", "logger.live=false", "ascii", "dumb"],
)
def test_everything_else_gets_plain_lines(out, live):
    assert isinstance(make_progress(10, live=live, to=out), PlainLines)


def test_history_reaches_the_tracker():
    progress = make_progress(10, history=iter([{"env_steps": 5.0}]), to=make(False))
    assert progress.tracker.done == 0.5
