"""The bundle: a folder that holds a comparator ready to run.

`manifest.json`, the graphs `vision.onnx`, `prefix.onnx`, `decoder.onnx`, and `anchors.safetensors`;
docs/bundle.md describes the format.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from compare2score.backends import Floats, Prefix
from compare2score.errors import BundleError
from compare2score.image import ImageSpec
from compare2score.integrity import check_files
from compare2score.integrity import file_hash as file_hash

FORMAT_VERSION = 1
GRAPHS = ("vision", "prefix", "decoder")
MANIFEST = "manifest.json"
ANCHORS = "anchors.safetensors"
LARGE = 1 << 28
"""Bytes from which on a file is linked instead of copied, where that is possible."""
EMBEDDED = Path(__file__).parent / "bundles" / "nano"
"""The bundle inside the package."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """What the runtime keeps of A anchor images: no photographs.

    Attributes:
        names: where each came from, [A], for people.
        matrix: preference matrix [A, A] float64, entry (i, j) = P(i preferred over j).
        visual_tokens: [A, T, D] float32.
        prefix: the decoder's keys and values of each.
    """

    names: tuple[str, ...]
    matrix: NDArray[np.float64]
    visual_tokens: Floats
    prefix: Prefix


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says of a comparator, but for the anchors and the files' hashes.

    Attributes:
        model: the comparator's name.
        precision: of the graphs, e.g. "float32" or "int8".
        image: preprocessing.
        prompt: the question, with its two image places.
        levels: level words, from lowest to highest.
        level_weights: contribution of each level's probability to the preference.
        temperature: divides the level logits.
        images_per_call: how many images a graph may take at once without one changing another's result;
            None for any number. Dynamic quantisation scales activations by a call's largest: 1 there.
        notes: free text values for people (training data, drift, licences).
    """

    model: str
    precision: str
    image: ImageSpec
    prompt: str
    levels: tuple[str, ...]
    level_weights: tuple[float, ...]
    temperature: float
    images_per_call: int | None
    notes: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle whose files are whole. `anchors` is None until they are built."""

    path: Path
    manifest: Manifest
    anchors: Anchors | None
    identity: str
    """SHA-256 of the manifest, which holds every file's: equal for equal bundles."""

    def graph(self, name: str) -> Path:
        """Path of one of GRAPHS."""
        return self.path / f"{name}.onnx"


