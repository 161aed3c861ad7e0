"""The TensorRT backend's sizes and order of calls over a stand-in for the GPU: this is no run on a GPU."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import ANCHOR_GRAYS, SIZE, brightness, write_toy_bundle

sys.path.insert(0, str(Path(__file__).parent))

from standin_gpu import StandInDevice, standin_module

from compare2score import Scorer
from compare2score.backends import Prefix, choice, open_backend
from compare2score.backends.tensorrt import TensorrtBackend, divide, rows_before
from compare2score.bundle import GRAPHS, open_bundle
from compare2score.engine import EngineRecord, engine_path, record_path, source_hash, write_engine
from compare2score.errors import BackendError

BATCHES = (1, 4, 16)


def profiles_of(graph, anchors=5):
    shapes = {
        "vision": {"pixels": ("images", 3, SIZE, SIZE)},
        "prefix": {"visual_tokens": ("anchors", 2, 2)},
        "decoder": {
            "visual_tokens": ("images", 2, 2),
            "prefix_keys": ("anchors", 1, 1, 2, 2),
            "prefix_values": ("anchors", 1, 1, 2, 2),
        },
    }[graph]

    def sized(first, rest, batch):
        bounds = (batch,) * 3 if first == "images" else (1, anchors, anchors)
        return tuple((length, *rest) for length in bounds)

    sizes = (1,) if graph == "prefix" else BATCHES
    return tuple({n: sized(first, rest, size) for n, (first, *rest) in shapes.items()} for size in sizes)


def with_engines(folder, **changes):
    """A toy bundle whose "engines" are its graphs."""
    bundle = write_toy_bundle(folder)
    for graph in GRAPHS:
        content = bundle.graph(graph).read_bytes()
        values = {
            "graph": graph,
            "target": "tensorrt",
            "version": "10.99",
            "compute_capabilities": ("sm80", "sm86"),
            "source": source_hash(bundle, graph),
            "precision": "fp16",
            "profiles": profiles_of(graph),
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "seconds": 1.0,
        }
        write_engine(bundle.path, EngineRecord(**{**values, **changes}), content)
    return open_bundle(bundle.path)


@pytest.fixture
def opened(tmp_path):
    return with_engines(tmp_path / "bundle")


@pytest.fixture
def device():
    return StandInDevice()


@pytest.fixture
def backend(opened, device):
    module = standin_module(device, [profiles_of(graph) for graph in GRAPHS])
    return TensorrtBackend(opened, "tensorrt", module, device)


def pixels_of(*grays):
    return np.stack([np.full((3, SIZE, SIZE), brightness(gray), np.float32) for gray in grays])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 16, 21, 40])
def test_any_number_of_images_gets_what_the_graphs_compute(opened, backend, count):
    reference = open_backend(opened, "onnxruntime")
    pixels = pixels_of(*np.linspace(3, 250, count))
    tokens = backend.encode(pixels)
    assert np.array_equal(tokens, reference.encode(pixels))
    anchors = opened.anchors.prefix
    for _ in range(4):  # plain, then captured, then replayed
        assert np.allclose(backend.compare(tokens, anchors), reference.compare(tokens, anchors), atol=1e-6)


def test_prefixes_of_other_images_are_compared_in_parts(opened, backend):
    reference = open_backend(opened, "onnxruntime")
    tokens = backend.encode(pixels_of(*range(0, 240, 20)))
    prefix = backend.prefix(tokens)
    for got, expected in zip(prefix, reference.prefix(tokens), strict=True):
        assert np.array_equal(got, expected)
    logits = backend.compare(tokens[:3], prefix)
    assert logits.shape == (3, 12, 5)
    assert np.allclose(logits, reference.compare(tokens[:3], prefix), atol=1e-6)


def test_calls_of_every_kind_may_alternate(opened, backend):
    reference = open_backend(opened, "onnxruntime")
    anchors, tokens = opened.anchors.prefix, backend.encode(pixels_of(10, 200))
    other = backend.prefix(tokens)
    for prefix in (
        anchors,
        other,
        anchors,
        Prefix(anchors.keys[2:3], anchors.values[2:3]),
        anchors,
        anchors,
        other,
    ):
        for count in (1, 2):
            got = backend.compare(tokens[:count], prefix)
            assert np.allclose(got, reference.compare(tokens[:count], prefix), atol=1e-6)


def test_the_anchors_go_to_the_gpu_once(opened, backend, device):
    tokens = backend.encode(pixels_of(10, 200, 30))
    anchors = opened.anchors.prefix
    sizes = [array.nbytes for array in anchors]
    device.log.clear()
    backend.compare(tokens, anchors)
    uploads = [entry[1] for entry in device.log if entry[0] == "upload"]
    assert uploads == [*sizes, 4 * tokens[0].nbytes]
    device.log.clear()
    for _ in range(3):
        backend.compare(tokens, anchors)
    uploads = [entry[1] for entry in device.log if entry[0] == "upload"]
    assert set(uploads) <= {4 * tokens[0].nbytes}
    assert not [entry for entry in device.log if entry[0] == "allocate"]
    assert device.log.count("capture") == 1
    assert device.log.count("replay") == 2


def test_a_call_copies_in_computes_and_copies_out_in_this_order(backend, device):
    backend.encode(pixels_of(10))
    device.log.clear()
    backend.encode(pixels_of(10))
    assert [entry[0] for entry in device.log if isinstance(entry, tuple)] == ["upload", "execute", "download"]
    assert device.log[-1] == "synchronize"


def test_buffers_are_made_once_for_the_largest_shapes(opened, backend, device):
    for count in (3, 4, 2, 3):
        backend.encode(pixels_of(*range(count)))
    allocated = [entry[1] for entry in device.log if entry[0] == "allocate"]
    assert allocated == [4 * 2 * 2 * 4, 4 * 3 * SIZE * SIZE * 4]


def test_the_prefix_engine_is_read_when_it_is_needed(backend):
    assert sorted(backend.engines) == ["decoder", "vision"]
    backend.prefix(backend.encode(pixels_of(10, 200)))
    assert "prefix" in backend.engines


def test_a_scorer_over_engines_scores_as_over_the_cpu(opened, backend):
    pictures = [np.full((8, 8, 3), gray, np.uint8) for gray in (5, 90, 130, 250, 60)]
    engine, cpu = Scorer(opened, backend=backend), Scorer(opened, backend="onnxruntime")
    pairs = zip(engine.score_many(pictures), cpu.score_many(pictures), strict=True)
    for got, expected in pairs:
        assert got.value == pytest.approx(expected.value, abs=1e-6)
    assert engine.compare(*pictures[:2]).probability == pytest.approx(cpu.compare(*pictures[:2]).probability)
    adaptive = [
        Scorer(opened, backend=b, anchors="adaptive").score(pictures[1]).q for b in (backend, "onnxruntime")
    ]
    assert adaptive[0] == pytest.approx(adaptive[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "10.3"}, "was built by tensorrt 10.3, and 10.99 is installed"),
        ({"compute_capabilities": ("sm87", "sm110")}, "was built for sm87 and sm110, and this GPU is sm86"),
        ({"source": "0" * 64}, "was built from another graph than the bundle's"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_with_the_remedy(tmp_path, device, changes, words):
    bundle = with_engines(tmp_path / "bundle", **changes)
    with pytest.raises(
        BackendError, match=rf"{words}; .*'c2s build BUNDLE --target tensorrt --rebuild'\.$"
    ) as caught:
        TensorrtBackend(bundle, "tensorrt", standin_module(device, []), device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_an_altered_engine_is_refused(opened, device, graph):
    path = engine_path(opened.path, "tensorrt", graph)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    module = standin_module(device, [profiles_of(name) for name in GRAPHS])
    with pytest.raises(BackendError, match=rf"{graph}\.engine was altered.* --rebuild'\.$"):
        TensorrtBackend(opened, "tensorrt", module, device)


def test_an_engine_that_the_library_refuses_is_said_in_its_words(opened, device):
    module = standin_module(device, [], refuses=True)
    with pytest.raises(
        BackendError, match=r"refuses the engine of vision\.onnx \(Version tag does not match\)"
    ):
        TensorrtBackend(opened, "tensorrt", module, device)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2}', "\x00", '{"format": 1, "graph": "vision"}']
)
def test_a_damaged_record_is_refused(opened, device, content):
    record_path(opened.path, "tensorrt", "vision").write_text(content)
    with pytest.raises(BackendError, match=r"vision\.json is no engine's record; .* --rebuild'\.$"):
        TensorrtBackend(opened, "tensorrt", standin_module(device, []), device)


def test_a_bundle_without_engines_says_how_to_get_them(bundle):
    with pytest.raises(
        BackendError, match=r"has no engine of vision\.onnx for tensorrt; build it with 'c2s build"
    ):
        open_backend(open_bundle(bundle), "tensorrt")


def gpu_here(monkeypatch, capability="sm86"):
    """Lets the choice see the stand-in, and some installed module in place of TensorRT."""
    device = StandInDevice()
    device.capability = capability
    monkeypatch.setattr(choice, "open_device", lambda: device)
    monkeypatch.setattr(choice, "MODULES", {"tensorrt": "json", "tensorrt-rtx": "json"})


def test_engines_for_this_gpu_are_chosen(opened, monkeypatch):
    gpu_here(monkeypatch)
    chosen = choice.choose_backend(opened)
    assert (chosen.name, chosen.reason) == ("tensorrt", "the bundle has engines for this GPU")


def test_engines_for_another_gpu_leave_the_cpu_and_are_named(opened, monkeypatch):
    gpu_here(monkeypatch, "sm110")
    chosen = choice.choose_backend(opened)
    assert chosen.name == "onnxruntime"
    assert chosen.reason == (
        "its tensorrt engines cannot be used: they are for sm80 and sm86, and this GPU is sm110"
    )


def test_engines_without_their_library_leave_the_cpu_and_are_named(opened, monkeypatch):
    gpu_here(monkeypatch)
    monkeypatch.setattr(choice, "MODULES", {"tensorrt": "no_such_module", "tensorrt-rtx": "json"})
    assert choice.choose_backend(opened).reason.endswith("no_such_module is not installed")


def test_stale_engines_for_this_gpu_are_no_reason_for_the_cpu(tmp_path, monkeypatch, device):
    """They are chosen, and opening them says what to do."""
    gpu_here(monkeypatch)
    stale = with_engines(tmp_path / "bundle", source="0" * 64)
    assert choice.choose_backend(stale).name == "tensorrt"
    with pytest.raises(BackendError, match=r"--rebuild'\.$"):
        TensorrtBackend(stale, "tensorrt", standin_module(device, []), device)


def test_engines_are_no_part_of_a_bundle(opened):
    before = open_bundle(opened.path)
    assert before.identity == opened.identity
    listed = json.loads((opened.path / "manifest.json").read_text())["files"]
    assert not [name for name in listed if "engine" in name]


@pytest.mark.parametrize(
    ("count", "batches", "expected"),
    [
        (1, (1, 4, 16), [1]),
        (3, (1, 4, 16), [4]),
        (5, (1, 4, 16), [4, 1]),
        (8, (1, 4, 16), [16]),
        (37, (1, 4, 16), [16, 16, 4, 1]),
        (1, (8,), [8]),
        (17, (8,), [8, 8, 8]),
        (0, (1, 4), []),
    ],
)
def test_images_are_divided_into_the_batches_there_are(count, batches, expected):
    assert divide(count, batches) == expected


def test_rows_of_stored_anchors_are_known_by_their_place_in_memory():
    whole = np.zeros((5, 2, 3), np.float32)
    assert rows_before(whole, whole) == 0
    assert rows_before(whole[2:4], whole) == 2
    assert rows_before(whole[::2], whole) is None
    assert rows_before(whole.copy(), whole) is None
    assert rows_before(whole[:, :1], whole) is None
    assert len(ANCHOR_GRAYS) == 5
