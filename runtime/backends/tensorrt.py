"""TensorRT backend: a bundle's engines on an NVIDIA GPU, by `tensorrt` or `tensorrt_rtx`.

Engines are built by `c2s build`. What does not fit (another version, GPU or graph, an altered file) is
refused in one sentence; nothing falls back to the CPU by itself.

Not yet run on a GPU: the machines that this was written on have none. Its order of calls and its sizes are
tested over a stand-in for the GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compare2score.backends import Floats, Prefix
from compare2score.backends.cuda import Device, open_device
from compare2score.backends.tensorrt_engine import Engine, Input, Resident
from compare2score.backends.tensorrt_module import load_module, logger
from compare2score.engine import Target, check_record, read_engine, read_record, source_hash
from compare2score.errors import BackendError

if TYPE_CHECKING:
    from compare2score.bundle import Bundle

ALIGNMENT = 256
"""Bytes that TensorRT wants a tensor's address to be a multiple of."""


class TensorrtBackend:
    """Runs a bundle's engines.

    The prefix engine is read when it is first needed: a scorer's anchors have their prefix in the bundle.

    Args:
        bundle: with engines for `target`.
        target: which library's.
        module, device: to use instead of the library and the GPU that are found.

    Raises:
        BackendError: there are no engines, they do not fit this machine, or there is no GPU.
        MissingExtraError: the library is not installed.
    """

    def __init__(
        self, bundle: Bundle, target: Target, module: Any = None, device: Device | None = None
    ) -> None:
        self.bundle, self.target = bundle, target
        self.records = {
            graph: read_record(bundle.path, target, graph) for graph in ("vision", "prefix", "decoder")
        }
        self.module = load_module(target, f"The backend {target}") if module is None else module
        self.device = open_device() if device is None else device
        version = str(self.module.__version__)
        for graph, record in self.records.items():
            check_record(record, source_hash(bundle, graph), version, self.device.capability)
        self.log = logger(self.module)
        self.engines: dict[str, Engine] = {}
        self.anchors: dict[str, tuple[int, NDArray[Any]]] = {}
        # A context computes one call at a time.
        self.lock = threading.Lock()
        for graph in ("vision", "decoder"):
            self.engine(graph)

    @property
    def name(self) -> str:
        device, precision = self.device, self.records["decoder"].precision
        return f"{self.target} {self.module.__version__}, {device.name} ({device.capability}), {precision}"

    def engine(self, graph: str) -> Engine:
        """A graph's engine, read once. Raises BackendError if it was altered or is refused."""
        if graph not in self.engines:
            record = self.records[graph]
            content = read_engine(self.bundle.path, record)
            self.engines[graph] = Engine(self.module, self.log, self.device, record, content)
        return self.engines[graph]

    def encode(self, pixels: Floats) -> Floats:
        with self.lock:
            return self.over_images("vision", "pixels", pixels, {}, "visual_tokens", fixed=True)

    def prefix(self, visual_tokens: Floats) -> Prefix:
        with self.lock:
            engine = self.engine("prefix")
            most = most_prefixes(engine, "visual_tokens")
            parts = []
            for start in range(0, len(visual_tokens), most):
                given = {"visual_tokens": visual_tokens[start : start + most]}
                outputs = engine.run(0, given, fixed=False)
                parts.append([outputs[name].astype(self.prefix_type()) for name in ("keys", "values")])
            return Prefix(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def prefix_type(self) -> np.dtype[Any]:
        """What the bundle stores keys and values in."""
        anchors = self.bundle.anchors
        return np.dtype(np.float32) if anchors is None else anchors.prefix.keys.dtype

    def compare(self, visual_tokens: Floats, prefix: Prefix) -> Floats:
        with self.lock:
            most = most_prefixes(self.engine("decoder"), "prefix_keys")
            answers = []
            for start in range(0, len(prefix.keys), most):
                part = Prefix(*(array[start : start + most] for array in prefix))
                given = {
                    "prefix_keys": self.resident("prefix_keys", part.keys),
                    "prefix_values": self.resident("prefix_values", part.values),
                }
                # All anchors at once, from where they lie: the call that scoring repeats.
                fixed = all(
                    isinstance(value, Resident) and value.shape == self.anchors[name][1].shape
                    for name, value in given.items()
                )
                answers.append(
                    self.over_images(
                        "decoder", "visual_tokens", visual_tokens, given, "level_logits", fixed=fixed
                    )
                )
            return np.concatenate(answers, axis=1)

    def resident(self, name: str, array: NDArray[Any]) -> Input:
        """Where a prefix lies on the GPU if it is of the bundle's anchors, which are copied there once."""
        stored = self.bundle.anchors
        if stored is None:
            return array
        whole = stored.prefix.keys if name == "prefix_keys" else stored.prefix.values
        row = rows_before(array, whole)
        if row is None:
            return array
        if name not in self.anchors:
            content = np.ascontiguousarray(whole, dtype=self.engine("decoder").types[name])
            address = self.device.allocate(content.nbytes)
            self.device.upload(address, content)
            self.device.synchronize()
            self.anchors[name] = address, content
        address, content = self.anchors[name]
        offset = row * (content.nbytes // len(content))
        return array if offset % ALIGNMENT else Resident(address + offset, array.shape)

    def over_images(
        self, graph: str, name: str, images: NDArray[Any], others: dict[str, Input], output: str, fixed: bool
    ) -> Floats:
        """Runs an engine over any number of images, in the batches that it was built for."""
        engine = self.engine(graph)
        batches = [profile[name][2][0] for profile in engine.record.profiles]
        results = []
        start = 0
        for batch in divide(len(images), batches):
            part = images[start : start + batch]
            if len(part) < batch:
                part = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
            outputs = engine.run(batches.index(batch), {name: part, **others}, fixed)
            results.append(outputs[output][: len(images) - start].astype(np.float32))
            start += batch
        return np.concatenate(results)


def most_prefixes(engine: Engine, name: str) -> int:
    """How many prefixes an engine takes in a call."""
    most = min(profile[name][2][0] for profile in engine.record.profiles)
    if most < 1:
        raise BackendError(f"The engine of {engine.record.graph}.onnx takes no prefixes; build it again.")
    return most


def rows_before(array: NDArray[Any], whole: NDArray[Any]) -> int | None:
    """How many rows of `whole` come before `array`, if that is a run of its rows in the same memory."""
    if not (whole.flags.c_contiguous and array.flags.c_contiguous and array.dtype == whole.dtype):
        return None
    if array.shape[1:] != whole.shape[1:] or len(array) == 0:
        return None
    row, rest = divmod(array.ctypes.data - whole.ctypes.data, whole.strides[0])
    return row if rest == 0 and 0 <= row <= len(whole) - len(array) else None


def divide(count: int, batches: Sequence[int]) -> list[int]:
    """Batch sizes, of those there are, that hold `count` images; the last may have room to spare.

    Each is the largest that is filled by half or more; where none is, the smallest.
    """
    chosen: list[int] = []
    while (left := count - sum(chosen)) > 0:
        chosen.append(max((size for size in batches if size <= 2 * left), default=min(batches)))
    return chosen
