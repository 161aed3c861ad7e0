"""What the runtime keeps of anchors: visual tokens, prefix keys and values, preference matrix.

All of it comes from the bundle's own graphs, in the precision that will run, so it can be done on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compare2score.backends import Backend, open_backend
from compare2score.bundle import Anchors, Bundle, write_bundle
from compare2score.comparison import comparison_probability, symmetric_preference_matrix
from compare2score.errors import BundleError
from compare2score.image import preprocess


def precompute_anchors(
    bundle: Bundle, images: Sequence[str | Path], backend: str | Backend = "auto", threads: int | None = None
) -> Anchors:
    """Encodes anchor images, their prefixes, and their preference matrix (both orders averaged).

    Args:
        bundle: whose graphs to run; its own anchors, if any, do not matter.
        images: paths of two or more photographs, by convention in order of rising quality.
        backend, threads: see `compare2score.Scorer`.

    Raises:
        ImageError: one cannot be read.
        BundleError: fewer than two are given.
    """
    if len(images) < 2:
        raise BundleError(f"{len(images)} anchor images are too few; give at least two, five as published.")
    manifest = bundle.manifest
    run = open_backend(bundle, backend, threads) if isinstance(backend, str) else backend
    visual_tokens = run.encode(np.stack([preprocess(image, manifest.image) for image in images]))
    prefix = run.prefix(visual_tokens)
    logits = run.compare(visual_tokens, prefix)
    probabilities = comparison_probability(logits, manifest.level_weights, manifest.temperature)
    matrix = symmetric_preference_matrix(probabilities)
    return Anchors(tuple(Path(image).name for image in images), matrix, visual_tokens, prefix)


def replace_anchors(bundle: Bundle, images: Sequence[str | Path], out: Path) -> Bundle:
    """Writes a copy of a bundle, with anchors made from `images`, to a new folder.

    Raises ImageError or BundleError, as `precompute_anchors` and `write_bundle` do.
    """
    return write_bundle(out, bundle.manifest, bundle.path, precompute_anchors(bundle, images))
