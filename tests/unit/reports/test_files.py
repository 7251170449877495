"""What a report is written as: every format holds the same numbers, and the page needs nothing but itself."""

import csv
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from parl_cli.config import ReportCommand
from parl_cli.errors import ConfigError
from parl_cli.reports import plots
from parl_cli.reports.analysis import analyse
from parl_cli.reports.files import write
from parl_cli.reports.terminal import print_report
from tests.helpers.run_folders import config, rows, write_run, write_seeds

VOID = {"meta", "br", "img", "link", "hr"}
EVIL = '"><script>alert(1)</script><img src=http://evil.example/x>$|'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_seeds(tmp_path / "runs", [4, 8, 6, 2], "ppo")
    write_seeds(tmp_path / "runs", [1, 2, 3], "a2c")
    write_run(tmp_path / "runs" / "open", config(seed=9), status="running")
    return tmp_path


@pytest.fixture
def two_tasks(folder):
    write_seeds(folder / "runs", [1, 2, 3], "ppo", env="acrobot")
    write_seeds(folder / "runs", [2, 3, 4], "a2c", env="acrobot")
    return folder


def written(**changes):
    report = analyse(ReportCommand(**({"runs": "runs", "resamples": 200, "points": 20} | changes)))
    return write(report, "parl report runs")


@pytest.mark.parametrize(
    ("longest", "step"),
    [(0.0, 1), (2.5, 1), (6.1, 2), (59, 10), (400, 120), (3600, 600), (3 * 3600, 1800), (1e6, 64 * 3600)],
)
def test_a_time_axis_is_marked_in_whole_units(longest, step):
    assert plots.time_step(longest) == step


def test_tasks_of_alike_names_have_pictures_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for env in ("a b", "a/b", "a_b", "a_b-scores"):
        write_seeds(tmp_path / "runs", [1, 2], "ppo", env=env)
    folder = written(formats=["md", "svg", "html"])
    pictures = {file.name for file in folder.glob("*.svg")}
    assert len(pictures) == 12
    assert {name for name in pictures if name.startswith("a_b-scores-")} > {"a_b-scores-scores.svg"}
    linked = re.findall(r"!\[.*?\]\((.*?)\)", (folder / "report.md").read_text())
    assert sorted(linked) == sorted(pictures)
    ids = re.findall(r'\bid="(.*?)"', (folder / "report.html").read_text())
    assert len(ids) == len(set(ids))


