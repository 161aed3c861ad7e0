"""A run's journal: what is to be done, and what is done already, beside the output until that is whole.

`OUT.run/` holds `plan.jsonl` (the run's settings, then every entry, written aside and renamed once it is
complete), `rows.jsonl` (a line for every entry that is done, in the plan's order) and `lock`. Rows are
appended; a line that a kill cut short is cut off by the next run. The plan fixes the order, so that a
resumed run ends as an uninterrupted one even if files came or went meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from compare2score.errors import CollectionError
from compare2score.pipelines.rows import Row, from_line, to_line
from compare2score.pipelines.sources import Entry

PLAN, ROWS, LOCK = "plan.jsonl", "rows.jsonl", "lock"
LEFT_OVERS = OUTPUT, KNOWN = "output", "known.sqlite"
"""What a run writes aside for a time."""
_SYNC_SECONDS = 5.0
_BLOCK = 1 << 16


@dataclass
class Journal:
    """An open journal. Only its holder may write to the output.

    Attributes:
        folder: where it lies.
        done: how many rows it holds.
    """

    folder: Path
    done: int = 0
    file: IO[bytes] | None = None
    synced: float = 0.0

    @property
    def begun(self) -> bool:
        """Whether there is a complete plan."""
        return (self.folder / PLAN).is_file()

    def begin(self, settings: dict[str, Any], entries: Iterable[Entry]) -> None:
        """Writes the plan; nothing is done yet."""
        aside = self.folder / f"{PLAN}.part"
        (self.folder / ROWS).unlink(missing_ok=True)
        with aside.open("w", encoding="utf-8") as file:
            file.write(json.dumps(settings) + "\n")
            for entry in entries:
                file.write(entry.to_line())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.folder / PLAN)

    def settings(self) -> dict[str, Any]:
        """What the plan was made with. Raises CollectionError if it cannot be read."""
        try:
            with (self.folder / PLAN).open(encoding="utf-8") as file:
                return dict(json.loads(file.readline()))
        except (ValueError, TypeError) as error:
            raise CollectionError(f"{self.folder} is damaged; remove it to start anew.") from error

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """The plan's entries from number `start` on."""
        with (self.folder / PLAN).open(encoding="utf-8") as file:
            for line in islice(file, start + 1, None):
                yield Entry.from_line(line)

    def total(self) -> int:
        """How many entries the plan has."""
        with (self.folder / PLAN).open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b"")) - 1

    def rows(self) -> Iterator[Row]:
        """The rows of what is done, in order."""
        with (self.folder / ROWS).open("rb") as file:
            for line in islice(file, self.done):
                yield from_line(line)

    def open_rows(self) -> None:
        """Opens the rows for appending, without a line that was cut short."""
        file = (self.folder / ROWS).open("a+b")
        self.file, self.done, whole = file, 0, 0
        file.seek(0)
        for line in file:
            with contextlib.suppress(ValueError):
                if line.endswith(b"\n") and from_line(line):
                    self.done += 1
                    whole += len(line)
                    continue
            break
        file.truncate(whole)
        file.seek(0, os.SEEK_END)

    def append(self, rows: Iterable[Row], anchors: int) -> None:
        """Adds rows, all or none of them. Raises CollectionError if the disk takes no more."""
        if self.file is None:
            self.open_rows()
        file: Any = self.file
        lines = [to_line(row, anchors).encode() for row in rows]
        whole = file.tell()
        try:
            file.write(b"".join(lines))
            file.flush()
            if time.monotonic() - self.synced > _SYNC_SECONDS:
                os.fsync(file.fileno())
                self.synced = time.monotonic()
        except OSError as error:
            self.undo(whole)
            raise CollectionError(
                f"{self.folder / ROWS} cannot be written ({error.strerror}); the {self.done} rows in it are "
                "whole: make room and go on with --resume."
            ) from error
        self.done += len(lines)

    def undo(self, whole: int) -> None:
        """Cuts off what was written past `whole`; the next run does so, too, should it not be possible."""
        file: Any = self.file
        self.file = None
        # Closing tries to write what is left in the buffer.
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            os.truncate(self.folder / ROWS, whole)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def remove(self) -> None:
        """Forgets a run whose output is whole; the plan goes first, without which rows are nothing."""
        self.close()
        for name in (PLAN, f"{PLAN}.part", ROWS):
            (self.folder / name).unlink(missing_ok=True)


@contextmanager
def open_journal(out: Path) -> Iterator[Journal]:
    """The journal of an output, made if there is none, for one run at a time.

    Raises CollectionError if another run has it, or its folder cannot be written to.
    """
    folder = out.with_name(f"{out.name}.run")
    lock: int | None = None
    while lock is None:
        try:
            folder.mkdir(exist_ok=True)
            lock = take_lock(folder / LOCK, out)
        except FileNotFoundError as error:
            # Either the run before has removed the folder just now, or there is no place for it.
            if not out.parent.is_dir():
                raise CollectionError(f"{out.parent} is no folder; make it first.") from error
        except OSError as error:
            reason = f"{out.parent} cannot be written to ({error.strerror})"
            raise CollectionError(f"{reason}; choose another place for the output.") from error
    journal = Journal(folder)
    try:
        yield journal
    finally:
        journal.close()
        rows = folder / ROWS
        if not (rows.is_file() and rows.stat().st_size):
            # There is nothing to go on with.
            (folder / PLAN).unlink(missing_ok=True)
        # While the lock is held: whoever waits for it finds that its file is gone, and makes another.
        if not journal.begun:
            for name in (f"{PLAN}.part", ROWS, *LEFT_OVERS, LOCK):
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(lock)


def take_lock(path: Path, out: Path) -> int | None:
    """A locked file, which the system unlocks when this process ends, however that happens.

    None if the file was removed meanwhile. Raises CollectionError if another process has the lock.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock_file(lock)
    except BlockingIOError as error:
        os.close(lock)
        raise CollectionError(f"Another run writes {out}; let it end, or choose another --out.") from error
    with contextlib.suppress(OSError):
        if path.stat().st_ino == os.fstat(lock).st_ino:
            return lock
    os.close(lock)
    return None


def lock_file(lock: int) -> None:
    """Locks an open file, or raises BlockingIOError."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        locking: Any = msvcrt
        try:
            locking.locking(lock, locking.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
        return
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
