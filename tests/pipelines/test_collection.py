"""A run ends with the same rows whatever happened on its way."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from toy_bundle import gray_image

from compare2score import Scorer
from compare2score.errors import CollectionError, ImageError
from compare2score.pipelines.collection import Job, TooManyFailuresError, run_job
from compare2score.pipelines.rows import read_rows
from compare2score.pipelines.scoring import Effort, score_entries
from compare2score.pipelines.selection import Choice

BAD = Path(__file__).resolve().parents[3] / "shared" / "bad_images"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")


def job(*sources, out="scores.jsonl", **options):
    effort = Effort(options.pop("batch", 4), options.pop("workers", 1), options.pop("seconds", 30.0))
    return Job(tuple(map(str, sources)), Path(out), effort=effort, **options)


def left(out="scores.jsonl"):
    return Path(f"{out}.run").exists()


@pytest.fixture
def counted(bundle):
    """A scorer that notes how many images it has scored."""
    scorer = Scorer(bundle, threads=1)
    scorer.scored = 0
    whole = scorer.score_pixels

    def score_pixels(pixels):
        scorer.scored += len(pixels)
        return whole(pixels)

    scorer.score_pixels = score_pixels
    return scorer


# What is in the rows


def test_every_input_has_its_row_with_the_scorers_numbers(scorer, grays):
    grays(10)
    Path("photos/005.png").write_text("no image")
    Path("photos/zero.png").touch()
    result = run_job(job("photos", "none.jpg"), scorer)
    assert (result.complete, result.total) == (True, 12)
    assert dict(result.summary.errors) == {"not_an_image": 1, "truncated": 1, "not_found": 1}
    rows = list(read_rows(Path("scores.jsonl")))
    assert [row.path for row in rows] == [*sorted(map(str, Path("photos").iterdir())), "none.jpg"]
    for row in rows:
        assert row.bundle == scorer.bundle.identity
        (expected,) = scorer.score_many([row.path])
        if isinstance(expected, ImageError):
            assert (row.error_code, row.error_text, row.value) == (expected.code, str(expected), None)
        else:
            for field in ("value", "q", "std", "probabilities"):
                assert getattr(row, field) == getattr(expected, field)
            assert row.bytes == Path(row.path).stat().st_size
    assert not left()


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (3, 2), (100, 1)])
def test_rows_do_not_depend_on_how_they_were_made(scorer, grays, batch, workers):
    grays(11)
    run_job(job("photos"), scorer)
    run_job(job("photos", out="other.jsonl", batch=batch, workers=workers), scorer)
    assert Path("scores.jsonl").read_bytes() == Path("other.jsonl").read_bytes()


def test_shards_and_tables_give_their_images_rows(scorer, grays):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    grays(6)
    files = sorted(Path("photos").iterdir())
    with tarfile.open("s.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    held = [file.read_bytes() for file in files]
    parquet.write_table(
        pyarrow.table({"image": [*held, None], "path": [*(f.name for f in files), "n"]}), "t.parquet"
    )
    parquet.write_table(pyarrow.table({"path": list(map(str, files))}), "p.parquet")
    result = run_job(job("photos", "s.tar", "t.parquet", "p.parquet", out="all.parquet"), scorer)
    assert dict(result.summary.errors) == {"not_found": 1}
    rows = [row for row in read_rows(Path("all.parquet")) if row.error_code is None]
    assert [row.path for row in rows[6:18]] == [
        f"{shard}/{f.name}" for shard in ("s.tar", "t.parquet") for f in files
    ]
    for start in (6, 12, 18):
        same = [(row.sha256, row.value, row.bytes) for row in rows[start : start + 6]]
        assert same == [(row.sha256, row.value, row.bytes) for row in rows[:6]]


def test_decoders_that_go_wrong_cost_their_own_rows_only(scorer, grays, hostile_decoder):
    grays(12)
    run_job(job("photos"), scorer)
    good = {row.path: row for row in read_rows(Path("scores.jsonl"))}
    for place, begin in ((2, "CRASH"), (5, "LOOP"), (6, "LIE"), (9, "CRASH")):
        Path(f"photos/{place:03}b.png").write_text(begin)
    result = run_job(job("photos", out="mixed.jsonl", seconds=2.0, workers=2), scorer)
    assert dict(result.summary.errors) == {"unsupported": 3, "timeout": 1}
    mixed = list(read_rows(Path("mixed.jsonl")))
    assert [row for row in mixed if row.error_code is None] == list(good.values())


# Interruptions


def test_a_run_that_was_stopped_goes_on_where_it_was(counted, grays):
    grays(20)
    run_job(job("photos", out="whole.jsonl"), counted)
    counted.scored = 0
    stop = threading.Event()

    def after_two_batches(done, total, errors):
        assert (total, errors) == (20, 0)
        if done >= 8:
            stop.set()

    result = run_job(job("photos"), counted, progress=after_two_batches, stop=stop)
    assert (result.complete, result.summary.rows) == (False, 8)
    assert left()
    assert not Path("scores.jsonl").exists()
    with pytest.raises(CollectionError, match=r"interrupted run .* --resume"):
        run_job(job("photos"), counted)
    with pytest.raises(CollectionError, match="another sources"):
        run_job(job("photos", "photos", resume=True), counted)
    result = run_job(job("photos", resume=True), counted)
    assert (result.complete, result.summary.rows, counted.scored) == (True, 20, 20)
    assert Path("scores.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert not left()


def test_what_comes_or_goes_meanwhile_does_not_shift_the_rows(scorer, grays):
    grays(12)
    run_job(job("photos", out="whole.jsonl"), scorer)
    stop = threading.Event()
    run_job(job("photos"), scorer, progress=lambda done, *_: done >= 4 and stop.set(), stop=stop)
    gray_image(Path("photos/000-new.png"), 7)
    Path("photos/001.png").unlink()
    Path("photos/010.png").unlink()
    run_job(job("photos", resume=True), scorer)
    whole, resumed = (list(read_rows(Path(name))) for name in ("whole.jsonl", "scores.jsonl"))
    assert [row.path for row in resumed] == [row.path for row in whole]
    assert [a.path for a, b in zip(whole, resumed, strict=True) if a != b] == ["photos/010.png"]
    assert resumed[10].error_code == "not_found"


KILLED = """
import os, signal, sys
from pathlib import Path
from compare2score import Scorer
from compare2score.pipelines import collection
from compare2score.pipelines.scoring import Effort
from compare2score.pipelines.selection import Choice

