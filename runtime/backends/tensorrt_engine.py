"""One engine on the GPU: its contexts, and buffers of the size that its profiles need.

Not yet run on a GPU: the machines that this was written on have none. Its order of calls and its sizes are
tested over a stand-in for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compare2score.backends.cuda import Device
from compare2score.engine import EngineRecord, Profile, again
from compare2score.errors import BackendError


@dataclass(frozen=True)
class Resident:
    """An array that is on the GPU already, in the type that the engine takes."""

    address: int
    shape: tuple[int, ...]


Input = NDArray[Any] | Resident


class Engine:
    """A deserialised engine. Raises BackendError if the library refuses it."""

    def __init__(self, module: Any, log: Any, device: Device, record: EngineRecord, content: bytes) -> None:
        self.record, self.device = record, device
        # Kept: the engine does not outlive the runtime that made it.
        self.runtime = module.Runtime(log)
        self.engine = self.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            words = log.messages[-1].rstrip(".") if log.messages else "it does not say why"
            raise BackendError(
                f"{record.target} {record.version} refuses the engine of {record.graph}.onnx ({words}); "
                f"{again(record.target)}."
            )
        names = [self.engine.get_tensor_name(place) for place in range(self.engine.num_io_tensors)]
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == module.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        self.types = {name: np.dtype(module.nptype(self.engine.get_tensor_dtype(name))) for name in names}
        self.callers: dict[tuple[int, bool], Caller] = {}

    def run(self, profile: int, given: Mapping[str, Input], fixed: bool) -> dict[str, NDArray[Any]]:
        """Runs the engine.

        Args:
            profile: index of the profile whose shapes the inputs have.
            given: the inputs, by name.
            fixed: whether inputs of this profile always have these shapes and places, when they are `fixed`.

        Returns:
            The outputs, by name, valid until the next call.
        """
        key = (profile, fixed)
        if key not in self.callers:
            self.callers[key] = Caller(self, profile, fixed)
        return self.callers[key].run(given)


class Caller:
    """An execution context of an engine for one profile, with its buffers.

    A context of its own for calls whose shapes and places are fixed: after its first call it replays a CUDA
    graph, and nothing may change under that.
    """

    def __init__(self, engine: Engine, profile: int, fixed: bool) -> None:
        self.engine, self.device, self.fixed = engine, engine.device, fixed
        self.context = engine.engine.create_execution_context()
        if self.context is None:
            raise BackendError(
                f"The GPU has too little memory for the engine of {engine.record.graph}.onnx; "
                "build it for a smaller batch or precision."
            )
        self.set(self.context.set_optimization_profile_async(profile, self.device.stream))
        self.device.synchronize()
        self.shapes: Profile = engine.record.profiles[profile]
        self.buffers: dict[str, tuple[int, NDArray[Any]]] = {}
        for name, (_, _, largest) in self.shapes.items():
            self.set(self.context.set_input_shape(name, largest))
        for name in engine.outputs:
            self.buffer(name, tuple(self.context.get_tensor_shape(name)))
        self.replay: Callable[[], None] | None = None
        self.calls = 0

    def set(self, accepted: object) -> None:
        """Raises BackendError if the context did not take what it was told."""
        if accepted is False:
            record = self.engine.record
            raise BackendError(
                f"The engine of {record.graph}.onnx does not take the shapes it was built for; "
                f"{again(record.target)}."
            )

    def buffer(self, name: str, shape: tuple[int, ...] | None = None) -> tuple[int, NDArray[Any]]:
        """A tensor's memory on the GPU, and a flat pinned array; made once, for its largest shape."""
        if name not in self.buffers:
            length = int(np.prod(self.shapes[name][2] if shape is None else shape))
            host = self.device.pinned((length,), self.engine.types[name])
            self.buffers[name] = self.device.allocate(host.nbytes), host
        return self.buffers[name]

    def run(self, given: Mapping[str, Input]) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        uploads: list[tuple[int, NDArray[Any]]] = []
        for name, value in given.items():
            if not isinstance(value, Resident):
                address, host = self.buffer(name)
                part = host[: value.size]
                np.copyto(part.reshape(value.shape), value, casting="same_kind")
                uploads.append((address, part))
        if self.replay is not None:
            self.replay()
        else:
            self.place(given)
            downloads = self.downloads()
            self.enqueue(uploads, downloads)
            # The first call settles what a capture must not contain.
            if self.fixed and self.calls > 0 and self.capturable():
                self.device.synchronize()
                self.replay = self.device.capture(lambda: self.enqueue(uploads, downloads))
        self.calls += 1
        self.device.synchronize()
        return {name: self.output(name) for name in self.engine.outputs}

    def place(self, given: Mapping[str, Input]) -> None:
        """Tells the context the shapes and addresses of all tensors."""
        for name, value in given.items():
            address = value.address if isinstance(value, Resident) else self.buffer(name)[0]
            self.set(self.context.set_input_shape(name, tuple(value.shape)))
            self.set(self.context.set_tensor_address(name, address))
        for name in self.engine.outputs:
            self.set(self.context.set_tensor_address(name, self.buffer(name)[0]))

    def downloads(self) -> list[tuple[NDArray[Any], int]]:
        return [(self.output(name).reshape(-1), self.buffer(name)[0]) for name in self.engine.outputs]

    def output(self, name: str) -> NDArray[Any]:
        """The pinned part that an output of the present shapes fills."""
        shape = tuple(self.context.get_tensor_shape(name))
        return self.buffer(name)[1][: int(np.prod(shape))].reshape(shape)

    def capturable(self) -> bool:
        """Whether the library lets this context's work be captured."""
        ask = getattr(self.context, "is_stream_capturable", None)
        return ask is None or bool(ask(self.device.stream))

    def enqueue(
        self, uploads: list[tuple[int, NDArray[Any]]], downloads: list[tuple[NDArray[Any], int]]
    ) -> None:
        """Begins the inputs' copies, the computation and the outputs' copies."""
        for address, source in uploads:
            self.device.upload(address, source)
        if not self.context.execute_async_v3(self.device.stream):
            raise BackendError(
                f"The engine of {self.engine.record.graph}.onnx fails on the GPU; "
                f"{again(self.engine.record.target)}."
            )
        for target, address in downloads:
            self.device.download(target, address)
