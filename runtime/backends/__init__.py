"""A backend runs a bundle's three graphs; `open_backend` chooses one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from compare2score.errors import BackendError

if TYPE_CHECKING:
    from compare2score.bundle import Bundle

Floats = NDArray[np.float32]


class Prefix(NamedTuple):
    """Decoder keys and values of A first images, each float32 [A, layers, kv_heads, length, head_width]."""

    keys: Floats
    values: Floats


class Backend(Protocol):
    """Three calls, one a graph; all arrays are float32.

    Every image's result is independent of the others in the call.
    """

    @property
    def name(self) -> str:
        """What runs the graphs, for people: library, version, device."""

    def encode(self, pixels: Floats) -> Floats:
        """Preprocessed images [N, 3, S, S] -> visual tokens [N, T, D]."""

    def prefix(self, visual_tokens: Floats) -> Prefix:
        """Visual tokens [A, T, D] of first images -> their prefix."""

    def compare(self, visual_tokens: Floats, prefix: Prefix) -> Floats:
        """Visual tokens [N, T, D] of second images against A prefixes -> level logits [N, A, levels]."""


def open_backend(bundle: Bundle, name: str = "auto", threads: int | None = None) -> Backend:
    """Opens a backend on a bundle.

    Args:
        bundle: whose graphs to run.
        name: "onnxruntime", or "auto" for the best one that this machine and bundle allow.
        threads: CPU threads of one call; None leaves the choice to the library.

    Raises:
        BackendError: the name is unknown, or the library refuses the graphs.
    """
    if name in ("auto", "onnxruntime"):
        from compare2score.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(bundle, threads)
    raise BackendError(f"There is no backend {name!r}; choose 'auto' or 'onnxruntime'.")
