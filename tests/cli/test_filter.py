"""`c2s filter`: what it prints, how it ends, and how it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_bundle import gray_image, toy_manifest, write_toy_graphs

from compare2score import Scorer
from compare2score.bundle import write_bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture
def run(c2s, bundle, photos, tmp_path, monkeypatch):
    """run(*arguments) -> result of c2s filter with the toy bundle, beside the folder of photos."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: c2s("filter", *arguments, "--bundle", bundle, "--workers", "1")


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_rows_are_written_and_a_summary_is_printed(run, bundle):
    result = run("photos", "--out", "scores.jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = lines("scores.jsonl")
    assert [row["path"] for row in rows] == [f"photos/{name}.png" for name in "abcd"]
    scorer = Scorer(bundle)
    assert [row["value"] for row in rows] == [scorer.score(row["path"]).value for row in rows]
    printed = result.stdout.splitlines()
    assert printed[:2] == ["rows    4", "scored  4"]
    assert sum(int(line.split()[-1]) for line in printed if "-" in line[:5]) == 4
    worst = printed.index(next(line for line in printed if line.startswith("worst")))
    assert printed[worst + 1].split() == ["photos/a.png", f"{rows[0]['value']:.2f}"]


def test_the_summary_is_json_when_asked(run):
    Path("photos/bad.png").touch()
    result = run("photos", "none.png", "--out", "scores.csv", "--json", "--min-score", "50")
    assert result.exit_code == 1
    assert result.stderr == "2 of 6 images have no score; their rows in scores.csv say why.\n"
    (line,) = result.stdout.splitlines()
    summary = json.loads(line)
    assert summary["rows"] == 6
    assert summary["errors"] == {"not_found": 1, "truncated": 1}
    assert sum(summary["histogram"]) == summary["scored"] == 4
    assert summary["kept"] == 2
    assert [item["path"] for item in summary["worst"]] == [f"photos/{name}.png" for name in "abcd"]
    assert {item["path"] for item in summary["slowest"]} <= {
        *(f"photos/{name}.png" for name in ("a", "b", "c", "d", "bad")),
        "none.png",
    }


def test_the_best_are_copied_linked_and_listed(run):
    run("photos", "--out", "a.csv", "--keep-top", "50%", "--copy-to", "best", "--list", "kept.txt")
    assert sorted(path.name for path in Path("best").iterdir()) == ["c.png", "d.png"]
    assert Path("kept.txt").read_text() == "photos/c.png\nphotos/d.png\n"
    run("photos", "--out", "b.csv", "--keep-top", "1", "--link-to", "link")
    assert Path("link/d.png").resolve() == Path("photos/d.png").resolve()
    assert run("kept.txt", "--out", "c.csv").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["photos", "--out", "scores.xml"], "is none of .parquet .csv .jsonl"),
        (["photos", "--out", "none/scores.csv"], "none is no folder"),
        (["nothing-*", "--out", "s.csv"], "matches no file"),
        (["photos", "--out", "s.csv", "--min-score", "1", "--keep-top", "1"], "give one of them"),
        (["photos", "--out", "s.csv", "--copy-to", "a", "--link-to", "b"], "give one of them"),
        (["photos", "--out", "s.csv", "--keep-top", "most"], "neither a number"),
        (["photos", "--out", "s.csv", "--report", "r.pdf"], "is no .html or .htm file"),
        (["photos", "--out", "s.csv", "--report", "none/r.html"], "none is no folder that can be written to"),
        (["photos", "--out", "s.csv", "--max-errors", "-1"], "Error: "),
        (["photos", "--out", "s.csv", "--timeout", "0"], "Error: "),
        (["photos", "--out", "s.csv", "--engine", "spark"], "Error: "),
        (["photos"], "Error: "),
        (["--out", "s.csv"], "Error: "),
    ],
)
def test_wrong_use_is_status_2_and_leaves_nothing(run, arguments, said):
    before = sorted(map(str, Path().rglob("*")))
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert sorted(map(str, Path().rglob("*"))) == before


def test_a_report_is_written_and_may_be_had_later(run):
    arguments = ["photos", "none.png", "--out", "s.csv", "--min-score", "50"]
    assert run(*arguments, "--report", "first.html").exit_code == 1
    first = Path("first.html").read_text()
    assert "photos/a.png" in first
    assert "not_found: 1" in first
    assert "kept from 50.00" in first
    assert first.count("<img src") >= 4
    assert run(*arguments, "--report", "later.html", "--resume", "--json").exit_code == 1
    assert Path("later.html").read_text() == first


