"""A backend runs a bundle's three graphs; `open_backend` chooses one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from compare2score.errors import BackendError

if TYPE_CHECKING:
    from compare2score.bundle import Bundle

Floats = NDArray[np.float32]
Keys = NDArray[np.floating[Any]]
"""float32 or float16, as the bundle's graphs give and take them."""


BACKENDS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("CPUExecutionProvider",),
    "onnxruntime-cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "onnxruntime-tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": (),
    "tensorrt-rtx": (),
}
"""Names of backends, each with ONNX Runtime's providers, the wanted one first; none for engines."""


class Prefix(NamedTuple):
    """Decoder keys and values of A first images, each [A, layers, kv_heads, length, head_width]."""

    keys: Keys
    values: Keys


class Backend(Protocol):
    """Three calls, one a graph; all arrays but a prefix's are float32.

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
        name: one of `BACKENDS`, or "auto" for engines if the bundle has some for this machine's GPU, else
            ONNX Runtime on the CPU; `compare2score.backends.choice` says which and why.
        threads: CPU threads of one call; None leaves the choice to the library.

    Raises:
        BackendError: the name is unknown, the library refuses the graphs, or what was asked for does not run
            here; nothing else takes its place.
        MissingExtraError: the library is not installed.
    """
    if name == "auto":
        from compare2score.backends.choice import choose_backend

        name = choose_backend(bundle).name
    if name in ("tensorrt", "tensorrt-rtx"):
        from compare2score.backends.tensorrt import TensorrtBackend

        return TensorrtBackend(bundle, "tensorrt" if name == "tensorrt" else "tensorrt-rtx")
    if name in BACKENDS:
        from compare2score.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(bundle, threads, BACKENDS[name])
    known = ", ".join(repr(known) for known in BACKENDS)
    raise BackendError(f"There is no backend {name!r}; choose 'auto' or one of {known}.")
