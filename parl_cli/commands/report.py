"""`parl report`: compare runs, in the terminal and as a page, tables and pictures."""

from __future__ import annotations

import shlex

from parl_cli.commands._command import run_command
from parl_cli.config import ReportCommand


def main(args: list[str]) -> int:
    """Run `parl report`; returns the exit code."""
    made_by = shlex.join(["parl", "report", *args])
    return run_command(
        "report", ReportCommand, args, lambda command: _report(command, made_by), frozenset({"output"}), words="runs"
    )


def _report(command: ReportCommand, made_by: str) -> None:
    from parl_cli.metrics.console import print_line
    from parl_cli.reports.analysis import analyse
    from parl_cli.reports.load import printable, shown
    from parl_cli.reports.terminal import print_report

    report = analyse(command)
    print_report(report)
    if command.formats:
        from parl_cli.reports.files import write  # matplotlib, from here on

        folder = write(report, printable(made_by))
        page = folder / "report.html" if "html" in command.formats else folder
        print_line(f"written to {shown(page.absolute())}")
