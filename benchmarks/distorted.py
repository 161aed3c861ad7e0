"""Scores of clean photographs and of their distorted versions: is the order by construction found?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from compare2score.decode import load_image
from compare2score.training.distortions import DISTORTIONS, STRENGTHS, UNSEEN, distort

Methods = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float64]]
"""Scores [methods, N] of RGB pixels [H, W, 3] by one method or several."""


def scored_versions(photos: Sequence[Path], methods: Methods) -> NDArray[np.float64]:
    """Scores [methods, photographs, types, 1 + STRENGTHS]: clean, then each strength of each type.

    Noise and other chances differ from photograph to photograph.
    """
    photographs = []
    for i, path in enumerate(track(photos, description="Distortions")):
        photo = load_image(path)
        clean, types = methods([photo]), []
        for name in DISTORTIONS:
            versions = [distort(photo, name, strength, seed=i) for strength in range(1, STRENGTHS + 1)]
            types.append(np.concatenate([clean, methods(versions)], axis=1))
        photographs.append(np.stack(types, axis=1))
    return np.stack(photographs, axis=1)


def pairs_right(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the pairs of strengths within one photograph whose milder one scores higher, by type [types].

    `scores` of one method as `scored_versions` returns them; a tie is half right.
    """
    strengths = scores[:, :, 1:]
    mild, severe = np.triu_indices(strengths.shape[2], 1)
    difference = strengths[:, :, mild] - strengths[:, :, severe]
    return np.asarray(((np.sign(difference) + 1) / 2).mean(axis=(0, 2)))


def clean_preferred(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the photographs that score higher than their strongest distortion, by type [types]."""
    return np.asarray((scores[:, :, 0] > scores[:, :, -1]).mean(axis=0))


def summary(scores: NDArray[np.float64]) -> dict[str, Any]:
    """Both shares by type, and their means: of pairs over the types never trained on, of clean over all."""
    names = list(DISTORTIONS)
    pairs, clean = pairs_right(scores), clean_preferred(scores)
    unseen = [names.index(name) for name in UNSEEN]
    return {
        "unseen_pairs_right": float(pairs[unseen].mean()),
        "clean_preferred": float(clean.mean()),
        "types": {
            name: {"unseen": name in UNSEEN, "pairs_right": float(p), "clean_preferred": float(c)}
            for name, p, c in zip(names, pairs, clean, strict=True)
        },
    }
