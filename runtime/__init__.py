"""Compare2Score on the device: image quality scores from a multimodal comparator.

from compare2score import Scorer

Scorer().score("photo.jpg").value
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compare2score.bundle import Bundle, open_bundle
    from compare2score.errors import BackendError, BundleError, Compare2ScoreError, ImageError
    from compare2score.scorer import Comparison, Score, Scorer
    from compare2score.thurstone import MapEstimate, map_estimate

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "Compare2ScoreError",
    "Comparison",
    "ImageError",
    "MapEstimate",
    "Score",
    "Scorer",
    "map_estimate",
    "open_bundle",
]

_HOMES = {
    "bundle": ("Bundle", "open_bundle"),
    "errors": ("BackendError", "BundleError", "Compare2ScoreError", "ImageError"),
    "scorer": ("Comparison", "Score", "Scorer"),
    "thurstone": ("MapEstimate", "map_estimate"),
}


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: `import compare2score` alone costs next to nothing.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"compare2score.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