def open_bundle(path: str | Path | None = None) -> Bundle:
    """Opens a bundle folder, the embedded one if `path` is None, and checks every file's hash.

    Raises BundleError if the folder is no bundle, is truncated or altered, or has another format version.
    """
    folder = EMBEDDED if path is None else Path(path)
    try:
        raw = (folder / MANIFEST).read_bytes()
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder} is no bundle: its {MANIFEST} cannot be read; give a bundle folder."
        ) from error
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / MANIFEST} is not JSON; export the bundle again.") from error
    if not isinstance(values, dict):
        raise BundleError(f"{folder / MANIFEST} is no JSON object; export the bundle again.")
    version = values.get("format")
    if type(version) is not int or version != FORMAT_VERSION:
        stated = repr(version)[:20] if isinstance(version, (int, float, str)) else "unstated"
        raise BundleError(
            f"{folder} has bundle format {stated}, this version reads {FORMAT_VERSION}; "
            "export it again or install the version that wrote it."
        )
    try:
        needed = [f"{graph}.onnx" for graph in GRAPHS] + ([] if values["anchors"] is None else [ANCHORS])
        check_files(folder, values["files"], needed)
        manifest = read_manifest(values)
        anchors = None if values["anchors"] is None else read_anchors(folder, values["anchors"])
    except KeyError as error:
        raise BundleError(f"{folder} does not state {error}; export the bundle again.") from error
    except (TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{folder} does not fit together ({reason}); export the bundle again.") from error
    except OSError as error:
        raise BundleError(f"{folder} cannot be read ({error.strerror}); check its files.") from error
    return Bundle(folder, manifest, anchors, hashlib.sha256(raw).hexdigest())


def read_manifest(values: dict[str, Any]) -> Manifest:
    """Reads the comparator's part of a manifest. Raises KeyError, TypeError, ValueError or BundleError."""
    known = {field.name: values[field.name] for field in fields(Manifest)}
    known["image"] = ImageSpec.from_json(known["image"])
    known["levels"] = texts(known["levels"], "levels")
    weights = known["level_weights"]
    if not isinstance(weights, list) or not all(is_number(weight, 0, 1) for weight in weights):
        raise ValueError("level_weights are not numbers from 0 to 1")
    known["level_weights"] = tuple(float(weight) for weight in weights)
    if not len(known["levels"]) == len(known["level_weights"]) > 1:
        raise ValueError("levels and level_weights differ in number or are fewer than two")
    # Bounds that keep the division of any float32 logit finite.
    if not is_number(known["temperature"], 1e-6, 1e6):
        raise ValueError("temperature is no number from 1e-6 to 1e6")
    known["temperature"] = float(known["temperature"])
    per_call = known["images_per_call"]
    if per_call is not None and not (type(per_call) is int and per_call >= 1):
        raise ValueError("images_per_call is neither null nor a whole number above 0")
    for name in ("model", "precision", "prompt"):
        texts([known[name]], name)
    if not isinstance(known["notes"], dict):
        raise ValueError("notes are no object")
    return Manifest(**known)


def texts(value: object, name: str) -> tuple[str, ...]:
    """A JSON list of texts. Raises ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} is not text")
    return tuple(value)


def is_number(value: object, low: float, high: float) -> bool:
    """Whether a JSON value is a number from `low` to `high`; NaN and true are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def read_anchors(folder: Path, values: dict[str, Any]) -> Anchors:
    """Reads the anchors' tensors. Raises KeyError, TypeError, ValueError or SafetensorError."""
    names = texts(values["names"], "anchors.names")
    matrix = np.array(values["matrix"])
    shape = (len(names), len(names))
    # Written so that NaN, which compares false with everything, is refused as well.
    if matrix.shape != shape or matrix.dtype.kind not in "if" or not ((matrix >= 0) & (matrix <= 1)).all():
        raise ValueError("the anchors' preference matrix is not probabilities, a row and a column an anchor")
    tensors = load_file(folder / ANCHORS)
    tokens, prefix = tensors["visual_tokens"], Prefix(tensors["keys"], tensors["values"])
    if tokens.dtype != np.float32 or prefix.keys.dtype not in (np.float32, np.float16):
        raise ValueError("the anchors' tensors are neither float32 nor, keys and values, float16")
    if prefix.keys.dtype != prefix.values.dtype or prefix.keys.shape != prefix.values.shape:
        raise ValueError("the anchors' keys and values differ in kind or shape")
    if tokens.ndim != 3 or prefix.keys.ndim != 5 or any(len(t) != len(names) for t in (tokens, *prefix)):
        raise ValueError("the anchors' tensors have other dimensions, or not a row an anchor")
    if len(names) < 2:
        raise ValueError("fewer than two anchors")
    return Anchors(names, matrix.astype(np.float64), tokens, prefix)


def write_bundle(folder: Path, manifest: Manifest, graphs: Path, anchors: Anchors | None) -> Bundle:
    """Writes a bundle and opens it again.

    Args:
        folder: where; it must not exist yet. It appears whole or not at all.
        manifest: what it says of itself.
        graphs: a folder (another bundle, say) whose files are taken, but for its manifest and anchors.
        anchors: what to keep of the anchors, or None to build them later.

    Raises:
        BundleError: `folder` exists already, or what should be written makes no bundle.
    """
    refuse_existing(folder)
    # The process's number, so that nothing but what this call made is ever removed.
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    aside.mkdir(parents=True)
    try:
        fill_bundle(aside, manifest, graphs, anchors)
        checked = open_bundle(aside)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return replace(checked, path=folder)


def refuse_existing(folder: Path) -> None:
    """Raises BundleError if something is where a bundle should be written; ask before long work, too."""
    if folder.exists():
        raise BundleError(f"{folder} exists already; choose another folder or remove it first.")


def place_file(source: Path, target: Path) -> None:
    """Copies a file, or links it where it is large: no bundle's file is changed, so two may share one."""
    if source.stat().st_size >= LARGE and not source.is_symlink():
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            pass
        else:
            return
    shutil.copyfile(source, target)


def fill_bundle(folder: Path, manifest: Manifest, graphs: Path, anchors: Anchors | None) -> None:
    """Writes a bundle's files into an empty folder, the manifest last."""
    for source in sorted(path for path in graphs.iterdir() if path.is_file()):
        if source.name not in (MANIFEST, ANCHORS):
            place_file(source, folder / source.name)
    if anchors is not None:
        tensors = {"visual_tokens": anchors.visual_tokens, **anchors.prefix._asdict()}
        content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
        # Not by save_file, whose file nobody but its owner may read.
        (folder / ANCHORS).write_bytes(content)
    values = {
        "format": FORMAT_VERSION,
        **asdict(manifest),
        "image": manifest.image.to_json(),
        "anchors": anchors and {"names": anchors.names, "matrix": anchors.matrix.tolist()},
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": file_hash(path)}
            for path in sorted(folder.iterdir())
        },
    }
    # In bytes, so that the identity is the same on every system.
    (folder / MANIFEST).write_bytes((json.dumps(values, indent=1) + "\n").encode())
