"""Whether a bundle's files are those that its manifest lists, and its graphs made of nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from compare2score.errors import BundleError
from compare2score.external_data import MARK_BYTES, external_spans, mentions_external_data


def check_files(folder: Path, files: dict[str, Any], needed: Iterable[str]) -> None:
    """Compares every listed file with its size and hash, and sees what graphs take from which.

    Raises:
        BundleError: a needed file is not listed, a listed one differs, or a graph takes data from elsewhere.
        KeyError, TypeError, ValueError, OSError: the list is none, or a file cannot be read.
    """
    if not isinstance(files, dict) or not all(isinstance(record, dict) for record in files.values()):
        raise ValueError("files is no object of names, each with bytes and sha256")
    for name in sorted(set(needed) - set(files)):
        raise BundleError(f"The manifest of {folder} does not list {name}; export the bundle again.")
    for name, record in files.items():
        # A name with a folder in it could lead out of the bundle; Windows' rules cover the others'.
        if PureWindowsPath(name).name != name:
            raise BundleError(
                f"The manifest of {folder} lists {name!r}, which is no plain file name; do not use it."
            )
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path} is missing; copy the whole bundle again.")
        if path.stat().st_size != record["bytes"]:
            raise BundleError(f"{path} is truncated or of another size; copy the whole bundle again.")
        digest, external = read_through(path)
        if digest != record["sha256"]:
            raise BundleError(
                f"{path} was altered: its SHA-256 is not the manifest's; copy the whole bundle again."
            )
        if external:
            check_external_data(path, files)


def read_through(path: Path) -> tuple[str, bool]:
    """SHA-256 of a file in hexadecimal, and whether it is a graph that mentions external data."""
    digest, mentioned, before, searched = hashlib.sha256(), False, b"", path.suffix == ".onnx"
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if searched and not mentioned:
                mentioned = mentions_external_data(before + block)
                before = block[-MARK_BYTES:]
    return digest.hexdigest(), mentioned


def check_external_data(graph: Path, files: dict[str, Any]) -> None:
    """Raises BundleError unless all that a graph takes from other files is inside files that are listed.

    A listed file lies in the bundle and has been compared with its hash; ONNX Runtime 1.22 would read any.
    """
    try:
        spans = external_spans(graph.read_bytes())
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{graph} takes data from other files in a way that is not understood ({reason}); do not use it."
        ) from error
    for span in spans:
        path = graph.with_name(span.file) if span.file in files else None
        if path is None:
            raise BundleError(
                f"{graph} takes data from another file, which may lie anywhere and which no hash of the "
                "manifest covers; do not use it."
            )
        # Its hash fits, but a link may point to another file by the time that the graph is opened.
        if path.is_symlink():
            raise BundleError(f"{path} is a link, and {graph.name} takes data from it; put the file there.")
        if span.offset + (span.length or 0) > files[span.file]["bytes"]:
            raise BundleError(
                f"{graph} takes data from beyond the end of {span.file}; export the bundle again."
            )


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return read_through(path)[0]
