"""A stand-in for a GPU and for TensorRT, for tests of the order of calls and the size of buffers alone.

Device memory is memory of this process that only addresses lead to, and an "engine" is the ONNX graph itself,
which ONNX Runtime computes where TensorRT would. Nothing here shows that a GPU does the same.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import onnxruntime


class StandInDevice:
    """Counts what it is asked for in `log`; copies and computations happen when they are begun."""

    name, capability, stream = "a stand-in", "sm86", 7

    def __init__(self):
        self.memory, self.log, self.recording = {}, [], None

    def allocate(self, size):
        block = np.zeros(size + 256, np.uint8)
        offset = -block.ctypes.data % 256
        self.memory[block.ctypes.data + offset] = block[offset : offset + size]
        self.log.append(("allocate", size))
        return block.ctypes.data + offset

    def pinned(self, shape, dtype):
        return np.zeros(shape, dtype)

    def begin(self, name, work):
        if self.recording is not None:
            self.recording.append((name, work))
        else:
            self.log.append(name)
            work()

    def upload(self, address, source):
        assert source.flags.c_contiguous
        self.begin(
            ("upload", source.nbytes), lambda: self.copy(address, source.ctypes.data, source.nbytes, address)
        )

    def download(self, target, address):
        assert target.flags.c_contiguous
        self.begin(
            ("download", target.nbytes),
            lambda: self.copy(target.ctypes.data, address, target.nbytes, address),
        )

    def copy(self, to, source, size, on_device):
        assert self.room(on_device) >= size
        ctypes.memmove(to, source, size)

    def room(self, address):
        """Bytes of device memory from an address on."""
        for start, block in self.memory.items():
            if start <= address < start + len(block):
                return start + len(block) - address
        raise AssertionError(f"{address} is no device memory")

    def synchronize(self):
        self.log.append("synchronize")

    def capture(self, work):
        self.recording = []
        work()
        recorded, self.recording = self.recording, None
        self.log.append("capture")

        def replay():
            self.log.append("replay")
            for _, step in recorded:
                step()

        return replay


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.profile = engine, {}, {}, None

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        return stream == self.engine.device.stream

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.profiles[self.profile][name]
        self.shapes[name] = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address % 256 == 0

    def get_tensor_shape(self, name):
        if name in self.shapes:
            return self.shapes[name]
        value = next(v for v in self.engine.session.get_outputs() if v.name == name)
        named = {
            size: length
            for given in self.engine.session.get_inputs()
            for size, length in zip(given.shape, self.shapes[given.name], strict=True)
        }
        return tuple(named.get(size, size) for size in value.shape)

    def execute_async_v3(self, stream):
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self.engine.device.begin(("execute", self.engine.name), lambda: self.compute(shapes, addresses))
        return stream == self.engine.device.stream

    def compute(self, shapes, addresses):
        device, session = self.engine.device, self.engine.session

        def view(name, shape):
            size = int(np.prod(shape)) * 4
            assert device.room(addresses[name]) >= size
            raw = (ctypes.c_byte * size).from_address(addresses[name])
            return np.frombuffer(raw, np.float32).reshape(shape)

        results = session.run(None, {name: view(name, shape).copy() for name, shape in shapes.items()})
        for output, result in zip(session.get_outputs(), results, strict=True):
            view(output.name, result.shape)[...] = result


class Engine:
    def __init__(self, content, device, profiles):
        self.session = onnxruntime.InferenceSession(bytes(content), providers=["CPUExecutionProvider"])
        self.device, self.contexts = device, []
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.names = self.inputs + [value.name for value in self.session.get_outputs()]
        self.name = self.names[-1]
        self.profiles = next(p for p in profiles if set(p[0]) == set(self.inputs))
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, place):
        return self.names[place]

    def get_tensor_mode(self, name):
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, _name):
        return "float"

    def create_execution_context(self):
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Logger:
    Severity = SimpleNamespace(WARNING=2)


def standin_module(device, profiles, refuses=False):
    """A module like `tensorrt` whose engines are ONNX graphs. `profiles`: of each engine."""

    class Runtime:
        def __init__(self, log):
            self.log = log

        def deserialize_cuda_engine(self, content):
            if refuses:
                self.log.log(1, "Version tag does not match.")
                return None
            return Engine(content, device, profiles)

    return SimpleNamespace(
        __version__="10.99",
        ILogger=Logger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="input"),
        nptype=lambda _kind: np.float32,
    )
