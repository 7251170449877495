"""A report as files: report.html, report.md, a CSV per kind of number, PNG and SVG per picture."""

from __future__ import annotations

import csv
import io
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parl_cli.errors import ConfigError
from parl_cli.reports import html, plots
from parl_cli.reports.analysis import Report
from parl_cli.reports.tables import (
    Table,
    csv_tables,
    method_words,
    overall_improvement,
    overall_table,
    run_table,
    task_tables,
    title_words,
)


def write(report: Report, made_by: str) -> Path:
    """Write the formats that the report's command asks for.

    Args:
        report: what they tell.
        made_by: the command line, for the page and the Markdown.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder cannot be written.
    """
    formats, output = report.command.formats, report.command.output
    pictures = plots.figures(report) if {"html", "png", "svg"} & set(formats) else {}
    contents: dict[str, str | bytes] = {}
    if "html" in formats:
        contents["report.html"] = html.page(report, pictures, made_by)
    if "md" in formats:
        shown = next((kind for kind in ("svg", "png") if kind in formats), None)
        contents["report.md"] = markdown(report, shown, made_by)
    if "csv" in formats:
        contents |= {f"{name}.csv": _csv(rows) for name, rows in csv_tables(report).items() if rows}
    for name, picture in pictures.items():
        if "png" in formats:
            contents[f"{name}.png"] = plots.to_png(picture)
        if "svg" in formats:
            contents[f"{name}.svg"] = plots.to_svg(picture)
    try:
        folder = _new_folder() if output is None else Path(output).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        where = error.filename or output or "outputs/report"  # a full disk names no file
        raise ConfigError(f"cannot write to {where} ({error.strerror}); name another folder with output=…") from None
    return folder


def markdown(report: Report, pictures: str | None, made_by: str) -> str:
    """The report as Markdown, with links to the pictures beside it, which are `png` or `svg`, or none."""
    lines = [f"# {title_words(report)}", "", method_words(report), ""]
    for task in report.tasks:
        lines += [f"## {task.name}", ""]
        for table in task_tables(task, report):
            lines += _markdown_table(table)
        files = [f"{plots.figure_name(task, kind)}.{pictures}" for kind in plots.KINDS] if pictures else []
        lines += [*(f"![{file}]({file})" for file in files), ""]
    if report.overall is not None:
        lines += ["## All tasks", "", *_markdown_table(overall_table(report.overall))]
        lines += _markdown_table(overall_improvement(report.overall))
    if report.broken or report.notes:
        lines += ["## Left out", "", *(f"- {line}" for line in [*report.broken, *report.notes]), ""]
    lines += ["## Runs", "", *_markdown_table(run_table(report)), f"Made by `{made_by}`"]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    lines = [f"**{table.title}**", "", line(table.columns), line(["---"] * len(table.columns))]
    return [*lines, *map(line, table.rows), "", *(f"{note}\n" for note in table.notes)]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _new_folder() -> Path:
    """`outputs/report/<time>`, or with `-2`, `-3` … the first like it that is not there; made."""
    base = Path("outputs") / "report" / time.strftime("%Y-%m-%d_%H-%M-%S")
    for n in itertools.count(1):
        folder = base if n == 1 else base.with_name(f"{base.name}-{n}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count() has no end")
