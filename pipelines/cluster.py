"""The Ray engine: the same outcomes as the local one, from a pool of scorers on Ray Data.

Files must be found at the same paths on every machine; bytes that a Parquet table holds travel with their
entries. Without a cluster's address (RAY_ADDRESS), Ray starts on this machine alone.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from compare2score import Scorer
from compare2score.errors import CollectionError, MissingExtraError
from compare2score.pipelines.decoding import decoding_pool
from compare2score.pipelines.known import KnownScores, open_index
from compare2score.pipelines.rows import from_line, to_line
from compare2score.pipelines.scoring import Effort, Outcome, outcomes, refusal
from compare2score.pipelines.shards import ParquetBytes
from compare2score.pipelines.sources import Entry

_RETRIES = 3
"""How often an actor that died is started again, and its batch given to another."""
_ENTRIES_AT_ONCE = 4096
_BYTES_AT_ONCE = 256 << 20
_STORE_BYTES = 512 << 20
_IDLE_THREAD = "Prefetcher"
"""A thread of Ray Data that never ends and, once its run is over, does nothing."""
_WINDING_UP = 15.0
"""Seconds that a stopped run's threads are given to end."""

Task = dict[str, Any]


class ScoringActor:
    """A scorer with a decoding process of its own, for one Ray actor."""

    def __init__(self, bundle: str, backend: str, effort: Effort, known: Any) -> None:
        self.scorer = Scorer(bundle, backend=backend, threads=1)
        self.stack = ExitStack()
        self.known: KnownScores | None = None
        if known is not None:
            import ray

            index = Path(self.stack.enter_context(tempfile.TemporaryDirectory()), "known.sqlite")
            index.write_bytes(ray.get(known))
            self.known = self.stack.enter_context(open_index(index))
        asked = None if self.known is None else self.known.__contains__
        spec = self.scorer.bundle.manifest.image
        self.pool = self.stack.enter_context(decoding_pool(spec, 1, effort.seconds, asked))

    def __call__(self, batch: Any) -> Any:
        """Rows, as lines, of a batch of tasks; both are Arrow tables."""
        tasks = [(Entry.from_line(task["entry"]), task["data"]) for task in batch.to_pylist()]
        pending = [(entry, self.pool.submit(entry, data)) for entry, data in tasks]
        decoded = [(entry, future.result()) for entry, future in pending]
        results = outcomes(self.scorer, decoded, self.known)
        anchors = len(self.scorer.anchors.names)
        columns = {
            "line": [to_line(result.row, anchors) for result in results],
            "seconds": [result.seconds for result in results],
            "reused": [result.reused for result in results],
        }
        import pyarrow

        return pyarrow.table(columns)


def score_on_ray(
    scorer: Scorer,
    entries: Iterable[Entry],
    effort: Effort,
    known: KnownScores | None = None,
    stop: threading.Event | None = None,
) -> Iterator[list[Outcome]]:
    """As `scoring.score_entries`, on Ray Data with `effort.workers` actors of one core each.

    An actor that dies, or loses its machine, is replaced up to `_RETRIES` times, and its batch done again.

    Raises MissingExtraError without Ray, CollectionError if Ray gives up.
    """
    require_ray()
    import ray
    import ray.data
    from ray.exceptions import RayError

    stop = stop or threading.Event()
    with ExitStack() as stack:
        try:
            start_ray(ray, stack, effort.workers)
            index = None if known is None else ray.put(known_bytes(known))
            arguments = (str(scorer.bundle.path.absolute()), requested(scorer), effort, index)
            tasks = read_tasks(entries)
            while not stop.is_set() and (chunk := segment(tasks)):
                yield from score_segment(ray, chunk, effort, arguments, stop)
        except RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise CollectionError(
                f"Ray has given up ({reason}); the rows so far are safe: go on with --resume, or without Ray."
            ) from error


def require_ray() -> None:
    """Raises MissingExtraError without Ray Data."""
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("filter", "The engine 'ray'") from error


