"""ONNX Runtime backend: any CPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
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

    @property
    def name(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}, {self.vision.get_providers()[0]}"

    @cached_property
    def vision(self) -> onnxruntime.InferenceSession:
        return self.session("vision")

    @cached_property
    def prefixer(self) -> onnxruntime.InferenceSession:
        return self.session("prefix")

    @cached_property
    def decoder(self) -> onnxruntime.InferenceSession:
        return self.session("decoder")

    def session(self, graph: str) -> onnxruntime.InferenceSession:
        """Opens one graph. Raises BackendError if ONNX Runtime refuses it."""
        path = self.bundle.graph(graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        try:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes are not public
            reason = " ".join(str(error).split())
            raise BackendError(
                f"ONNX Runtime refuses {Path(path).name} ({reason}); export the bundle again."
            ) from error

    def chunks(self, images: Floats) -> Iterator[Floats]:
        """Splits a batch where one image in a call could change another's result."""
        step = self.bundle.manifest.images_per_call or max(1, len(images))
        for start in range(0, len(images), step):
            yield images[start : start + step]

    def encode(self, pixels: Floats) -> Floats:
        return np.concatenate([self.vision.run(None, {"pixels": chunk})[0] for chunk in self.chunks(pixels)])

    def prefix(self, visual_tokens: Floats) -> Prefix:
        outputs = [self.prefixer.run(None, {"visual_tokens": chunk}) for chunk in self.chunks(visual_tokens)]
        return Prefix(*(np.concatenate(part) for part in zip(*outputs, strict=True)))

    def compare(self, visual_tokens: Floats, prefix: Prefix) -> Floats:
        given = {"prefix_keys": prefix.keys, "prefix_values": prefix.values}
        chunks = self.chunks(visual_tokens)
        return np.concatenate(
            [self.decoder.run(None, {"visual_tokens": chunk, **given})[0] for chunk in chunks]
        )
