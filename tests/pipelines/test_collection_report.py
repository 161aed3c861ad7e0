"""The report's page, read by Python's HTML parser and by a browser, and what a stranger's names do to it."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compare2score.errors import CollectionError, MissingExtraError
from compare2score.pipelines.collection import Job, run_job
from compare2score.pipelines.collection_report import check_report, render, size_text, write_report
from compare2score.pipelines.overview import survey
from compare2score.pipelines.rows import Row, read_rows, write_rows
from compare2score.pipelines.selection import Choice

pytest.importorskip("jinja2", reason="the extra 'filter' is not installed")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = (
    "<script>document.title='pwned'</script>.jpg",
    "\"><img src=x onerror=document.title='pwned'>.jpg",
    "'</figcaption></figure><h1>pwned</h1>.jpg",
    "{{ 7 * 191 }}{% for a in b %}.jpg",
    "</title><style>body{display:none}</style>.jpg",
    "photo\u202egpj.exe",
    "two\nlines\x1b[2J\0.jpg",
    "no utf-8 \udce9.jpg",
    "&lt;b&gt;.jpg",
)
EMPTY = {"meta", "img", "line", "rect", "br", "link"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and all of its text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def scored(path, value):
    return Row(path, "b" * 64, 1000, 8, 6, "0" * 64, value, 0.0, 0.5, (0.5,) * 5)


def failed(path, code="truncated"):
    text = f"{path} is damaged; save it anew."
    return Row(path, "b" * 64, error_code=code, error_text=text)


def page_of(rows, choice=None, thumbnails=None, title="scores.csv"):
    return render(survey(lambda: rows, choice), thumbnails or {}, title)


def jpeg(color):
    file = io.BytesIO()
    Image.new("RGB", (32, 24), color).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def collection(scorer, grays):
    """A folder of greys and a broken file; what a run makes of it in a format."""
    grays(30)
    Path("photos/broken <b>.png").write_bytes(b"")
    Path("photos/none.png").write_text("no image")

    def run(out):
        run_job(Job(("photos",), Path(out)), scorer)
        return Path(out)

    return run


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_page(collection, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    out = collection(f"scores.{kind}")
    write_report(out, Path("report.html"), Choice(top_share=0.2))
    page = Page(Path("report.html").read_text())
    assert page.open == []
    assert "images" in page.text
    rows = list(read_rows(out))
    values = sorted(row.value for row in rows if row.value is not None)
    top = page.text.partition("Distribution")[0]
    facts = dict(re.findall(r"(images|with a score|with an error|kept)\s*(\d+)", top))
    assert facts == {"images": "32", "with a score": "30", "with an error": "2", "kept": "6"}
    for value in (values[0], values[-1], values[24]):
        assert f"{value:.2f}" in page.text
    for part in ("Distribution", "Deciles", "Just kept", "Just left out", "Worst", "Best", "Errors"):
        assert part in page.text
    assert "truncated: 1" in page.text
    assert "not_an_image: 1" in page.text
    assert "photos/broken <b>.png" in page.text
    assert len(page.all("img")) >= 12 + 12 + 27 + 12
    write_report(collection("again.csv"), Path("again.html"), Choice(top_share=0.2))
    same = Path("again.html").read_text().replace("again.csv", f"scores.{kind}")
    assert same == Path("report.html").read_text()


def test_the_page_takes_nothing_from_anywhere_and_runs_nothing(collection):
    write_report(collection("scores.csv"), Path("report.html"), Choice(min_score=50))
    page = Page(Path("report.html").read_text())
    assert not {"script", "link", "iframe", "object", "embed", "a", "base", "form"} & {
        name for name, _ in page.elements
    }
    for name, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("href", "srcset", "style")]
        if "src" in attributes:
            assert name == "img"
            assert attributes["src"].startswith("data:image/jpeg;base64,/9j/")
    policy = next(item for item in page.all("meta") if item.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]
    source = Path("report.html").read_text()
    assert not re.search(r"url\(|@import|https?:", source)


def test_the_pictures_are_the_images(collection):
    from base64 import b64decode

    write_report(collection("scores.csv"), Path("report.html"))
    rows = {row.path: row for row in read_rows(Path("scores.csv"))}
    for attributes in Page(Path("report.html").read_text()).all("img"):
        picture = np.asarray(Image.open(io.BytesIO(b64decode(attributes["src"].partition(",")[2]))))
        original = np.asarray(Image.open(rows[attributes["alt"]].path).convert("RGB"))
        # A grey of up to 12 pixels, enlarged: its rim blends with the margin.
        assert abs(int(picture[96, 96, 0]) - int(original[0, 0, 0])) <= 3


def test_hostile_names_are_text_and_nothing_else():
    rows = [scored(name, 10.0 * place) for place, name in enumerate(HOSTILE)]
    rows += [failed(name) for name in HOSTILE] + [failed("x", "<b>code</b>")]
    title = HOSTILE[4]
    thumbnails = {rows[0].path: jpeg("red")}
    page = Page(page_of(rows, Choice(min_score=35.0), thumbnails, title))
    harmless = Page(page_of([scored("a", 1.0), failed("b")], Choice(min_score=35.0), {"a": jpeg("red")}))
    assert {name for name, _ in page.elements} == {name for name, _ in harmless.elements}
    assert len(page.all("h1")) == 1
    assert page.open == []
    for name in HOSTILE[:5]:
        assert name in page.text
    for gone in ("\u202e", "\x1b", "\0", "\udce9"):
        assert gone not in page.text
    for shown in ("photo\\u202egpj.exe", "two\\nlines\\x1b[2J\\x00.jpg", "no utf-8 \\udce9.jpg", "&lt;b&gt;"):
        assert shown in page.text


def test_bars_have_the_heights_of_the_counts():
    rows = [scored(f"{place}", value) for place, value in enumerate([1.0] * 8 + [51.0] * 4 + [100.0])]
    rectangles = Page(page_of(rows)).all("rect")
    heights = [float(one["height"]) for one in rectangles]
    assert (heights[0], heights[25], heights[49], sum(heights)) == (240, 120, 30, 390)
    assert all(float(one["y"]) + float(one["height"]) == 240 for one in rectangles)


@pytest.mark.parametrize(
    ("choice", "at"), [(Choice(min_score=40.0), "400.0"), (Choice(min_score=150.0), None), (None, None)]
)
def test_the_threshold_is_marked_where_it_is(choice, at):
    lines = Page(page_of([scored("a", 1.0), scored("b", 51.0)], choice)).all("line")
    assert [one["x1"] for one in lines if one.get("class") == "mark"] == ([at] if at else [])


@pytest.mark.parametrize("rows", [[], [failed("a")], [scored("a", 3.0)]])
def test_few_rows_make_a_page_too(rows):
    assert Page(page_of(rows, Choice(top=1))).open == []


def test_more_failures_than_are_named_are_counted():
    text = Page(page_of([failed(f"{place}.jpg") for place in range(33)])).text
    assert "truncated: 33" in text
    assert "and 13 more" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (999_600, "1 MB"), (10**18, "1e+06 TB")],
)
def test_sizes_are_for_people(number, text):
    assert size_text(number) == text


# What can go wrong


def test_a_report_that_cannot_be_written_is_refused_before_work(tmp_path, monkeypatch):
    (tmp_path / "folder.html").mkdir()
    for path, said in [
        ("report.pdf", "is no .html or .htm file"),
        ("none/report.html", "is no folder that can be written to"),
        ("folder.html", "is a folder"),
    ]:
        with pytest.raises(CollectionError, match=said):
            check_report(tmp_path / path)
    check_report(tmp_path / "report.html")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'compare2score-edge\[filter\]'"):
        check_report(tmp_path / "report.html")


def test_a_failure_leaves_the_old_report_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows([failed("a")], Path("rows.csv"), ".csv", 5)
    Path("report.html").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CollectionError, match=r"No space left on device.* rows are safe in rows\.csv"):
        write_report(Path("rows.csv"), Path("report.html"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "rows.csv"]
    assert Path("report.html").read_text() == "old"


def test_what_is_no_output_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CollectionError, match="no output of c2s filter"):
        write_report(tmp_path / "rows.csv", tmp_path / "report.html")


# In a browser


def browse(page, folder, *arguments):
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"]
    # Every address but the page's own leads nowhere, as without a network.
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run", "--disable-background-networking"]
    options += ["--no-sandbox"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    command = [BROWSER, *options, *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_draws_pictures_and_bars_and_runs_no_name(tmp_path):
    rows = [scored(name, 10.0 * place) for place, name in enumerate(HOSTILE)]
    pictures = {row.path: jpeg("magenta") for row in rows}
    report = tmp_path / "report.html"
    report.write_text(page_of([*rows, failed(HOSTILE[0])], Choice(top=3), pictures), encoding="utf-8")
    built = Page(browse(report, tmp_path, "--dump-dom"))
    assert re.search(r"Scores in scores\.csv", built.text)
    assert not built.all("script")
    assert len(built.all("h1")) == 1
    assert len(built.all("img")) == sum("data:" in str(item.get("src")) for item in built.all("img"))

    shot = tmp_path / "shot.png"
    browse(report, tmp_path, f"--screenshot={shot}", "--window-size=1200,1600")
    drawn = np.asarray(Image.open(shot).convert("RGB")).astype(int)

    def share(color, tolerance=12):
        return (abs(drawn - color).max(axis=2) < tolerance).mean()

    # 27 pictures at the deciles and 9 near the threshold are in sight; nine bars; one mark.
    assert share((255, 0, 255)) > 0.05
    assert share((0x3B, 0x6F, 0xB6)) > 0.003
    assert share((0xC2, 0x41, 0x0C)) > 0.0001
