"""Ray gives the rows that the local engine gives, also when its workers die."""

from __future__ import annotations

import sys
import tarfile
import threading
from pathlib import Path

import pytest
from toy_bundle import gray_image

from compare2score.pipelines.cluster import read_tasks, score_on_ray
from compare2score.pipelines.collection import Job, run_job
from compare2score.pipelines.rows import read_rows
from compare2score.pipelines.scoring import Effort
from compare2score.pipelines.sources import Entry

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Ray's processes are looked for as POSIX has them"
)


def job(*sources, out, **options):
    return Job(sources, Path(out), effort=Effort(8, 1, 30.0), **options)


def collect(number):
    """Sources of `number` images and more: a folder, a shard, a table of bytes, files that are none."""
    import pyarrow
    import pyarrow.parquet

    third = number // 3
    for place in range(number):
        folder = ("photos", "packed", "held")[place % 3]
        gray_image(Path(folder) / f"{place:03}.png", 5 + place * 240 // number, 8 + place % 50)
    with tarfile.open("packed.tar", "w") as tar:
        tar.add("packed")
    # Bytes that end in zeros, which some array types forget.
    held = [path.read_bytes() + b"\0" * 5 for path in sorted(Path("held").iterdir())]
    pyarrow.parquet.write_table(
        pyarrow.table({"bytes": [*held, None]}), "held.parquet", row_group_size=third // 2
    )
    for place in range(4):
        Path(f"photos/bad{place}.png").write_text("no image")
    return "photos", "packed.tar", "held.parquet", "absent.png"


def test_a_task_is_its_entry_again(tmp_path):
    entries = [
        Entry("a\udce9.jpg", "a.jpg", "a", "."),
        Entry("s/x", "s", "x", "s", offset=5, size=6, error=("unsupported", "link")),
    ]
    assert [Entry.from_line(task["entry"]) for task in read_tasks(entries)] == entries


@pytest.mark.slow
def test_ray_and_this_machine_alone_give_the_same_bytes(scorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = collect(210)
    run_job(job(*sources, out="local.jsonl"), scorer)
    result = run_job(job(*sources, out="ray.jsonl"), scorer, score_on_ray)
    assert Path("ray.jsonl").read_bytes() == Path("local.jsonl").read_bytes()
    assert (result.total, result.summary.failed) == (210 + 4 + 1 + 1, 6)
    gray_image(Path("photos/new.png"), 77, 99)
    result = run_job(job(*sources, out="ray.jsonl", resume=True), scorer, score_on_ray)
    assert result.summary.reused == 210
    run_job(job(*sources, out="fresh.jsonl"), scorer)
    assert Path("ray.jsonl").read_bytes() == Path("fresh.jsonl").read_bytes()


@pytest.mark.slow
def test_a_ray_worker_that_is_killed_costs_no_row(scorer, tmp_path, monkeypatch):
    psutil = pytest.importorskip("psutil")
    monkeypatch.chdir(tmp_path)
    sources = collect(300)
    run_job(job(*sources, out="local.jsonl"), scorer)
    killed: list[int] = []

    def kill_once(done, *_):
        if done >= 16 and not killed:
            for process in psutil.Process().children(recursive=True):
                if "MapWorker" in " ".join(process.cmdline()) or "MapWorker" in process.name():
                    killed.append(process.pid)
                    process.kill()

    result = run_job(job(*sources, out="ray.jsonl"), scorer, score_on_ray, kill_once)
    assert killed
    assert result.complete
    assert Path("ray.jsonl").read_bytes() == Path("local.jsonl").read_bytes()


@pytest.mark.slow
def test_a_ray_run_that_was_stopped_goes_on_where_it_was_on_this_machine_alone(scorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = collect(90)
    run_job(job(*sources, out="local.jsonl"), scorer)
    stop = threading.Event()
    result = run_job(
        job(*sources, out="ray.jsonl"), scorer, score_on_ray, lambda done, *_: done >= 16 and stop.set(), stop
    )
    assert not result.complete
    run_job(job(*sources, out="ray.jsonl", resume=True), scorer)
    assert Path("ray.jsonl").read_bytes() == Path("local.jsonl").read_bytes()
    assert list(read_rows(Path("ray.jsonl")))
