"""The GPU layer: its sentences where there is no GPU, and its copies where there is one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from compare2score.backends.cuda import CudaDevice, PycudaDevice, open_device
from compare2score.errors import BackendError, MissingExtraError


def gpu():
    try:
        return open_device()
    except (BackendError, MissingExtraError):
        return None


def runtime(status, count):
    """A CUDA runtime that knows how many GPUs there are and nothing else."""
    return SimpleNamespace(
        cudaGetDeviceCount=lambda: (status, count),
        cudaGetErrorString=lambda _: (0, b"CUDA driver version is insufficient"),
    )


@pytest.mark.parametrize(
    ("status", "count", "reason"),
    [(35, None, "CUDA driver version is insufficient"), (0, 0, "none is installed")],
)
def test_without_a_driver_or_a_gpu_one_sentence_says_so(status, count, reason):
    with pytest.raises(
        BackendError, match=rf"^No NVIDIA GPU can be used here \({reason}\); install its driver"
    ):
        CudaDevice(runtime(status, count))


def test_a_missing_cuda_library_is_said_in_its_words():
    def load():
        raise RuntimeError("libcudart.so.13: cannot open\nshared object file")

    with pytest.raises(
        BackendError, match=r"\(libcudart\.so\.13: cannot open shared object file\)"
    ) as caught:
        CudaDevice(SimpleNamespace(cudaGetDeviceCount=load))
    assert "\n" not in str(caught.value)


def test_pycuda_without_a_driver_says_the_same():
    class RefusalError(Exception):
        pass

    def init():
        raise RefusalError("no CUDA-capable device is detected")

    with pytest.raises(BackendError, match=r"No NVIDIA GPU can be used here \(no CUDA-capable device"):
        PycudaDevice(SimpleNamespace(init=init, Error=RefusalError))


@pytest.mark.skipif(gpu() is None, reason="there is no NVIDIA GPU here")
def test_what_goes_to_the_gpu_comes_back_plain_and_replayed():
    device = gpu()
    source, target = device.pinned((3, 5), np.float32), device.pinned((3, 5), np.float32)
    address = device.allocate(source.nbytes)
    assert address % 256 == 0
    source[...] = np.arange(15).reshape(3, 5)

    def there_and_back():
        device.upload(address, source)
        device.download(target, address)

    there_and_back()
    device.synchronize()
    assert np.array_equal(target, source)
    replay = device.capture(there_and_back)
    if replay is not None:
        source += 100
        replay()
        device.synchronize()
        assert np.array_equal(target, source)
    assert device.capability.startswith("sm")
    assert device.name
