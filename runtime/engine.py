"""An engine: one graph compiled for a kind of GPU, and the record beside it that says for what.

Engines lie in `engines/TARGET/` inside a bundle, `decoder.engine` with its record `decoder.json`. They are no
part of the bundle: its manifest does not list them, and they hold on one kind of GPU and one version of
TensorRT only. The record is what tells; nothing that does not fit it is run. A record shows that an engine is
whole, not who made it, and an engine is a program: run none from a stranger, but build it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from compare2score.errors import BackendError
from compare2score.integrity import file_hash

if TYPE_CHECKING:
    from compare2score.bundle import Bundle

Target = Literal["tensorrt", "tensorrt-rtx"]
TARGETS: tuple[Target, ...] = get_args(Target)
Precision = Literal["fp32", "fp16", "int8", "int4", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
RECORD_VERSION = 1
Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
"""The smallest, the usual and the largest shape of each input that an engine was built for."""


@dataclass(frozen=True)
class EngineRecord:
    """What an engine is, as its sidecar says.

    Attributes:
        graph: which of the bundle's.
        target: the library that builds and runs it.
        version: of that library.
        compute_capabilities: of the GPUs that it runs on, e.g. ("sm86", "sm89").
        source: SHA-256 of the graph in the bundle that it was built from, see `source_hash`.
        precision: of its weights, and what of the activations is smaller than float32.
        profiles: shapes that it was built for.
        sha256, size: of the engine's file; bytes.
        seconds: that building took.
    """

    graph: str
    target: Target
    version: str
    compute_capabilities: tuple[str, ...]
    source: str
    precision: Precision
    profiles: tuple[Profile, ...]
    sha256: str
    size: int
    seconds: float

    @property
    def batches(self) -> tuple[int, ...]:
        """The most that each profile takes of what its first input counts."""
        return tuple(next(iter(profile.values()))[2][0] for profile in self.profiles)


def engine_path(folder: Path, target: str, graph: str) -> Path:
    """Where a bundle folder has an engine."""
    return folder / "engines" / target / f"{graph}.engine"


def record_path(folder: Path, target: str, graph: str) -> Path:
    """Where a bundle folder has an engine's record."""
    return engine_path(folder, target, graph).with_suffix(".json")


def built_targets(bundle: Bundle) -> tuple[Target, ...]:
    """The libraries that `bundle` has engines for; whether they fit is another question."""
    # Here, for numpy comes with it: verbs want this module's names for their help.
    from compare2score.bundle import GRAPHS

    return tuple(t for t in TARGETS if any(record_path(bundle.path, t, graph).exists() for graph in GRAPHS))


def source_hash(bundle: Bundle, graph: str) -> str:
    """SHA-256 of a bundle's graph, or of the hashes of it and of all files that hold its weights.

    Taken from the manifest, which the files were held against when the bundle was opened.
    """
    from compare2score.bundle import MANIFEST

    files = json.loads((bundle.path / MANIFEST).read_bytes())["files"]
    name = f"{graph}.onnx"
    shared = sorted(other for other in files if Path(other).suffix not in (".onnx", ".safetensors"))
    if not shared:
        return str(files[name]["sha256"])
    listed = "\n".join(str(files[other]["sha256"]) for other in (name, *shared))
    return hashlib.sha256(listed.encode()).hexdigest()


def write_engine(folder: Path, record: EngineRecord, content: bytes | memoryview) -> Path:
    """Writes an engine and its record into a bundle folder, in place of those there; returns the engine.

    The record comes last: an engine without one is none.
    """
    path, beside = (place(folder, record.target, record.graph) for place in (engine_path, record_path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    beside.write_text(json.dumps({"format": RECORD_VERSION, **asdict(record)}, indent=1) + "\n", "utf-8")
    return path


def read_record(folder: Path, target: str, graph: str) -> EngineRecord:
    """Reads an engine's record. Raises BackendError if there is none or it cannot be read."""
    path = record_path(folder, target, graph)
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BackendError(
            f"{folder} has no engine of {graph}.onnx for {target}; "
            f"build it with 'c2s build BUNDLE --target {target}'."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, target) from error
    try:
        if values["format"] != RECORD_VERSION:
            raise ValueError("another format version")
        known = {field.name: values[field.name] for field in fields(EngineRecord)}
        known["compute_capabilities"] = tuple(map(str, known["compute_capabilities"]))
        known["profiles"] = tuple(read_profile(profile) for profile in known["profiles"])
        if not known["profiles"]:
            raise ValueError("no profiles")
        return EngineRecord(**known)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unreadable(path, target) from error


def read_profile(values: dict[str, Any]) -> Profile:
    """A profile from JSON. Raises ValueError or TypeError if it is none."""
    profile: Profile = {}
    for name, shapes in values.items():
        smallest, usual, largest = (tuple(int(length) for length in shape) for shape in shapes)
        profile[name] = (smallest, usual, largest)
    return profile


def unreadable(path: Path, target: str) -> BackendError:
    return BackendError(f"{path} is no engine's record; {again(target)}.")


def again(target: str) -> str:
    """What to do about an engine that does not fit."""
    return f"build the engines again with 'c2s build BUNDLE --target {target} --rebuild'"


def check_record(record: EngineRecord, source: str, version: str, capability: str | None) -> None:
    """Holds a record against what is here.

    Args:
        record: of the engine.
        source: `source_hash` of the bundle's graph.
        version: of the library that would run the engine.
        capability: the GPU's compute capability, e.g. "sm86"; None to leave that open.

    Raises:
        BackendError: naming the first thing that differs, and how to build the engine again.
    """
    engine, rebuild = f"The {record.target} engine of {record.graph}.onnx", again(record.target)
    if record.source != source:
        raise BackendError(f"{engine} was built from another graph than the bundle's; {rebuild}.")
    if record.version != version:
        raise BackendError(
            f"{engine} was built by {record.target} {record.version}, and {version} is installed; {rebuild}."
        )
    if capability is not None and capability not in record.compute_capabilities:
        built = joined(record.compute_capabilities)
        raise BackendError(f"{engine} was built for {built}, and this GPU is {capability}; {rebuild}.")


def joined(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def read_engine(folder: Path, record: EngineRecord) -> bytes:
    """Reads the engine that belongs to a record. Raises BackendError if it is missing or was altered."""
    path = engine_path(folder, record.target, record.graph)
    try:
        whole = path.stat().st_size == record.size and file_hash(path) == record.sha256
        if not whole:
            raise BackendError(
                f"{path} was altered: its SHA-256 is not the one in its record; {again(record.target)}."
            )
        return path.read_bytes()
    except OSError as error:
        raise BackendError(f"{path} cannot be read ({error.strerror}); {again(record.target)}.") from error
