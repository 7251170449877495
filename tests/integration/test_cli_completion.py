"""Completion through a real bash, as <TAB> would do it."""

import shutil
import subprocess
import sys

import pytest

from tests.helpers.cli import environment, parl

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def env(tmp_path):
    """An environment whose PATH has a `parl`."""
    shim = tmp_path / "bin" / "parl"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m parl_cli "$@"\n')
    shim.chmod(0o755)
    found = environment()
    return {**found, "PATH": f"{shim.parent}:{found['PATH']}"}


@pytest.mark.parametrize("install", ["parl completion bash", "parl -sc install=bash"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("parl tr", "train"),
        ("parl train al", "algo. algo="),
        ("parl train algo=truly", "algo=truly_ppo"),
        ("parl list env", "envs"),
    ],
)
def test_tab_completes(install, line, words, env, tmp_path):
    script = (
        f'eval "$({install})" && COMP_LINE="{line}" COMP_POINT={len(line)} COMP_CWORD=1 && _parl_complete 2>/dev/null; '
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == words, done.stderr


def test_bash_knows_the_function_after_the_eval(env, tmp_path):
    done = subprocess.run(
        ["bash", "--norc", "-c", 'eval "$(parl -sc install=bash)" && complete -p parl'],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "-F _parl_complete parl" in done.stdout


def test_a_reader_that_stops_early_gets_no_traceback(env, tmp_path):
    done = subprocess.run(
        ["bash", "--norc", "-c", "parl train --cfg all | head -n 1"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_an_unknown_shell_is_an_error(tmp_path):
    assert parl("completion", "tcsh", cwd=tmp_path).returncode == 2
