"""External data: which parts of which files an ONNX graph takes its weights from.

A reader of ONNX's protobuf that knows only the way to a tensor's external data (onnx.proto: ModelProto,
GraphProto, NodeProto, AttributeProto, TensorProto), so that the lean runtime needs no onnx package. It is
strict: what it does not understand it refuses, since a reader that is more lenient would follow it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# The key of the entry that names the file, as protobuf writes it: tag 1, length 8, text; either number may be
# padded. An entry cannot name a file without these bytes.
_MARK = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
MARK_BYTES = 32
"""No mark that any reader takes is longer."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""For each kind of message, the kinds of its fields, by their numbers, that lead to a tensor."""
_EXTERNAL_DATA = 13
_DIGITS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Span:
    """Bytes of another file that a tensor is made of; `length` is None for all from `offset` on."""

    file: str
    offset: int
    length: int | None


def mentions_external_data(content: bytes) -> bool:
    """Whether the mark of external data is in `content`; without it, a graph takes none."""
    # A plain search first: it is much faster, and almost always enough.
    return b"location" in content and _MARK.search(content) is not None


def external_spans(model: bytes) -> list[Span]:
    """All that an ONNX model takes from other files.

    Raises ValueError if that cannot be told for certain: the model is no protobuf, a tensor states more or
    other than file, offset and length, or the mark of external data occurs where no tensor has it.
    """
    spans = [span_of(entries) for entries in external_entries(memoryview(model), "model", 0, len(model))]
    if len(spans) != len(_MARK.findall(model)):
        raise ValueError("external data are spoken of outside a tensor")
    return spans


def external_entries(model: memoryview, kind: str, start: int, end: int) -> Iterator[list[tuple[str, str]]]:
    """Keys and values of each tensor with external data inside a message of a kind, from start to end."""
    # A list instead of recursion: depth is the file's to choose.
    waiting = [(kind, start, end)]
    while waiting:
        kind, start, end = waiting.pop()
        inner = _INNER.get(kind, {})
        entries = []
        for number, wire, begin, stop in message_fields(model, start, end):
            if number in inner:
                if wire != _BYTES:
                    raise ValueError("a message is not written as one")
                waiting.append((inner[number], begin, stop))
            elif kind == "tensor" and number == _EXTERNAL_DATA:
                entries.append(text_pair(model, begin, stop))
        if entries:
            yield entries


def message_fields(model: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type and content's place of every field of the message from start to end."""
    place = start
    while place < end:
        tag, place = varint(model, place, end)
        number, wire = tag >> 3, tag & 7
        begin = place
        if wire == _VARINT:
            _, place = varint(model, place, end)
        elif wire == _BYTES:
            length, begin = varint(model, place, end)
            place = begin + length
        elif wire in (_FIXED32, _FIXED64):
            place += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("a field has no known wire type")
        if number == 0 or place > end:
            raise ValueError("a field ends outside its message")
        yield number, wire, begin, place


def varint(model: memoryview, place: int, end: int) -> tuple[int, int]:
    """A number and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            break
        byte = model[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number does not end")


def text_pair(model: memoryview, start: int, end: int) -> tuple[str, str]:
    """Key and value of an entry that holds each once, in this order, and nothing else."""
    fields = list(message_fields(model, start, end))
    if [(number, wire) for number, wire, _, _ in fields] != [(1, _BYTES), (2, _BYTES)]:
        raise ValueError("an entry of external data is not one key and one value")
    key, value = (str(model[begin:stop], "utf-8") for _, _, begin, stop in fields)
    return key, value


def span_of(entries: list[tuple[str, str]]) -> Span:
    """The span that a tensor's entries state."""
    stated = dict(entries)
    if len(stated) != len(entries) or not {"location"} <= stated.keys() <= {"location", "offset", "length"}:
        raise ValueError("external data are not one file, offset and length")
    numbers = {key: value for key, value in stated.items() if key != "location"}
    if not all(_DIGITS.fullmatch(value) for value in numbers.values()):
        raise ValueError("external data's offset or length is no number")
    length = int(numbers["length"]) if "length" in numbers else None
    return Span(stated["location"], int(numbers.get("offset", "0")), length)
