"""One run an output, and rows that survive whatever ends a run."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compare2score.errors import CollectionError
from compare2score.pipelines.journal import LOCK, PLAN, ROWS, open_journal
from compare2score.pipelines.rows import Row
from compare2score.pipelines.sources import Entry

ENTRIES = [
    Entry("a.jpg", "a.jpg", "a.jpg", "."),
    Entry("s.tar/\udce9\n.jpg", "s.tar", "b.jpg", "s.tar", offset=512, size=3),
    Entry("t.parquet/0", "t.parquet", "0", "t.parquet", row=0),
    Entry("l.jpg", "l.jpg", "l.jpg", ".", error=("unsupported", "is a link")),
]


def row(place):
    return Row(f"{place}\udce9.jpg", "b" * 64, place, error_code="timeout", error_text="ü")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "scores.csv"


def test_a_plan_reads_back_from_any_entry_on(out):
    with open_journal(out) as journal:
        assert not journal.begun
        journal.begin({"bundle": "x"}, ENTRIES)
        journal.append([row(0)], 5)
    with open_journal(out) as journal:
        assert journal.begun
        assert journal.settings() == {"bundle": "x"}
        assert journal.total() == len(ENTRIES)
        for start in range(len(ENTRIES) + 1):
            assert list(journal.entries(start)) == ENTRIES[start:]


def test_a_plan_that_was_not_completed_is_none(out):
    def broken():
        yield ENTRIES[0]
        raise RuntimeError

    with pytest.raises(RuntimeError), open_journal(out) as journal:
        journal.begin({}, broken())
    assert list(out.parent.iterdir()) == []


def test_rows_cut_short_anywhere_leave_whole_rows_only(out):
    with open_journal(out) as journal:
        journal.begin({}, ENTRIES)
        journal.append(map(row, range(4)), 5)
        whole = (journal.folder / ROWS).read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    path = out.with_name("scores.csv.run") / ROWS
    for cut in {0, 1, *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1]), len(whole) - 9}:
        for rest in (b"", b"\0" * 20, b"\0\n"):
            path.write_bytes(whole[:cut] + rest)
            with open_journal(out) as journal:
                journal.open_rows()
                number = sum(end <= cut for end in ends)
                assert journal.done == number
                assert list(journal.rows()) == list(map(row, range(number)))
                journal.append(map(row, range(number, 4)), 5)
                assert path.read_bytes() == whole


def test_two_runs_on_one_output_are_refused_and_a_dead_one_is_in_nobodys_way(out):
    program = (
        "import sys, pathlib\n"
        "from compare2score.pipelines.journal import open_journal\n"
        "with open_journal(pathlib.Path(sys.argv[1])) as journal:\n"
        "    journal.begin({}, [])\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(CollectionError, match="Another run writes"), open_journal(out):
            pass
        process.kill()
        process.wait()
    with open_journal(out) as journal:
        assert journal.begun


def test_a_lock_whose_file_was_removed_is_taken_anew(out, monkeypatch):
    real, removed = os.open, []

    def open_then_lose(path, *arguments):
        lock = real(path, *arguments)
        if str(path).endswith(LOCK) and not removed:
            removed.append(path)
            Path(path).unlink()
        return lock

    monkeypatch.setattr(os, "open", open_then_lose)
    with open_journal(out) as journal:
        assert (journal.folder / LOCK).exists()
    assert removed


def test_a_full_disk_is_one_sentence_and_costs_no_row(out, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    with open_journal(out) as journal:
        journal.begin({}, ENTRIES)
        journal.append([row(0)], 5)
        journal.file = Full(journal.file)
        with pytest.raises(CollectionError, match=r"No space left.*the 1 rows in it are whole.*--resume\.$"):
            journal.append([row(1), row(2)], 5)
    with open_journal(out) as journal:
        journal.open_rows()
        assert list(journal.rows()) == [row(0)]


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    for out, said in ((tmp_path / "none" / "s.csv", "is no folder"), (tmp_path / "file" / "s.csv", "file")):
        with pytest.raises(CollectionError, match=said), open_journal(out):
            pass


def test_nothing_is_left_of_a_run_without_rows(out):
    with open_journal(out) as journal:
        journal.begin({}, ENTRIES)
        journal.open_rows()
    assert list(out.parent.iterdir()) == []


def test_nothing_is_left_of_a_run_that_is_over(out):
    with open_journal(out) as journal:
        journal.begin({}, ENTRIES)
        journal.append([row(0)], 5)
        journal.remove()
    assert list(out.parent.iterdir()) == []


def test_a_plan_that_is_damaged_is_said_to_be(out):
    with open_journal(out) as journal:
        journal.begin({}, ENTRIES)
        (journal.folder / PLAN).write_bytes(b"\0" * 100)
        with pytest.raises(CollectionError, match="is damaged"):
            journal.settings()
