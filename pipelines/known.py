"""Scores that an earlier output holds already, by content: an index on the disk, however many they are."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from compare2score.pipelines.rows import Row, from_line, to_line


class KnownScores:
    """Rows with a score, by the SHA-256 of their image; may be asked by several threads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.turn = threading.Lock()

    def __contains__(self, sha256: str) -> bool:
        return self.find(sha256) is not None

    def find(self, sha256: str) -> Row | None:
        """A row of just this content."""
        with self.turn:
            found = self.connection.execute("SELECT line FROM rows WHERE sha256 = ?", (sha256,)).fetchone()
        return found and from_line(found[0])


def index_scores(rows: Iterable[Row], bundle: str, path: Path) -> None:
    """Writes the index of those rows that `bundle` has scored."""
    with closing(sqlite3.connect(path)) as connection:
        # Lost with the run it serves, and made anew by the next.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE rows (sha256 TEXT PRIMARY KEY, line TEXT) WITHOUT ROWID")
        scored = (row for row in rows if row.error_code is None and row.bundle == bundle)
        lines = ((row.sha256, to_line(row, len(row.probabilities))) for row in scored)
        connection.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", lines)
        connection.commit()


@contextmanager
def open_index(path: Path) -> Iterator[KnownScores]:
    """An index that `index_scores` has written."""
    with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        yield KnownScores(connection)