def requested(scorer: Scorer) -> str:
    """The name of a scorer's backend, for another machine to open."""
    return scorer.backend.name.partition(" ")[0]


def start_ray(ray: Any, stack: ExitStack, workers: int) -> None:
    """Joins the cluster that RAY_ADDRESS names or this process is in already, else starts Ray here."""
    if not ray.is_initialized():
        here = {} if "RAY_ADDRESS" in os.environ else local_options(workers)
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
        stack.callback(ray.shutdown)
    stack.callback(await_threads, set(threading.enumerate()))
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars

    def restore() -> None:
        context.execution_options.preserve_order, context.enable_progress_bars = before

    stack.callback(restore)
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def await_threads(kept: set[threading.Thread]) -> None:
    """Waits until the threads that came after those in `kept` have ended, but for the caller's own.

    A stopped run leaves Ray Data's threads winding up; one that asks Ray after its shutdown ends the process.
    """
    until = time.monotonic() + _WINDING_UP
    for thread in set(threading.enumerate()) - kept - {threading.current_thread()}:
        if thread.name != _IDLE_THREAD:
            thread.join(max(0.0, until - time.monotonic()))


def local_options(workers: int) -> dict[str, Any]:
    """Settings of a Ray of our own: no dashboard, a small store, and a core more than the actors take."""
    return {
        "address": "local",
        "num_cpus": workers + 1,
        "object_store_memory": _STORE_BYTES,
        "include_dashboard": False,
    }


def known_bytes(known: KnownScores) -> bytes:
    """The whole index, to be sent to other machines."""
    (path,) = (row[2] for row in known.connection.execute("PRAGMA database_list") if row[1] == "main")
    return Path(path).read_bytes()


def read_tasks(entries: Iterable[Entry]) -> Iterator[Task]:
    """What is sent of every entry: itself as a line, and bytes where a table holds them."""
    tables = ParquetBytes()
    for entry in entries:
        data = None
        if entry.row is not None and entry.error is None:
            data = tables.read(entry)
            wrong = refusal(entry, data)
            entry, data = (entry, data) if wrong is None else (replace(entry, error=wrong), None)
        yield {"entry": entry.to_line(), "data": data}


def segment(tasks: Iterator[Task]) -> list[Task]:
    """The next tasks, as many as the driver may hold."""
    chunk: list[Task] = []
    room = _BYTES_AT_ONCE
    for task in islice(tasks, _ENTRIES_AT_ONCE):
        chunk.append(task)
        room -= len(task["data"] or b"")
        if room < 0:
            break
    return chunk


def score_segment(
    ray: Any, chunk: list[Task], effort: Effort, arguments: tuple[Any, ...], stop: threading.Event
) -> Iterator[list[Outcome]]:
    """Outcomes of a segment's tasks, in order."""
    import pyarrow

    # Tables, because Ray would make arrays of other values, which lose the zeros that bytes end in.
    schema = pyarrow.schema([("entry", pyarrow.string()), ("data", pyarrow.large_binary())])
    starts = range(0, len(chunk), effort.batch)
    blocks = [pyarrow.Table.from_pylist(chunk[start : start + effort.batch], schema) for start in starts]
    data = ray.data.from_arrow(blocks).map_batches(
        ScoringActor,
        batch_format="pyarrow",
        fn_constructor_args=arguments,
        batch_size=effort.batch,
        concurrency=effort.workers,
        num_cpus=1,
        max_restarts=_RETRIES,
        max_task_retries=_RETRIES,
    )
    place = 0
    for batch in data.iter_batches(batch_size=effort.batch, batch_format="pyarrow", prefetch_batches=0):
        rows = batch.to_pylist()
        yield [
            Outcome(
                Entry.from_line(chunk[place + n]["entry"]), from_line(r["line"]), r["seconds"], r["reused"]
            )
            for n, r in enumerate(rows)
        ]
        place += len(rows)
        if stop.is_set():
            return
