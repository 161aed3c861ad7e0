"""The program of a decoding process: bytes of strangers in, pixels or one named error out.

It is started by `decoding` and talks over its standard input and output in frames of JSON and raw bytes:
nothing that it says can run code in the process that started it, even if a decoder was taken over.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO

from compare2score.decode import load_image
from compare2score.errors import ImageError
from compare2score.image import ImageSpec, fit_square

MAX_BYTES = 1 << 30
"""Of an image inside a shard, which is read whole: more than 120 megapixels of 16-bit RGBA."""
_FRAME = struct.Struct("<II")
_BLOCK = 1 << 20
_MEMORY = 4 << 30
"""Bytes a decoder may take: twice what the largest image that is decoded needs."""


def write_frame(stream: BinaryIO, values: dict[str, Any], data: bytes = b"") -> None:
    """Writes one message: its lengths, JSON, raw bytes."""
    text = json.dumps(values).encode()
    stream.write(_FRAME.pack(len(text), len(data)))
    stream.write(text)
    stream.write(data)
    stream.flush()


def read_frame(stream: BinaryIO, text_limit: int, data_limit: int) -> tuple[dict[str, Any], bytes]:
    """Reads one message. Raises EOFError where it ends early, ValueError if it is none or too long."""
    text_length, data_length = _FRAME.unpack(read_exactly(stream, _FRAME.size))
    if text_length > text_limit or data_length > data_limit:
        raise ValueError("a frame is too long")
    values = json.loads(read_exactly(stream, text_length))
    if not isinstance(values, dict):
        raise ValueError("a frame is no object")
    return values, read_exactly(stream, data_length)


def read_exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise EOFError
    return data


def serve() -> None:
    """Answers requests until the other side is gone."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What a library prints must not end up among the frames.
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    limit_memory()
    with contextlib.suppress(EOFError, BrokenPipeError):
        settings, _ = read_frame(requests, _BLOCK, 0)
        spec = ImageSpec.from_json(settings["spec"])
        write_frame(replies, {"ready": True})
        while True:
            request, data = read_frame(requests, _BLOCK, MAX_BYTES)
            # The system ends this process should the one that watches its time be gone.
            set_alarm(settings["seconds"] + 5)
            write_frame(replies, *answer(request, data, spec))
            set_alarm(0)


def answer(request: dict[str, Any], data: bytes, spec: ImageSpec) -> tuple[dict[str, Any], bytes]:
    """Length and hash of the image; unless only those are asked for, its size and the fitted pixels."""
    known: dict[str, Any] = {"bytes": None, "sha256": None}
    try:
        held = data if request["held"] else member(request)
        known["bytes"], known["sha256"] = digest(request["file"] if held is None else held)
        if request["hash_only"]:
            return known, b""
        pixels = load_image(request["file"] if held is None else held, name=request["name"])
        fitted = fit_square(pixels, spec)
    except ImageError as error:
        return known | {"code": error.code, "text": str(error)}, b""
    except MemoryError:
        text = f"{request['name']} needs more memory than its decoder may take; scale it down first."
        return known | {"code": "too_large", "text": text}, b""
    height, width, _ = pixels.shape
    return known | {"width": width, "height": height}, fitted.tobytes()


def member(request: dict[str, Any]) -> bytes | None:
    """The bytes of a shard's member; None for a file of its own. Raises ImageError."""
    name, offset, size = request["name"], request["offset"], request["size"]
    if offset is None:
        return None
    if size > MAX_BYTES:
        raise ImageError(
            "too_large", f"{name} has {size} bytes, over the bound of {MAX_BYTES}; make it smaller."
        )
    try:
        with Path(request["file"]).open("rb") as shard:
            shard.seek(offset)
            data = shard.read(size)
    except FileNotFoundError as error:
        raise ImageError("not_found", f"{name}: the shard is gone; put it back.") from error
    except OSError as error:
        raise ImageError("io_error", f"{name} cannot be read ({error.strerror}); check its shard.") from error
    if len(data) < size:
        raise ImageError(
            "truncated", f"{name} ends with its shard, before its data do; fetch the shard again."
        )
    return data


def digest(source: str | bytes) -> tuple[int | None, str | None]:
    """Length and SHA-256 of bytes, or of a regular file that can be read."""
    if isinstance(source, bytes):
        return len(source), hashlib.sha256(source).hexdigest()
    length, digest = 0, hashlib.sha256()
    try:
        # Asked before opening: opening a pipe would wait for its other end.
        if not stat.S_ISREG(Path(source).stat().st_mode):
            return None, None
        with io.FileIO(source) as file:
            while block := file.read(_BLOCK):
                length += len(block)
                digest.update(block)
    except (OSError, ValueError):
        # Decoding says what is wrong with it.
        return None, None
    return length, digest.hexdigest()


def set_alarm(seconds: float) -> None:
    """Has the system end this process after so many seconds, where it can; 0 for never."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def limit_memory() -> None:
    """Bounds the memory of this process, where the system can."""
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        bound = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
