import io
import logging
import subprocess
import sys

import pytest
from rich.console import Console

from parl_cli.metrics import console
from parl_cli.metrics.console import ConsoleHandler, print_line, print_result, print_start

LONG = "outputs/" + "a-rather-long-name/" * 8 + "2026-01-01_00-00-00-abcd"


def make(width=80, terminal=False, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    return Console(file=file, width=width, force_terminal=terminal, color_system=None, highlight=False)


def text(out):
    out.file.flush()
    return out.file.buffer.getvalue().decode(out.file.encoding)


def test_start_shows_every_label_aligned_and_counts_with_separators():
    out = make()
    print_start({"envs": "32 × CartPole-v1", "total steps": 100352, "seed": 1}, title="ppo on cartpole", to=out)
    assert text(out).splitlines() == [
        "ppo on cartpole",
        "  envs         32 × CartPole-v1",
        "  total steps  100,352",
        "  seed         1",
        "",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_paths_and_commands_are_never_broken(terminal):
    out = make(width=60, terminal=terminal)
    print_start({"run folder": LONG}, to=out)
    print_result({"return": "1.0"}, commands={"evaluate": f"parl eval checkpoint={LONG}"}, to=out)
    lines = text(out).splitlines()
    assert f"  run folder  {LONG}" in lines
    assert f"  evaluate  parl eval checkpoint={LONG}" in lines


def test_markup_in_a_name_is_shown_as_it_is():
    out = make()
    print_start({"name": "[bold]x[/bold]"}, title="[red]t", to=out)
    print_line("[/oops] 3", out)
    assert "[bold]x[/bold]" in text(out)
    assert "[red]t" in text(out)
    assert "[/oops] 3" in text(out)


def test_result_is_framed_on_a_terminal_and_plain_elsewhere():
    framed, plain = make(terminal=True), make()
    for out in (framed, plain):
        print_result({"return": "500.0"}, title="stopped by Ctrl-C", commands={"resume": "parl resume run=x"}, to=out)
    assert text(framed).startswith("╭─ stopped by Ctrl-C ─")
    assert "│ return  500.0" in text(framed)
    assert text(plain).splitlines() == ["stopped by Ctrl-C", "  return  500.0", "  resume  parl resume run=x"]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_that_takes_no_unicode_gets_replacements(encoding, terminal):
    out = make(encoding=encoding, terminal=terminal)
    print_start({"envs": "32 × 4 ± 1 ↑ 日"}, title="träin", to=out)
    print_result({"return": "1 ± 2"}, to=out)
    assert "32 x 4 +/- 1 + ?" in text(out)
    assert "1 +/- 2" in text(out)


def test_log_records_say_what_they_are_and_are_not_wrapped(monkeypatch):
    out = make(width=40)
    monkeypatch.setattr(console, "console", out)
    logger = logging.Logger("test")
    logger.addHandler(ConsoleHandler())
    logger.info("said " + "x" * 60)
    logger.warning("csv failed on %s", "[disk]")
    logger.error("it broke")
    logger.critical("it broke for good")
    assert text(out).splitlines() == [
        "said " + "x" * 60,
        "warning: csv failed on [disk]",
        "error: it broke",
        "error: it broke for good",
    ]


def test_a_reader_that_leaves_does_not_end_the_run():
    code = (
        "import sys; from parl_cli.metrics.console import print_line\n"
        "for line in sys.stdin:\n"
        "    print_line(line); print(line, flush=True)\n"
        "sys.stderr.write('went on to the end')"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        process.stdout.close()
        _, complaints = process.communicate(b"first\nsecond\n", timeout=60)
    assert (process.returncode, complaints) == (0, b"went on to the end")
