"""Decoding in processes of its own: a crash, an endless loop or too much memory costs one image.

A library of process pools would read pickled results, with which a decoder that a hostile file has taken
over could run code here; these processes answer in JSON and raw bytes (`decoder`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from compare2score.errors import CollectionError, ImageErrorCode
from compare2score.image import ImageSpec
from compare2score.pipelines.decoder import MAX_BYTES, read_frame, write_frame
from compare2score.pipelines.sources import Entry

# The working folder leaves the path: it may be full of strangers' files, a json.py among them.
_PROGRAM = (
    "import sys; sys.path[:] = [p for p in sys.path if p]\n"
    "from compare2score.pipelines.decoder import serve; serve()"
)
_START_SECONDS = 120.0
_TEXT_LIMIT = 1 << 16
_CODES = get_args(ImageErrorCode)
_ATTEMPTS = 2
"""A decoder that dies may have been ended from outside: the image is blamed when it happens again."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What is known of one entry.

    Attributes:
        bytes, sha256: of its data; None where it cannot be read.
        width, height: as shown; None without pixels.
        fitted: the comparator's square uint8 [S, S, 3], see `image.fit_square`; None with an error, or for
            an image that is known already.
        error: code and text.
        seconds: how long it took, in the decoder alone.
    """

    bytes: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    fitted: NDArray[np.uint8] | None = None
    error: tuple[ImageErrorCode, str] | None = None
    seconds: float = 0.0


class DecoderDiedError(Exception):
    """A decoding process ended, or talked nonsense, before it answered."""


class DecoderTimeoutError(Exception):
    """A decoding process was ended because its time was over."""


class Decoder:
    """One decoding process. It is started when first asked, and again after it died."""

    def __init__(self, spec: ImageSpec, seconds: float) -> None:
        self.spec, self.seconds = spec, seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False

    def ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """The process's answer. Raises DecoderDiedError, DecoderTimeoutError; as `start` if it must start."""
        if self.process is None:
            self.start()
        return self.exchange(request, data, self.seconds)

    def start(self) -> None:
        """Starts the process. Raises CollectionError if it does not, DecoderDiedError once this is closed."""
        # Of its own session: Ctrl-C is for the process that has rows to save.
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads, "PYTHONSAFEPATH": "1"},
            start_new_session=True,
        )
        if self.closed:
            self.end()
            raise DecoderDiedError
        try:
            self.exchange({"spec": self.spec.to_json(), "seconds": self.seconds}, b"", _START_SECONDS)
        except (DecoderDiedError, DecoderTimeoutError) as error:
            raise CollectionError(
                "A decoding process does not start; check that this Python can run "
                "'import compare2score', and that memory is left."
            ) from error

    def exchange(self, values: dict[str, Any], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        process = cast("subprocess.Popen[bytes]", self.process)
        stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        over = threading.Event()

        def stop() -> None:
            over.set()
            process.kill()

        watch = threading.Timer(seconds, stop)
        watch.daemon = True
        watch.start()
        try:
            write_frame(cast("Any", stdin), values, data)
            return read_frame(cast("Any", stdout), _TEXT_LIMIT, 3 * self.spec.size**2)
        except (OSError, EOFError, ValueError) as error:
            self.end()
            raise (DecoderTimeoutError if over.is_set() else DecoderDiedError) from error
        finally:
            watch.cancel()

    def end(self) -> None:
        """Ends the process, whatever it is doing."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                # Closing writes what is left to write.
                with contextlib.suppress(OSError):
                    cast("IO[bytes]", stream).close()

    def decode(self, entry: Entry, data: bytes | None, known: Callable[[str], bool] | None) -> Decoded:
        """One entry's outcome; `data` where its bytes were read already, else the decoder reads them."""
        start = time.perf_counter()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if self.process is None:
                    self.start()
                    start = time.perf_counter()
                return self.try_decode(entry, data, known, start)
            except DecoderTimeoutError:
                text = f"{entry.path} was not decoded within {self.seconds:g} s; allow more or save it anew."
                return Decoded(error=("timeout", text), seconds=time.perf_counter() - start)
            except DecoderDiedError:
                # A process that talks nonsense is not asked again.
                self.end()
                if attempt == _ATTEMPTS or self.closed:
                    break
        text = f"{entry.path} ends the process that decodes it, {_ATTEMPTS} times; save it anew."
        return Decoded(error=("unsupported", text), seconds=time.perf_counter() - start)

    def try_decode(
        self, entry: Entry, data: bytes | None, known: Callable[[str], bool] | None, start: float
    ) -> Decoded:
        request: dict[str, Any] = {
            "name": entry.path,
            "file": entry.file,
            "offset": entry.offset,
            "size": entry.size,
            "held": data is not None,
            "hash_only": known is not None,
        }
        answer, fitted = self.ask(request, data or b"")
        if known is not None and "code" not in answer:
            sha256 = answer["sha256"]
            if sha256 is not None and known(sha256):
                return self.decoded(answer, b"", start)
            answer, fitted = self.ask({**request, "hash_only": False}, data or b"")
        return self.decoded(answer, fitted, start)

    def decoded(self, answer: dict[str, Any], fitted: bytes, start: float) -> Decoded:
        """An answer that has been checked. Raises DecoderDiedError if it is none."""
        size, seconds = self.spec.size, time.perf_counter() - start
        length, sha256 = answer.get("bytes"), answer.get("sha256")
        numbers = (length, answer.get("width"), answer.get("height"))
        whole = all(number is None or type(number) is int for number in numbers)
        if not whole or not (sha256 is None or (isinstance(sha256, str) and len(sha256) == 64)):
            raise DecoderDiedError
        if "code" in answer:
            code, text = answer["code"], answer.get("text")
            if code not in _CODES or not isinstance(text, str):
                raise DecoderDiedError
            return Decoded(length, sha256, error=(code, text), seconds=seconds)
        if len(fitted) not in (0, 3 * size**2):
            raise DecoderDiedError
        pixels = np.frombuffer(fitted, np.uint8).reshape(size, size, 3) if fitted else None
        return Decoded(length, sha256, answer.get("width"), answer.get("height"), pixels, seconds=seconds)


@dataclass(frozen=True)
class DecodingPool:
    """Several decoding processes, a thread for each that waits for it."""

    threads: ThreadPoolExecutor
    decoder: Callable[[], Decoder]
    known: Callable[[str], bool] | None

    def submit(self, entry: Entry, data: bytes | None = None) -> Future[Decoded]:
        """Begins to decode an entry."""
        if entry.error is not None:
            done: Future[Decoded] = Future()
            done.set_result(Decoded(error=entry.error))
            return done
        return self.threads.submit(lambda: self.decoder().decode(entry, data, self.known))


@contextmanager
def decoding_pool(
    spec: ImageSpec, workers: int, seconds: float, known: Callable[[str], bool] | None = None
) -> Iterator[DecodingPool]:
    """A pool of `workers` processes that are gone when the context ends, whatever they are doing then.

    Args:
        spec: the comparator's input.
        workers: how many processes.
        seconds: time limit of one image.
        known: asked with the SHA-256 of an image before it is decoded; where it says yes, it is not.
    """
    own = threading.local()
    decoders: list[Decoder] = []

    def decoder() -> Decoder:
        if not hasattr(own, "decoder"):
            own.decoder = Decoder(spec, seconds)
            decoders.append(own.decoder)
        return cast("Decoder", own.decoder)

    threads = ThreadPoolExecutor(workers, thread_name_prefix="decoding")
    try:
        yield DecodingPool(threads, decoder, known)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for one in decoders:
            one.closed = True
            process = one.process
            if process is not None:
                process.kill()
        threads.shutdown()
        for one in decoders:
            one.end()


__all__ = ["MAX_BYTES", "Decoded", "Decoder", "DecodingPool", "decoding_pool"]
