"""ONNX Runtime backend: any CPU, and NVIDIA GPUs where its CUDA or TensorRT provider is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from compare2score.backends import Floats, Keys, Prefix
from compare2score.errors import BackendError

if TYPE_CHECKING:
    from compare2score.bundle import Bundle

_SHARING = {"prefix", "decoder"}
"""Graphs of the same weights, of which one is open at a time where memory is short."""
_COPIES = 8


class OnnxRuntimeBackend:
    """Runs the three graphs. Sessions are made when first needed.

    Where two graphs, with their weights unpacked for the processor, would not fit the free memory, no two
    graphs of the same weights are open at once; where not even one would, one graph is open at a time and its
    nodes run one by one on weights that stay on disk.

    Args:
        bundle: whose graphs.
        threads: CPU threads of one call; None leaves the choice to the library.
        providers: ONNX Runtime's, the wanted one first and what may run the rest after it.

    Raises:
        BackendError: the wanted provider is not installed, or does not work here.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        self.bundle = bundle
        self.threads = threads
        available = onnxruntime.get_available_providers()
        if providers[0] not in available:
            raise BackendError(
                f"This onnxruntime has no {providers[0]}; install onnxruntime-gpu, or use the backend "
                "onnxruntime."
            )
        # Whoever asks for TensorRT's provider can do without CUDA's.
        self.providers = [provider for provider in providers if provider in available]
        self.sessions: dict[str, Future[onnxruntime.InferenceSession]] = {}
        # Mapped, unpacked, packed anew for the processor and copied on the way, four-bit weights were seen to
        # take more than six times their bytes.
        needed = _COPIES * weight_bytes(bundle) if self.providers[0] == "CPUExecutionProvider" else 0
        free = free_bytes()
        self.crowded, self.overfull = 2 * needed > free, needed > free

    @property
    def name(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}, {self.session('vision').get_providers()[0]}"

    def session(self, graph: str) -> onnxruntime.InferenceSession:
        """Opens one of the bundle's graphs, once. Raises BackendError if ONNX Runtime refuses it."""
        wanted = [graph] if graph not in self.sessions else []
        if not self.crowded:
            # Whoever encodes compares next: opened side by side, the two take as long as the slower one.
            wanted = [name for name in {graph, "decoder"} if name not in self.sessions]
        else:
            for other in set(self.sessions) - {graph}:
                if self.overfull or {graph, other} == _SHARING:
                    del self.sessions[other]
        if wanted:
            pool = ThreadPoolExecutor(len(wanted), "c2s-session")
            for name in wanted:
                self.sessions[name] = pool.submit(self.open_session, name)
            pool.shutdown(wait=False)
        return self.sessions[graph].result()

    def open_session(self, graph: str) -> onnxruntime.InferenceSession:
        """Opens a graph. Raises BackendError if ONNX Runtime refuses it."""
        path = self.bundle.graph(graph)
        options = onnxruntime.SessionOptions()
        # What it would write to stderr comes as an exception, too.
        options.log_severity_level = 4
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.overfull:
            # Slow, but it holds no weights: they stay in the mapped file, and each node unpacks its own.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = False
        try:
            session = onnxruntime.InferenceSession(path, options, providers=self.providers)
        except Exception as error:  # its exception classes are not public
            raise refusal(graph, error) from error
        # A provider that is listed but whose libraries or driver are missing is left out without an error.
        if self.providers[0] not in session.get_providers():
            raise BackendError(
                f"ONNX Runtime's {self.providers[0]} does not work here; install its driver and libraries, "
                "or use the backend onnxruntime."
            )
        return session

    def run(self, graph: str, outputs: list[str], **inputs: Keys) -> list[Any]:
        """Runs a graph for its named outputs. Raises BackendError if ONNX Runtime cannot."""
        session = self.session(graph)
        try:
            return list(session.run(outputs, inputs))
        except Exception as error:
            raise refusal(graph, error) from error

    def chunks(self, images: Floats) -> Iterator[Floats]:
        """Splits a batch where one image in a call could change another's result."""
        step = self.bundle.manifest.images_per_call or max(1, len(images))
        for start in range(0, len(images), step):
            yield images[start : start + step]

    def encode(self, pixels: Floats) -> Floats:
        return np.concatenate(
            [self.run("vision", ["visual_tokens"], pixels=chunk)[0] for chunk in self.chunks(pixels)]
        )

    def prefix(self, visual_tokens: Floats) -> Prefix:
        outputs = [
            self.run("prefix", ["keys", "values"], visual_tokens=chunk)
            for chunk in self.chunks(visual_tokens)
        ]
        return Prefix(*(np.concatenate(part) for part in zip(*outputs, strict=True)))

    def compare(self, visual_tokens: Floats, prefix: Prefix) -> Floats:
        given = {"prefix_keys": prefix.keys, "prefix_values": prefix.values}
        chunks = self.chunks(visual_tokens)
        return np.concatenate(
            [self.run("decoder", ["level_logits"], visual_tokens=chunk, **given)[0] for chunk in chunks]
        )


def weight_bytes(bundle: Bundle) -> int:
    """Bytes of the files of weights beside a bundle's graphs."""
    return sum(path.stat().st_size for path in bundle.path.glob("*.weights"))


def free_bytes() -> int:
    """Memory that this machine can still give; more than any weights where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return 1 << 60
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), 1 << 60)


def refusal(graph: str, error: Exception) -> BackendError:
    reason = " ".join(str(error).split())
    return BackendError(f"ONNX Runtime refuses {graph}.onnx ({reason}); export the bundle again.")
