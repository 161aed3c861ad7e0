"""ONNX Runtime backend: any CPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from compare2score.backends import Floats, Prefix
from compare2score.errors import BackendError

if TYPE_CHECKING:
    from compare2score.bundle import Bundle


class OnnxRuntimeBackend:
    """Runs the three graphs on the CPU. Sessions are made when first needed."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.bundle = bundle
        self.threads = threads
        self.sessions: dict[str, Future[onnxruntime.InferenceSession]] = {}

    @property
    def name(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}, {self.session('vision').get_providers()[0]}"

    def session(self, graph: str) -> onnxruntime.InferenceSession:
        """Opens one of the bundle's graphs, once. Raises BackendError if ONNX Runtime refuses it."""
        # Whoever encodes compares next: opened side by side, the two take as long as the slower one.
        wanted = [name for name in {graph, "decoder"} if name not in self.sessions]
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
        try:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes are not public
            raise refusal(graph, error) from error

    def run(self, graph: str, outputs: list[str], **inputs: Floats) -> list[Floats]:
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


def refusal(graph: str, error: Exception) -> BackendError:
    reason = " ".join(str(error).split())
    return BackendError(f"ONNX Runtime refuses {graph}.onnx ({reason}); export the bundle again.")
