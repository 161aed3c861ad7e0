"""`c2s info`: what a bundle is, and what would run it here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from compare2score.cli.console import print_facts, print_json, print_table, printable
from compare2score.cli.options import Bundle, Json, examples
from compare2score.errors import BackendError

if TYPE_CHECKING:
    import compare2score

EXAMPLES = examples("c2s info", "c2s info --bundle bundle/ --json")
PACKAGES = (
    "compare2score-edge",
    "numpy",
    "onnxruntime",
    "pillow",
    "safetensors",
    "scipy",
    "onnx",
    "tensorrt",
    "tensorrt_rtx_cu13",
    "cuda-bindings",
    "torch",
    "transformers",
)


def info(bundle: Bundle = None, as_json: Json = False) -> None:
    """Describe a bundle, and what runs it on this machine."""
    from compare2score import open_bundle
    from compare2score.backends import open_backend
    from compare2score.backends.choice import choose_backend

    opened = open_bundle(bundle)
    choice = choose_backend(opened)
    facts = {
        **describe(opened),
        "engines": engines(opened),
        "backend": open_backend(opened, choice.name).name,
        "backend_reason": choice.reason,
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": versions(),
    }
    if as_json:
        print_json(facts)
    else:
        print_description(facts)


def describe(bundle: compare2score.Bundle) -> dict[str, Any]:
    """A bundle as JSON values."""
    manifest, anchors = bundle.manifest, bundle.anchors
    return {
        "bundle": str(bundle.path),
        "identity": bundle.identity,
        "model": manifest.model,
        "precision": manifest.precision,
        "image_size": manifest.image.size,
        "prompt": manifest.prompt,
        "levels": manifest.levels,
        "level_weights": manifest.level_weights,
        "temperature": manifest.temperature,
        "images_per_call": manifest.images_per_call,
        "notes": manifest.notes,
        "anchors": anchors and {"names": anchors.names, "matrix": anchors.matrix.tolist()},
        "files": {path.name: path.stat().st_size for path in sorted(bundle.path.iterdir()) if path.is_file()},
    }


def engines(bundle: compare2score.Bundle) -> list[dict[str, Any]]:
    """The bundle's engines as JSON values, whether they run here or not."""
    from compare2score.bundle import GRAPHS
    from compare2score.engine import built_targets, read_record, record_path

    found = []
    for target in built_targets(bundle):
        for graph in GRAPHS:
            if not record_path(bundle.path, target, graph).exists():
                continue
            known: dict[str, Any] = {"target": target, "graph": graph}
            try:
                known |= asdict(read_record(bundle.path, target, graph))
            except BackendError as error:
                known["error"] = str(error)
            found.append(known)
    return found


def engine_text(engine: dict[str, Any]) -> str:
    """An engine in a line."""
    if "error" in engine:
        return str(engine["error"])
    kinds = " ".join(engine["compute_capabilities"])
    library = f"{engine['target']} {engine['version']}"
    return f"{engine['precision']} for {kinds}, {engine['size']:,} bytes, by {library}"


def versions() -> dict[str, str]:
    """Versions of the packages that are installed, without importing them."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def print_description(facts: dict[str, Any]) -> None:
    levels = zip(facts["levels"], facts["level_weights"], strict=True)
    per_call = facts["images_per_call"]
    print_facts(
        [
            ("bundle", facts["bundle"]),
            ("identity", facts["identity"]),
            ("model", f"{facts['model']}, {facts['precision']}"),
            ("image", f"{facts['image_size']} x {facts['image_size']} pixels"),
            ("levels", ", ".join(f"{level} {weight:g}" for level, weight in levels)),
            ("temperature", f"{facts['temperature']:g}"),
            ("images a call", "any number" if per_call is None else f"{per_call}"),
            ("backend", f"{facts['backend']} ({facts['backend_reason']})"),
            *((f"engine: {engine['graph']}", engine_text(engine)) for engine in facts["engines"]),
            ("machine", f"{facts['machine']}, {facts['cpus']} CPUs, Python {facts['python']}"),
            *((f"note: {printable(name)}", note_text(note)) for name, note in facts["notes"].items()),
            ("packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items())),
        ]
    )
    print()
    print_table(("File", "bytes"), [(name, f"{size:,}") for name, size in facts["files"].items()])
    print()
    anchors = facts["anchors"]
    if anchors is None:
        print("No anchors yet: build them with 'c2s anchors build'.")
        return
    print("P(row preferred over column)")
    names = [f"{number}. {name}" for number, name in enumerate(anchors["names"], 1)]
    rows = zip(names, anchors["matrix"], strict=True)
    print_table(
        ("Anchor", *(str(number) for number in range(1, len(names) + 1))),
        [(name, *(f"{probability:.3f}" for probability in row)) for name, row in rows],
    )


def note_text(note: object) -> str:
    """A note of the manifest as text."""
    return note if isinstance(note, str) else json.dumps(note)
