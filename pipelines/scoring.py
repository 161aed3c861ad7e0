"""The local engine: entries in, outcomes out, in order; decoding and scoring overlap."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace

import numpy as np

from compare2score import Scorer
from compare2score.errors import ImageErrorCode
from compare2score.image import normalize
from compare2score.pipelines.decoder import MAX_BYTES
from compare2score.pipelines.decoding import Decoded, DecodingPool, decoding_pool
from compare2score.pipelines.known import KnownScores
from compare2score.pipelines.rows import Row
from compare2score.pipelines.shards import ParquetBytes
from compare2score.pipelines.sources import Entry

_BATCHES_AHEAD = 2
_PATIENCE = 0.2


@dataclass(frozen=True)
class Effort:
    """How to go about scoring; none of it changes a score.

    Attributes:
        batch: images scored at a time.
        workers: decoding processes.
        seconds: time limit of decoding one image.
    """

    batch: int = 8
    workers: int = 1
    seconds: float = 30.0


@dataclass(frozen=True)
class Outcome:
    """A row, how many seconds its decoding took, and whether its score was known before."""

    entry: Entry
    row: Row
    seconds: float
    reused: bool


Pending = deque[tuple[Entry, "Future[Decoded]"]]


def score_entries(
    scorer: Scorer,
    entries: Iterable[Entry],
    effort: Effort,
    known: KnownScores | None = None,
    stop: threading.Event | None = None,
) -> Iterator[list[Outcome]]:
    """Outcomes of all entries in order, up to `effort.batch` at a time.

    While one batch is scored, the next ones are decoded; no more than a few batches are held at a time.
    Once `stop` is set, what is decoded of the batch in flight is scored, and nothing more.
    """
    source, stop = iter(entries), stop or threading.Event()
    spec = scorer.bundle.manifest.image
    tables = ParquetBytes()
    with decoding_pool(
        spec, effort.workers, effort.seconds, None if known is None else known.__contains__
    ) as pool:
        pending: Pending = deque()
        while not stop.is_set():
            fill(pending, source, pool, tables, (1 + _BATCHES_AHEAD) * effort.batch + effort.workers)
            batch = ready(pending, effort.batch, stop)
            if not batch:
                return
            yield outcomes(scorer, batch, known)


def fill(
    pending: Pending, source: Iterator[Entry], pool: DecodingPool, tables: ParquetBytes, bound: int
) -> None:
    """Begins to decode entries until `bound` of them wait."""
    while len(pending) < bound and (entry := next(source, None)) is not None:
        data = None if entry.row is None or entry.error else tables.read(entry)
        wrong = None if entry.row is None or entry.error else refusal(entry, data)
        pending.append((entry, pool.submit(entry if wrong is None else replace(entry, error=wrong), data)))


def refusal(entry: Entry, data: bytes | None) -> tuple[ImageErrorCode, str] | None:
    """What is wrong with a table's row before it is decoded."""
    if data is None:
        return "not_found", f"{entry.path} holds no image in row {entry.row}; fill the row."
    if len(data) > MAX_BYTES:
        return (
            "too_large",
            f"{entry.path} has {len(data)} bytes, over the bound of {MAX_BYTES}; make it smaller.",
        )
    return None


def ready(pending: Pending, size: int, stop: threading.Event) -> list[tuple[Entry, Decoded]]:
    """The next `size` entries, waited for; fewer once `stop` is set."""
    batch: list[tuple[Entry, Decoded]] = []
    while pending and len(batch) < size:
        entry, future = pending[0]
        while not future.done() and not stop.is_set():
            wait([future], _PATIENCE)
        if not future.done():
            break
        pending.popleft()
        batch.append((entry, future.result()))
    return batch


def outcomes(
    scorer: Scorer, batch: Sequence[tuple[Entry, Decoded]], known: KnownScores | None
) -> list[Outcome]:
    """Scores what was decoded of a batch."""
    pixels = [decoded.fitted for _, decoded in batch if decoded.fitted is not None]
    spec = scorer.bundle.manifest.image
    scores = iter(scorer.score_pixels(normalize(np.stack(pixels), spec)) if pixels else ())
    results: list[Outcome] = []
    for entry, decoded in batch:
        row = Row(
            entry.path,
            scorer.bundle.identity,
            decoded.bytes,
            decoded.width,
            decoded.height,
            decoded.sha256,
        )
        reused = False
        if decoded.error is not None:
            row = replace(row, error_code=decoded.error[0], error_text=decoded.error[1])
        elif decoded.fitted is not None:
            score = next(scores)
            row = replace(row, value=score.value, q=score.q, std=score.std, probabilities=score.probabilities)
        elif known is not None and decoded.sha256 and (earlier := known.find(decoded.sha256)):
            row, reused = replace(earlier, path=entry.path), True
        results.append(Outcome(entry, row, decoded.seconds, reused))
    return results