class Page(HTMLParser):
    """A page's elements; fails where a tag is not closed, or closes another."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, attribute):
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]


def test_every_format_is_written(two_tasks):
    out = written()
    assert out.as_posix().startswith("outputs/report/")
    pictures = [f"{env}-{kind}" for env in ("acrobot", "cartpole") for kind in ("env_steps", "time_s", "scores")]
    assert {file.name for file in out.iterdir()} == {
        "report.html", "report.md",
        *(f"{name}.csv" for name in ("scores", "summary", "improvement", "curves", "efficiency", "speed")),
        *(f"{name}.{kind}" for name in pictures for kind in ("png", "svg")),
    }  # fmt: skip
    for name in pictures:
        assert imread(out / f"{name}.png").shape[1] == 840
        ElementTree.parse(out / f"{name}.svg")


@pytest.mark.parametrize(
    ("formats", "kinds"), [(["html"], {".html"}), (["md", "csv"], {".md", ".csv"}), (["png"], {".png"})]
)
def test_only_what_is_asked_for_is_written_and_where(formats, kinds, folder):
    assert written(formats=formats, output="here").name == "here"
    assert {file.suffix for file in (folder / "here").iterdir()} == kinds


def test_the_same_report_is_the_same_bytes(folder):
    one, other = (written(output=name, formats=["html", "md", "csv", "svg"]) for name in ("one", "two"))
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


def test_csv_holds_the_numbers_themselves(two_tasks):
    out = written(formats=["csv"])

    def table(name):
        return list(csv.DictReader(io.StringIO((out / f"{name}.csv").read_text())))

    scores = [float(row["score"]) for row in table("scores") if (row["task"], row["group"]) == ("cartpole", "ppo")]
    assert scores == [4, 8, 6, 2]
    summary = {(row["task"], row["group"]): row for row in table("summary")}
    assert float(summary["cartpole", "ppo"]["iqm"]) == 5
    assert float(summary["cartpole", "ppo"]["mean_low"]) < 5 < float(summary["cartpole", "ppo"]["mean_high"])
    assert ("all", "a2c") in summary
    curve = [
        row for row in table("curves") if (row["task"], row["group"], row["axis"]) == ("cartpole", "ppo", "time_s")
    ]
    assert len(curve) == 20
    assert (float(curve[0]["x"]), float(curve[-1]["x"])) == (0.1, 1.0)
    assert float(curve[-1]["value"]) == 5


def test_page_is_well_formed_and_asks_for_nothing(folder):
    page = Page((written(formats=["html"]) / "report.html").read_text())
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for attribute in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
        assert all(value.startswith("#") for value in page.values(attribute)), attribute
    assert not re.search(r"@import|url\((?!#)", "".join(page.text))
    [policy] = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert [attrs["content"] for tag, attrs in page.tags if attrs.get("name") == "viewport"]


def test_pictures_in_the_page_have_ids_of_their_own_and_its_colours(folder):
    text = (written(formats=["html"]) / "report.html").read_text()
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for reference in [*page.values("xlink:href"), *re.findall(r"url\((#[^)]*)\)", text)]:
        assert reference.removeprefix("#") in ids
    pictures = text[text.index("<body>") :]
    assert "var(--c0)" in pictures
    assert not any(colour in pictures for colour in plots.COLOURS)
    assert len(page.values("aria-label")) == 3


def test_page_says_what_was_left_out_and_how_it_was_made(folder):
    (folder / "runs/ppo_cartpole/1/config.yaml").unlink()
    text = (written(formats=["html"]) / "report.html").read_text()
    assert "runs/ppo_cartpole/1: config.yaml is missing" in text
    assert "left out, not finished (running): runs/open" in text
    assert "<code>parl report runs</code>" in text


def test_hostile_names_are_text(folder):
    write_run(folder / "runs" / "evil", config(algo=EVIL, env=EVIL), rows([1, 2, 3]))
    out = written(formats=["html", "md"])
    page = Page((out / "report.html").read_text())
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert EVIL in "".join(page.text)
    assert all("/" not in file.name for file in out.iterdir())
    assert EVIL.replace("|", "\\|") in (out / "report.md").read_text()


def test_markdown_links_to_the_pictures_beside_it(folder):
    out = written(formats=["md", "png"])
    links = re.findall(r"!\[.*\]\((.*)\)", (out / "report.md").read_text())
    assert len(links) == 3
    assert all((out / link).is_file() for link in links)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_terminal_shows_every_table_within_its_width(width, encoding, two_tasks):
    raw = io.BytesIO()
    out = Console(file=io.TextIOWrapper(raw, encoding), width=width, force_terminal=True, color_system=None)
    print_report(analyse(ReportCommand(runs="runs", resamples=200, points=20)), out)
    out.file.flush()
    text = raw.getvalue().decode(encoding)
    for part in ("cartpole", "acrobot", "IQM", "steps/s", "probability", "over all tasks", "not finished (running)"):
        assert part in text
    tables = [line for line in text.splitlines() if not re.match(r"\S+: |left out|proba|scaled|  0", line)]
    assert max(map(len, tables)) <= width


def test_many_contenders_have_a_matrix_without_intervals_and_styles_of_their_own(folder):
    for i in range(9):
        write_run(folder / "many" / str(i), config(algo__learning_rate=i + 0.5), rows(np.arange(5) * i))
    report = analyse(ReportCommand(runs="many", by=["algo.learning_rate"], resamples=200, points=20))
    assert len({plots.style(i) for i in range(9)}) == 9
    out = write(report, "parl report many")
    assert "0.00 [" not in (out / "report.md").read_text()


def test_no_score_lies_on_the_edge_of_its_picture(folder):
    [task] = analyse(ReportCommand(runs="runs", resamples=200, points=20)).tasks
    [axes] = plots.score_figure(task).axes
    left, right = axes.get_xlim()
    scores = np.concatenate([result.scores for result in task.results])
    assert left < scores.min() - 0.01 * np.ptp(scores)
    assert right > scores.max() + 0.01 * np.ptp(scores)


def test_one_run_has_no_interval_and_says_so(folder):
    write_run(folder / "single", config())
    out = write(analyse(ReportCommand(runs="single", points=20)), "parl report single")
    assert "no interval for ppo: one run says nothing of the spread" in (out / "report.md").read_text()
    assert "[nan" not in (out / "report.md").read_text()


def test_a_place_that_cannot_be_written_is_one_line(folder):
    (folder / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to file.*output="):
        written(output="file")
