"""ONNX Runtime against the toy comparator's formula, and its refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from toy_bundle import (
    ANCHOR_GRAYS,
    BUMP,
    LEAN,
    SIZE,
    TILT,
    brightness,
    toy_anchors,
    toy_manifest,
    write_toy_graphs,
)

from compare2score.backends import Prefix, open_backend
from compare2score.bundle import open_bundle, write_bundle
from compare2score.errors import BackendError


@pytest.fixture
def backend(bundle):
    return open_backend(open_bundle(bundle))


def pixels_of(*grays):
    return np.stack([np.full((3, SIZE, SIZE), brightness(gray), np.float32) for gray in grays])


def rewritten(tmp_path, damage, **changes):
    """A toy bundle whose graphs `damage(folder)` has changed, with hashes that match the changed files."""
    graphs = write_toy_graphs(tmp_path / "graphs")
    damage(graphs)
    return write_bundle(tmp_path / "bundle", toy_manifest(**changes), graphs, toy_anchors())


def run_all(backend):
    """Runs the three graphs."""
    tokens = backend.encode(pixels_of(1, 2))
    return backend.compare(tokens, backend.prefix(tokens))


@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_a_backend_opens_by_name_and_says_what_it_is(bundle, name):
    assert open_backend(open_bundle(bundle), name).name.startswith("onnxruntime ")


@pytest.mark.parametrize("name", ["", "tensorrt9", "ONNXRUNTIME", "onnxruntime.session"])
def test_an_unknown_backend_is_refused_with_the_known_ones(bundle, name):
    with pytest.raises(BackendError, match=r"choose 'auto' or one of 'onnxruntime', .*'tensorrt-rtx'\.$"):
        open_backend(open_bundle(bundle), name)


@pytest.mark.parametrize(
    ("name", "provider"),
    [("onnxruntime-cuda", "CUDAExecutionProvider"), ("onnxruntime-tensorrt", "TensorrtExecutionProvider")],
)
def test_a_provider_that_is_not_installed_is_no_reason_for_the_cpu(bundle, name, provider):
    if provider in onnxruntime.get_available_providers():
        pytest.skip("it is installed here")
    with pytest.raises(BackendError, match=rf"^This onnxruntime has no {provider}; install onnxruntime-gpu"):
        open_backend(open_bundle(bundle), name)


def test_a_provider_that_is_listed_but_left_out_is_no_reason_for_the_cpu(bundle, monkeypatch):
    """onnxruntime-gpu lists CUDA's provider without a driver, and makes a session without it."""
    real = onnxruntime.InferenceSession

    def session(path, options, providers):
        return real(path, options, providers=["CPUExecutionProvider"])

    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    backend = open_backend(open_bundle(bundle), "onnxruntime-cuda")
    with pytest.raises(
        BackendError, match=r"^ONNX Runtime's CUDAExecutionProvider does not work here; install"
    ):
        backend.encode(pixels_of(1))


def test_the_three_calls_follow_the_formula(backend):
    tokens = backend.encode(pixels_of(0, 100, 255))
    assert tokens.shape == (3, 2, 2)
    assert tokens.mean((1, 2)) == pytest.approx([-1, brightness(100), 1], abs=1e-6)
    prefix = backend.prefix(tokens[:2])
    assert prefix.keys.shape == prefix.values.shape == (2, 1, 1, 2, 2)
    logits = backend.compare(tokens, prefix)
    assert logits.shape == (3, 2, 5)
    # White second, grey 100 first, "superior".
    assert logits[2, 1, 4] == pytest.approx(TILT * 2 * (1 - brightness(100) + LEAN) + BUMP[4], abs=1e-5)


def test_stored_anchors_are_what_the_graphs_compute(backend):
    stored = toy_anchors()
    tokens = backend.encode(pixels_of(*ANCHOR_GRAYS))
    prefix = backend.prefix(tokens)
    for computed, kept in zip((tokens, *prefix), (stored.visual_tokens, *stored.prefix), strict=True):
        assert computed == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize("images_per_call", [None, 1, 2, 3])
def test_a_call_never_gets_more_images_than_the_manifest_allows(tmp_path, monkeypatch, images_per_call):
    bundle = rewritten(tmp_path, lambda _: None, images_per_call=images_per_call)
    backend = open_backend(bundle)
    calls = []
    run = backend.run

    def watched(graph, outputs, **inputs):
        calls.append((graph, len(next(iter(inputs.values())))))
        return run(graph, outputs, **inputs)

    monkeypatch.setattr(backend, "run", watched)
    pixels = pixels_of(10, 60, 110, 160, 210)
    tokens = backend.encode(pixels)
    prefix = backend.prefix(tokens)
    logits = backend.compare(tokens, prefix)
    expected = {None: [5], 1: [1, 1, 1, 1, 1], 2: [2, 2, 1], 3: [3, 2]}[images_per_call]
    for graph in ("vision", "prefix", "decoder"):
        assert [size for name, size in calls if name == graph] == expected
    # Divided or not, the same numbers in the same order.
    whole = open_backend(rewritten(tmp_path / "whole", lambda _: None))
    assert (tokens == whole.encode(pixels)).all()
    assert (logits == whole.compare(tokens, Prefix(*prefix))).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_does_not_change_the_answer(bundle, backend, threads):
    other = open_backend(open_bundle(bundle), threads=threads)
    pixels = pixels_of(20, 200)
    assert (other.encode(pixels) == backend.encode(pixels)).all()


@pytest.mark.parametrize("graph", ["vision", "prefix", "decoder"])
@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08\x07\x12\x00" * 50])
def test_a_damaged_graph_with_a_matching_hash_is_refused(tmp_path, capfd, graph, content):
    backend = open_backend(
        rewritten(tmp_path, lambda folder: (folder / f"{graph}.onnx").write_bytes(content))
    )
    with pytest.raises(
        BackendError, match=rf"^ONNX Runtime refuses {graph}\.onnx \(.*\); export .*\.$"
    ) as caught:
        run_all(backend)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("graph", "old", "new"),
    [
        ("vision", b"pixels", b"pixies"),
        ("vision", b"visual_tokens", b"visual_broken"),
        ("prefix", b"keys", b"kegs"),
        ("decoder", b"level_logits", b"level_digits"),
        ("decoder", b"prefix_values", b"prefix_valves"),
    ],
)
def test_a_graph_with_other_names_is_refused(tmp_path, capfd, graph, old, new):
    def rename(folder):
        path = folder / f"{graph}.onnx"
        path.write_bytes(path.read_bytes().replace(old, new))

    backend = open_backend(rewritten(tmp_path, rename))
    with pytest.raises(BackendError, match=f"refuses {graph}.onnx"):
        run_all(backend)
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_fails_while_it_runs_is_refused_without_noise(tmp_path, capfd):
    def misshape(folder):
        model = onnx.load(folder / "vision.onnx")
        shape = next(constant for constant in model.graph.initializer if constant.name == "shape")
        shape.CopyFrom(numpy_helper.from_array(np.array([-1, 7, 7]), "shape"))
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
        model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 7
        onnx.save(model, folder / "vision.onnx")

    backend = open_backend(rewritten(tmp_path, misshape))
    with pytest.raises(BackendError, match=r"refuses vision\.onnx"):
        backend.encode(pixels_of(1))
    assert capfd.readouterr() == ("", "")
