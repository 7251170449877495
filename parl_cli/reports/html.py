"""One HTML page that needs nothing else: no network, no script, its pictures inside it as SVG.

It reads on a phone and on a desktop, in light and dark: the pictures' colours are replaced by the page's variables.
Its content security policy forbids every request, whatever a run was named.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from parl_cli.reports import plots, style
from parl_cli.reports.analysis import Report, TaskResult
from parl_cli.reports.tables import (
    Table,
    method_words,
    overall_improvement,
    overall_table,
    run_table,
    task_tables,
    title_words,
)

_FEW = 8  # lines of a list that are shown unasked

_INKS = {style.INK: "ink", style.FAINT: "faint", style.TICK: "tick", style.SPINE: "spine", style.GRID: "grid"}
_VARIABLES = _INKS | {colour: f"c{i}" for i, colour in enumerate(plots.COLOURS)}

# The pictures' colours on a dark page: the same hues, lighter.
_DARK_CURVES = ("#6ea8e0", "#f0906a", "#4fc3a1", "#cf8fd8", "#e0b83a", "#a9b4bc", "#ec83a3", "#7fcbea")

_CSS = """\
:root { color-scheme: light dark; --page: #ffffff; --ink: #222222; --faint: #6f6f6f; --tick: #555555;
  --spine: #bbbbbb; --grid: #e6e6e6; --stripe: #f6f7f8; LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181b; --ink: #e7e7e7; --faint: #a0a0a0; --tick: #b5b5b5; --spine: #555a60;
    --grid: #2c3035; --stripe: #1e2125; DARK } }
body { margin: 0 auto; max-width: 76rem; padding: 1rem clamp(.75rem, 3vw, 2rem) 3rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--grid); }
h3 { font-size: .95rem; margin: 1.4rem 0 .4rem; font-weight: 600; }
p, li, figcaption, summary { max-width: 46rem; }
.faint, figcaption, footer { color: var(--faint); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; white-space: nowrap; overflow-wrap: normal; }
thead th { color: var(--faint); font-weight: 500; border-bottom: 1px solid var(--spine); }
tbody tr { background: var(--page); }
tbody tr:nth-child(even) { background: var(--stripe); }
tbody th { position: sticky; left: 0; background: inherit; }
td:last-child { padding-right: 0; }
.figures { display: grid; gap: 1rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.key { display: inline-block; width: .7em; height: .7em; margin-right: .45em; border-radius: 2px; }
code { font-size: .85em; }
"""

_CAPTIONS = {
    "env_steps": "Learning curves over env steps.",
    "time_s": "Learning curves over wall time: they end where the fastest run of a group ended.",
    "scores": "Scores: bars are intervals, dots are runs.",
}


def page(report: Report, figures: Mapping[str, Any], made_by: str) -> str:
    """The whole page.

    Args:
        report: what it tells.
        figures: from `plots.figures`.
        made_by: the command line.
    """
    title = title_words(report)
    body = [f"<h1>{_text(title)}</h1>", f'<p class="faint">{_text(method_words(report))}</p>']
    for task in report.tasks:
        body += _task(task, report, figures)
    if report.overall is not None:
        body.append("<h2>All tasks</h2>")
        body += _table(overall_table(report.overall)) + _table(overall_improvement(report.overall))
    if report.broken or report.notes:
        body += ["<h2>Left out</h2>", *_list([*report.broken, *report.notes])]
    runs = run_table(report)
    body += [f"<h2>Runs</h2><details><summary>{len(runs.rows)} runs</summary>", *_table(runs), "</details>"]
    body.append(f"<footer><p>Made by <code>{_text(made_by)}</code></p></footer>")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{_text(title)}</title>\n<style>\n{_css()}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def _task(task: TaskResult, report: Report, figures: Mapping[str, Any]) -> list[str]:
    scores, *others = task_tables(task, report)
    pictures = []
    for kind in plots.KINDS:
        name = plots.figure_name(task, kind)
        described = f"{_CAPTIONS[kind]} {task.name}: {', '.join(result.name for result in task.results)}"
        pictures.append(
            f"<figure>{_svg(plots.to_svg(figures[name], transparent=True), name, described)}"
            f"<figcaption>{_text(_CAPTIONS[kind])}</figcaption></figure>"
        )
    keyed = {result.name: i for i, result in enumerate(task.results)}
    return [
        f"<h2>{_text(task.name)}</h2>",
        *_table(scores, keyed),
        f'<div class="figures">{"".join(pictures)}</div>',
        *(line for table in others for line in _table(table, keyed)),
    ]


def _table(table: Table, keyed: Mapping[str, int] | None = None) -> list[str]:
    """A table; rows whose name is a curve's get its colour."""
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
    lines = [f"<h3>{_text(table.title)}</h3>", f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>']
    for name, *cells in table.rows:
        key = ""
        if keyed and name in keyed:
            key = f'<span class="key" style="background: var(--c{keyed[name] % len(plots.COLOURS)})"></span>'
        values = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{key}{_text(name)}</th>{values}</tr>')
    lines.append("</tbody></table></div>")
    return [*lines, *(f'<p class="faint">{_text(note)}</p>' for note in table.notes)]


def _list(lines: Sequence[str]) -> list[str]:
    items = [f"<li>{_text(line)}</li>" for line in lines]
    if len(items) <= _FEW:
        return ["<ul>", *items, "</ul>"]
    return [f"<details><summary>{len(items)} things</summary><ul>", *items, "</ul></details>"]


def _svg(data: bytes, name: str, described: str) -> str:
    """A picture of matplotlib's as a part of the page: without its own head, in the page's colours."""
    text = data.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # several pictures in one page: an id may occur once
    prefix = re.sub(r"\W", lambda char: f"_{ord(char[0]):x}_", name, flags=re.ASCII)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}_", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{_text(described)}" ', 1).strip()


def _css() -> str:
    light = " ".join(f"--c{i}: {colour};" for i, colour in enumerate(plots.COLOURS))
    dark = " ".join(f"--c{i}: {colour};" for i, colour in enumerate(_DARK_CURVES))
    return _CSS.replace("LIGHT", light).replace("DARK", dark)


def _text(text: str) -> str:
    return html.escape(text)