bundle, last = sys.argv[1], int(sys.argv[2])
scorer = Scorer(bundle, threads=1)
whole = scorer.score_pixels
log = os.open("scored", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def score_pixels(pixels):
    os.write(log, b"x" * len(pixels))
    return whole(pixels)
scorer.score_pixels = score_pixels
lines = 0
def trace(frame, event, argument):
    global lines
    if f"{os.sep}pipelines{os.sep}" not in frame.f_code.co_filename:
        return None
    lines += 1
    if lines == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace
choice, effort = Choice(top=5, copy_to=Path("best")), Effort(4, 1, 30.0)
job = collection.Job(("photos",), Path("scores.csv"), resume=True, effort=effort, choice=choice)
sys.settrace(trace)
collection.run_job(job, scorer)
sys.settrace(None)
print(lines)
"""


def run_killed(bundle, last):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(bundle), str(last)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def output():
    copies = {path.name: path.read_bytes() for path in Path("best").iterdir()}
    return Path("scores.csv").read_bytes(), copies


@pytest.mark.slow
def test_killed_at_any_line_and_resumed_a_run_ends_as_if_it_had_not_been(
    bundle, grays, tmp_path, monkeypatch
):
    grays(22)
    Path("photos/007.png").write_text("no image")
    status, lines = run_killed(bundle, -1)
    assert status == 0
    expected = output()
    points = random.Random(6).sample(range(1, int(lines)), 20)
    reached = 0
    for number, point in enumerate(points):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        Path("photos").symlink_to(tmp_path / "photos")
        status, _ = run_killed(bundle, point)
        # Waiting takes a varying number of lines, so that the last ones may not be reached.
        assert status in (0, -9)
        reached += status == -9
        scored = Path("scored").stat().st_size if Path("scored").exists() else 0
        status, _ = run_killed(bundle, -1)
        assert status == 0
        assert output() == expected, point
        assert Path("scored").stat().st_size <= 21 + 4, (point, scored)
        assert not left("scores.csv")
    assert reached >= 15


def test_killed_again_and_again_a_run_arrives(bundle, grays):
    grays(12)
    for number in range(3):
        status, _ = run_killed(bundle, 2500 + 500 * number)
        assert status in (0, -9)
    assert run_killed(bundle, -1)[0] == 0
    assert len(list(read_rows(Path("scores.csv")))) == 12
    assert Path("scored").stat().st_size <= 12 + 3 * 4


# What exists already


def test_a_complete_output_is_not_overwritten_but_brought_up_to_date(counted, grays):
    grays(9)
    run_job(job("photos"), counted)
    before = Path("scores.jsonl").read_bytes()
    with pytest.raises(CollectionError, match=r"exists already; .*--resume"):
        run_job(job("photos"), counted)
    counted.scored = 0
    result = run_job(job("photos", resume=True), counted)
    assert (counted.scored, result.summary.reused) == (0, 9)
    assert Path("scores.jsonl").read_bytes() == before
    gray_image(Path("photos/004.png"), 200, 77)
    gray_image(Path("photos/new.png"), 100, 78)
    Path("photos/000.png").unlink()
    Path("photos/001.png").rename("photos/moved.png")
    result = run_job(job("photos", resume=True), counted)
    assert (counted.scored, result.summary.reused, result.total) == (2, 7, 9)
    run_job(job("photos", out="fresh.jsonl"), counted)
    assert Path("scores.jsonl").read_bytes() == Path("fresh.jsonl").read_bytes()


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_scores_of_another_bundle_are_not_reused(counted, grays, tmp_path, kind):
    from toy_bundle import write_toy_bundle

    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    grays(3)
    other = Scorer(write_toy_bundle(tmp_path / "other", temperature=3.0).path, threads=1)
    run_job(job("photos", out=f"s{kind}"), other)
    result = run_job(job("photos", out=f"s{kind}", resume=True), counted)
    assert (counted.scored, result.summary.reused) == (3, 0)
    result = run_job(job("photos", out=f"s{kind}", resume=True), counted)
    assert (counted.scored, result.summary.reused) == (3, 3)


def test_resume_without_anything_to_resume_begins(scorer, grays):
    grays(2)
    assert run_job(job("photos", resume=True), scorer).complete


def test_an_output_that_is_none_of_ours_is_not_touched(scorer, grays):
    grays(2)
    Path("scores.jsonl").write_text("my diary\n")
    with pytest.raises(CollectionError, match="cannot be read as rows"):
        run_job(job("photos", resume=True), scorer)
    assert Path("scores.jsonl").read_text() == "my diary\n"


# What goes wrong


def test_too_many_errors_end_the_run_and_more_may_be_allowed(scorer, grays):
    grays(12)
    for place in (1, 2, 9):
        Path(f"photos/{place:03}.png").write_text("no image")
    with pytest.raises(
        TooManyFailuresError, match=r"^2 of 4 images have an error, more than --max-errors 1;"
    ):
        run_job(job("photos", max_errors=1), scorer)
    with pytest.raises(TooManyFailuresError):
        run_job(job("photos", max_errors=1, resume=True), scorer)
    assert run_job(job("photos", max_errors=3, resume=True), scorer).complete


def vanish_after(number, source):
    def progress(done, *_):
        if done >= number and Path(source).exists():
            Path(source).rename(f"{source}-elsewhere")

    return progress


def test_a_source_that_vanishes_ends_the_run_and_loses_nothing(scorer, grays):
    grays(40)
    run_job(job("photos", out="whole.jsonl", batch=2), scorer)
    with pytest.raises(CollectionError, match=r"^photos is gone; .* --resume\.$"):
        run_job(job("photos", batch=2), scorer, progress=vanish_after(8, "photos"))
    # As a mount point does once its disk is gone.
    Path("photos").mkdir()
    with pytest.raises(CollectionError, match="photos is gone"):
        run_job(job("photos", batch=2, resume=True), scorer)
    Path("photos").rmdir()
    Path("photos-elsewhere").rename("photos")
    assert run_job(job("photos", batch=2, resume=True), scorer).complete
    assert Path("scores.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_a_shard_that_vanishes_ends_the_run(scorer, grays):
    grays(40)
    with tarfile.open("s.tar", "w") as tar:
        tar.add("photos")
    with pytest.raises(CollectionError, match=r"^s\.tar is gone"):
        run_job(job("s.tar", batch=2), scorer, progress=vanish_after(8, "s.tar"))


def test_a_disk_that_is_full_ends_the_run_in_a_sentence(scorer, grays):
    grays(30)
    run_job(job("photos", out="whole.jsonl"), scorer)
    room = Path("whole.jsonl").stat().st_size // 2
    # A file that may grow no further is what a full disk is, for one process.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(CollectionError, match=r"cannot be written .* rows in it are whole"):
            run_job(job("photos"), scorer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run_job(job("photos", resume=True), scorer).complete
    assert Path("scores.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_a_disk_that_fills_up_at_the_end_costs_no_row(counted, grays, monkeypatch):
    from compare2score.pipelines import collection

    grays(6)

    def full(*_):
        raise OSError(28, "No space left on device", "aside")

    with monkeypatch.context() as patch:
        patch.setattr(collection, "write_rows", full)
        with pytest.raises(CollectionError, match=r"refuses aside \(No space left on device\)"):
            run_job(job("photos"), counted)
    assert run_job(job("photos", resume=True), counted).complete
    assert counted.scored == 6


def test_the_choice_is_carried_out_after_an_interruption_too(scorer, grays):
    grays(10)
    choice = Choice(top_share=0.3, copy_to=Path("best"), listing=Path("kept.txt"))
    stop = threading.Event()
    run_job(
        job("photos", choice=choice), scorer, progress=lambda done, *_: done >= 4 and stop.set(), stop=stop
    )
    assert not Path("best").exists()
    result = run_job(job("photos", choice=choice, resume=True), scorer)
    names = ["007.png", "008.png", "009.png"]
    assert result.kept == 3
    assert sorted(path.name for path in Path("best").iterdir()) == names
    assert Path("kept.txt").read_text().split() == [f"photos/{name}" for name in names]


def test_only_a_few_batches_are_ahead_of_the_scores(scorer, grays):
    grays(40)
    from compare2score.pipelines.sources import list_entries

    taken = []
    entries = (taken.append(entry) or entry for entry in list_entries(["photos"]))
    done = 0
    for outcomes in score_entries(scorer, entries, Effort(4, 1, 30.0)):
        done += len(outcomes)
        assert len(taken) - done <= 3 * 4 + 1
    assert done == 40


# Hostile images


@pytest.mark.slow
@pytest.mark.skipif(not BAD.is_dir(), reason="shared/bad_images is not beside the checkout")
def test_every_hostile_image_has_a_row_and_good_ones_do_not_notice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scorer = Scorer(threads=1)
    names = sorted(str(path) for path in BAD.iterdir() if path.name != "README.md")
    photos = sorted((Path(__file__).resolve().parents[2] / "examples" / "photos").glob("*.jpg"))
    mixed = names[::5]
    for place, photo in enumerate(photos):
        mixed.insert(9 * place + 3, str(photo))
    Path("mixed.txt").write_text("\n".join(mixed))
    run_job(job("mixed.txt", out="mixed.jsonl", batch=8), scorer)
    run_job(job(*photos, out="alone.jsonl", batch=8), scorer)
    rows = {row.path: row for row in read_rows(Path("mixed.jsonl"))}
    assert list(rows) == mixed
    for row in read_rows(Path("alone.jsonl")):
        assert rows[row.path] == row
    from typing import get_args

    from compare2score.errors import ImageErrorCode

    assert {row.error_code for row in rows.values()} <= {None, *get_args(ImageErrorCode)}
    assert json.loads(Path("mixed.jsonl").read_text().splitlines()[0])["path"] == mixed[0]
    assert not left("mixed.jsonl")
