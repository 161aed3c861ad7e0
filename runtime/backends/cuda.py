"""The GPU as the TensorRT backend needs it: memory, copies, one stream, captured graphs.

Over cuda-bindings (of cuda-python), or over pycuda where that is what is installed; pycuda cannot capture.

Not yet run on a GPU: the machines that this was written on have none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from compare2score.errors import BackendError, MissingExtraError


class Device(Protocol):
    """One GPU with one stream, on which all copies and computations follow each other."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    @property
    def capability(self) -> str:
        """Its compute capability, e.g. "sm86"."""

    @property
    def stream(self) -> int:
        """The stream's handle."""

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of its memory, which stay until the process ends."""

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array in host memory that the GPU can copy from and to while the CPU goes on."""

    def upload(self, address: int, source: NDArray[Any]) -> None:
        """Begins a copy to the GPU, of a contiguous array; from pinned memory the CPU does not wait."""

    def download(self, target: NDArray[Any], address: int) -> None:
        """Begins a copy from the GPU into a contiguous array."""

    def synchronize(self) -> None:
        """Waits until all that was begun is done."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """Records what `work` begins, without doing it; returns what does it, or None if nothing can."""


def open_device() -> Device:
    """The first GPU.

    Raises BackendError if there is none, MissingExtraError without a library to reach it.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart as runtime  # cuda-python before 12.6
        except ImportError:
            return open_pycuda()
    return CudaDevice(runtime)


def no_device(reason: str) -> BackendError:
    return BackendError(
        f"No NVIDIA GPU can be used here ({' '.join(reason.split()).rstrip('.')}); "
        "install its driver, or use the backend onnxruntime."
    )


class CudaDevice:
    """A GPU through cuda-bindings. Raises BackendError if there is none."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        try:
            count = self.call("cudaGetDeviceCount")
        except RuntimeError as error:  # also when the library that it loads is missing
            raise no_device(str(error)) from error
        if count == 0:
            raise no_device("none is installed")
        properties = self.call("cudaGetDeviceProperties", 0)
        raw = properties.name
        self.name = raw.decode(errors="replace").rstrip("\0") if isinstance(raw, bytes) else str(raw)
        self.capability = f"sm{properties.major}{properties.minor}"
        self.stream = int(self.call("cudaStreamCreate"))

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls the CUDA runtime. Raises BackendError with its words if it fails."""
        status, *results = getattr(self.runtime, name)(*arguments)
        if int(status) != 0:
            words = self.runtime.cudaGetErrorString(status)[1]
            text = words.decode() if isinstance(words, bytes) else str(words)
            if name == "cudaGetDeviceCount":
                raise RuntimeError(text)
            raise BackendError(f"The GPU fails at {name} ({text}); free its memory or restart.")
        return results[0] if results else None

    def allocate(self, size: int) -> int:
        return int(self.call("cudaMalloc", max(1, size)))

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self.call("cudaMallocHost", max(1, size)))
        memory = (ctypes.c_byte * max(1, size)).from_address(address)
        array: NDArray[Any] = np.ctypeslib.as_array(memory)[:size].view(dtype).reshape(shape)
        return array

    def upload(self, address: int, source: NDArray[Any]) -> None:
        self.copy(address, source.ctypes.data, source.nbytes, "cudaMemcpyHostToDevice")

    def download(self, target: NDArray[Any], address: int) -> None:
        self.copy(target.ctypes.data, address, target.nbytes, "cudaMemcpyDeviceToHost")

    def copy(self, to: int, source: int, size: int, kind: str) -> None:
        direction = getattr(self.runtime.cudaMemcpyKind, kind)
        self.call("cudaMemcpyAsync", to, source, size, direction, self.stream)

    def synchronize(self) -> None:
        self.call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        # Thread-local: what other threads of the process do with the GPU does not end the capture.
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        try:
            work()
        finally:
            graph = self.call("cudaStreamEndCapture", self.stream)
        ready = self.call("cudaGraphInstantiate", graph, 0)

        def launch() -> None:
            self.call("cudaGraphLaunch", ready, self.stream)

        return launch


def open_pycuda() -> Device:
    """A GPU through pycuda. Raises BackendError if there is none, MissingExtraError without pycuda."""
    try:
        import pycuda.driver
    except ImportError as error:
        raise MissingExtraError("tensorrt", "Running engines on a GPU") from error
    return PycudaDevice(pycuda.driver)


class PycudaDevice:
    """A GPU through pycuda, in the thread that opened it. Raises BackendError if there is none."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        try:
            driver.init()
            device = driver.Device(0)
        except driver.Error as error:
            raise no_device(str(error)) from error
        # The primary context is the one that TensorRT uses.
        self.context = device.retain_primary_context()
        self.context.push()
        self.name = str(device.name())
        self.capability = "sm{}{}".format(*device.compute_capability())
        self.queue = driver.Stream()
        self.kept: list[Any] = []

    @property
    def stream(self) -> int:
        return int(self.queue.handle)

    def allocate(self, size: int) -> int:
        self.kept.append(self.driver.mem_alloc(max(1, size)))
        return int(self.kept[-1])

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        array: NDArray[Any] = self.driver.pagelocked_empty(shape, dtype)
        return array

    def upload(self, address: int, source: NDArray[Any]) -> None:
        self.driver.memcpy_htod_async(address, source, self.queue)

    def download(self, target: NDArray[Any], address: int) -> None:
        self.driver.memcpy_dtoh_async(target, address, self.queue)

    def synchronize(self) -> None:
        self.queue.synchronize()

    def capture(self, _work: Callable[[], None]) -> Callable[[], None] | None:
        return None
