"""Where memory is short, ONNX Runtime holds less and answers the same."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from toy_bundle import SIZE

import compare2score.backends.onnxruntime as backend_module
from compare2score.backends.onnxruntime import OnnxRuntimeBackend, free_bytes
from compare2score.bundle import open_bundle

WEIGHTS = 1000


@pytest.fixture
def weighty(bundle, tmp_path):
    """The toy bundle with a file of weights, which only counts."""
    copy = shutil.copytree(bundle, tmp_path / "weighty")
    (copy / "decoder.weights").write_bytes(bytes(WEIGHTS))
    return open_bundle(copy)


def answers(backend):
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 3, SIZE, SIZE)).astype(np.float32)
    tokens = backend.encode(pixels)
    return backend.compare(tokens, backend.prefix(tokens))


@pytest.mark.parametrize(
    ("free", "held"),
    [
        (16 * WEIGHTS, {"vision", "prefix", "decoder"}),
        (16 * WEIGHTS - 1, {"vision", "decoder"}),
        (8 * WEIGHTS - 1, {"decoder"}),
    ],
)
def test_the_less_memory_there_is_the_less_is_held(weighty, bundle, monkeypatch, free, held):
    expected = answers(OnnxRuntimeBackend(open_bundle(bundle)))
    monkeypatch.setattr(backend_module, "free_bytes", lambda: free)
    backend = OnnxRuntimeBackend(weighty)
    np.testing.assert_allclose(answers(backend), expected, rtol=1e-6)
    assert set(backend.sessions) == held
    np.testing.assert_allclose(answers(backend), expected, rtol=1e-6)


def test_a_bundle_with_all_weights_inside_its_graphs_is_never_crowded(bundle, monkeypatch):
    monkeypatch.setattr(backend_module, "free_bytes", lambda: 1)
    assert not OnnxRuntimeBackend(open_bundle(bundle)).crowded


def test_free_memory_is_some():
    assert free_bytes() > 1 << 20
