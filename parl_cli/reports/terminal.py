"""A report in the terminal."""

from __future__ import annotations

import re

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from parl_cli.metrics import console as shared
from parl_cli.reports.analysis import Report
from parl_cli.reports.tables import Table, overall_improvement, overall_table, task_tables

_BREAKS = re.compile(r" (?=[\[(])|(?<=…) |(?<=%) ")

FILE_WIDTH = 200  # into a file or a pipe: long lines rather than folded ones


def print_report(report: Report, to: Console | None = None) -> None:
    """Print every table, and what was left out."""
    out = to or shared.console
    for task in report.tasks:
        for table in task_tables(task, report):
            print_table(table, out)
    if report.overall is not None:
        print_table(overall_table(report.overall), out)
        print_table(overall_improvement(report.overall), out)
    for line in report.broken:
        shared.print_line(Text.assemble(("broken: ", "yellow"), line), out)
    for line in report.notes:
        shared.print_line(Text(line, style="dim"), out)


def print_table(table: Table, to: Console | None = None) -> None:
    """Print one table, folded into the terminal's width."""
    out = to or shared.console
    shared.print_line(Text(table.title, style="bold"), out)
    width = out.width if out.is_terminal else FILE_WIDTH
    grid = _grid(table, out)
    if grid.__rich_measure__(out, out.options.update(width=10_000)).maximum > width:
        grid = _grid(table, out, folded=True)
    out.print(grid, width=width)
    for note in table.notes:
        shared.print_line(Text(f"  {note}", style="dim"), out)
    shared.print_line("", out)


def _grid(table: Table, out: Console, folded: bool = False) -> RichTable:
    """The table; `folded` puts what stands in brackets, the end of a range, and each share on lines of their own."""
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(table.columns):
        grid.add_column(Text(shared.writable(column, out)), style="cyan" if i == 0 else "", overflow="fold")
    for name, *cells in table.rows:
        broken = (_BREAKS.sub("\n", cell) if folded else cell for cell in cells)
        grid.add_row(*(Text(shared.writable(cell, out)) for cell in (name, *broken)))
    return grid
