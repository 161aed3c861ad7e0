"""The guard against float16's end: numbers beyond 65504 become infinite, and infinities spread."""

from __future__ import annotations

import numpy as np

from compare2score.backends import Backend, Floats, Prefix, open_backend
from compare2score.bundle import Bundle
from compare2score.errors import ExportError


def refuse_overflow(bundle: Bundle, seed: int = 0) -> None:
    """Runs a bundle's graphs on extreme images: black, white, noise, a checkerboard of single pixels.

    Raises ExportError if an answer on the way is not finite.
    """
    run: Backend = open_backend(bundle, "onnxruntime")
    # All in one call: where memory is short, a call's cost is in the weights.
    tokens = run.encode(extremes(bundle, seed))
    prefix = run.prefix(tokens)
    logits = run.compare(tokens, Prefix(prefix.keys[:1], prefix.values[:1]))
    for name, array in (
        ("vision", tokens),
        ("prefix", prefix.keys),
        ("prefix", prefix.values),
        ("decoder", logits),
    ):
        if not np.isfinite(array).all():
            raise ExportError(
                f"In {bundle.manifest.precision} {name}.onnx overflows float16; export as fp32 instead."
            )


def extremes(bundle: Bundle, seed: int) -> Floats:
    """Preprocessed images [4, 3, S, S] that are as far from photographs as images can be."""
    spec = bundle.manifest.image
    generator = np.random.default_rng(seed)
    parity = np.indices((spec.size, spec.size)).sum(0) % 2
    plain = [
        np.zeros((spec.size, spec.size, 3)),
        np.ones((spec.size, spec.size, 3)),
        generator.integers(0, 2, (spec.size, spec.size, 3)).astype(np.float64),
        np.repeat(parity[..., None], 3, axis=2).astype(np.float64),
    ]
    mean, std = np.array(spec.mean), np.array(spec.std)
    return np.stack([((image - mean) / std).transpose(2, 0, 1) for image in plain]).astype(np.float32)
