"""The program that a job's process runs: `python -m parl_cli.sweeps.child [--alone] <job folder> [plug-in …]`.

It trains what job.json describes, or goes on where the folder's checkpoints end, and leaves result.json. With `--alone`
there is no parent on the other end of its standard input. Nothing in the folder is trusted more than a checkpoint is:
the plug-ins come from the command line.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parl_cli import plugins
from parl_cli.errors import ConfigError, ParlError
from parl_cli.sweeps.process import ALONE, STOP_WITHIN_S, watch_line


def main(argv: Sequence[str]) -> int:
    """Do the job; the exit code means what that of `parl train` does."""
    if argv[0] == ALONE:
        argv = argv[1:]
    else:
        watch_line()
    faulthandler.enable()
    folder = Path(argv[0])
    # Outside of it: a broken installation, whose traceback goes into the log.
    from parl_cli.metrics.console import ConsoleHandler
    from parl_cli.sweeps.ledger import write_json

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler()])
    code, ended = _attempt(folder, argv[1:])
    write_json(folder / "result.json", ended | {"exit_code": code} | _known(folder))
    return code


def _attempt(folder: Path, modules: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Exit code, and how it ended."""
    try:
        _train(folder, modules)
        return 0, {"status": "finished"}
    except ParlError as error:
        print(f"parl: error: {error}", file=sys.stderr)
        return error.exit_code, {"status": "failed", "error": str(error).partition("\n")[0]}
    except (KeyboardInterrupt, SystemExit) as end:
        code = end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 130
        return code, {"status": "interrupted"}
    # somebody else's code, or a bug: the table tells what, the log where
    except Exception as error:
        traceback.print_exc()
        return 1, {"status": "failed", "error": f"{type(error).__name__}: {error}".partition("\n")[0]}


def _train(folder: Path, modules: Sequence[str]) -> None:
    plugins.load_installed()
    plugins.load(modules)
    from parl_cli import jobs  # torch, from here on
    from parl_cli.config import ResumeCommand
    from parl_cli.experiment.making import config_to_go_on
    from parl_cli.training.run_dir import RunDir
    from parl_cli.training.untrusted import MAX_JSON_BYTES, parse_json, read_file, refuse_live_text

    if (folder / "run.json").exists():
        run = RunDir.open(str(folder))
        _wait_until_free(run)
        if run.info().get("status") != "finished":
            jobs.resume_run(ResumeCommand(run=str(folder), plugins=list(modules)))
        return
    spec = parse_json(folder / "job.json", read_file(folder / "job.json", MAX_JSON_BYTES))
    refuse_live_text(spec["config"], folder)
    config = config_to_go_on(spec["config"], None, modules, lambda names: f"parl resume 'plugins=[{names}]'")
    jobs.train_run(config, folder, [str(word) for word in spec["argv"]])


def _wait_until_free(run: Any) -> None:
    """The process before this one, whose parent was killed, may still be saving."""
    deadline = time.monotonic() + STOP_WITHIN_S + 5.0
    while True:
        try:
            with run.held():
                return
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _known(folder: Path) -> dict[str, Any]:
    """The figures that run.json has by now."""
    from parl_cli.training.run_dir import RESULTS, RunDir

    info = RunDir(folder).info()
    return {name: info[name] for name in RESULTS if name in info}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