def test_a_bundle_without_anchors_is_refused_before_anything_is_written(c2s, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = write_bundle(tmp_path / "bare", toy_manifest(), write_toy_graphs(tmp_path / "graphs"), None)
    result = c2s("filter", photos, "--out", "s.csv", "--bundle", bare.path)
    assert result.exit_code == 2
    assert "has no anchors yet" in result.stderr
    assert not list(tmp_path.glob("s.csv*"))


def test_too_many_errors_are_status_1_and_one_sentence(run):
    for name in "123":
        Path(f"photos/{name}.png").touch()
    result = run("photos", "--out", "s.csv", "--max-errors", "2")
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert "more than --max-errors 2" in result.stderr
    assert run("photos", "--out", "s.csv", "--max-errors", "3", "--resume").exit_code == 1
    assert Path("s.csv").exists()


def test_links_are_followed_only_when_asked(run, tmp_path):
    Path("photos/link.png").symlink_to(gray_image(tmp_path / "elsewhere.png", 77))
    assert json.loads(run("photos", "--out", "a.csv", "--json").stdout)["errors"] == {"unsupported": 1}
    assert run("photos", "--out", "b.csv", "--follow-links").exit_code == 0


def test_without_ray_the_extra_is_named(run, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("photos", "--out", "s.csv", "--engine", "ray")
    assert result.exit_code == 2
    assert "pip install 'compare2score-edge[filter]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("s.csv.run").exists()


# As a process of its own


@pytest.fixture
def long(photos, tmp_path):
    """A list of more images than a test waits for."""
    names = [f"photos/{name}.png" for name in "abcd"] * 5000
    (tmp_path / "long.txt").write_text("\n".join(names))
    return tmp_path


def started(folder, bundle, *arguments, **options):
    command = [sys.executable, "-m", "compare2score.cli", "filter", "long.txt", "--out", "s.csv", "--bundle"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    process = subprocess.Popen([*command, str(bundle), *arguments], cwd=folder, **options)
    rows = folder / "s.csv.run" / "rows.jsonl"
    deadline = time.monotonic() + 60
    while not (rows.exists() and rows.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    return process, rows


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_batch_and_says_how_to_go_on(bundle, long, number, status):
    process, rows = started(long, bundle)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    done = rows.read_text().splitlines()
    assert err.splitlines() == [
        "Finishing the batch in flight; once more ends at once.",
        f"Stopped by {number.name}: {len(done)} of 20000 rows are written; go on with --resume.",
    ]
    assert all(json.loads(line)["status"] == "ok" for line in done)


def test_a_second_run_on_one_output_is_refused_while_the_first_lives(bundle, long, c2s_process):
    process, rows = started(long, bundle)
    try:
        second = c2s_process("filter", "photos", "--out", "s.csv", "--bundle", bundle, cwd=long)
    finally:
        process.kill()
        process.communicate()
    assert second.returncode == 2
    assert second.stderr == "Another run writes s.csv; let it end, or choose another --out.\n"
    third = c2s_process("filter", "photos", "--out", "s.csv", "--bundle", bundle, cwd=long)
    assert third.returncode == 2
    assert "interrupted run has left s.csv.run; go on with --resume" in third.stderr
    assert rows.exists()


def test_no_decoder_is_left_behind_by_a_kill(bundle, long):
    psutil = pytest.importorskip("psutil")
    process, _ = started(long, bundle, "--workers", "2")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert children
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_terminal_shows_rate_and_errors(bundle, long):
    pty = pytest.importorskip("pty")
    Path(long, "photos", "bad.png").touch()
    text = Path(long, "long.txt").read_text()
    Path(long, "long.txt").write_text("photos/bad.png\n" + text)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "150", "LINES": "40"}
    process, _ = started(long, bundle, stderr=theirs, env=environment)
    os.close(theirs)
    shown, deadline = "", time.monotonic() + 30
    while not ("/s" in shown and "1 error" in shown) and time.monotonic() < deadline:
        shown += os.read(ours, 65536).decode(errors="replace")
    process.kill()
    process.communicate()
    os.close(ours)
    assert "Filtering" in shown
    assert "/20001" in shown
    assert "/s" in shown
    assert "1 error" in shown
