"""A bundle that is whole opens; every damage is refused with one sentence, and nothing else ever happens."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from toy_bundle import (
    anchor_matrix,
    gray_image,
    toy_anchors,
    toy_manifest,
    write_toy_bundle,
    write_toy_graphs,
)

import compare2score.bundle as bundle_module
from compare2score import Scorer, integrity
from compare2score.backends import Prefix
from compare2score.bundle import file_hash, open_bundle, write_bundle
from compare2score.errors import BundleError, Compare2ScoreError

MANIFEST, ANCHORS = "manifest.json", "anchors.safetensors"
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle that a test may damage."""
    return shutil.copytree(bundle, tmp_path / "copy")


def refusal(folder):
    """What open_bundle says of a folder that it refuses: one sentence."""
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert "; " in sentence, "says what is wrong, but not what to do"
    return sentence


def edit(folder, **changes):
    """Changes values of the manifest; a name with two underscores leads into an object."""
    values = json.loads((folder / MANIFEST).read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = values
        for key in outer:
            place = place[key]
        place[last] = value
    (folder / MANIFEST).write_text(json.dumps(values))


def replace_file(folder, name, content):
    """Writes a file and gives the manifest its size and hash, as an attacker would."""
    (folder / name).write_bytes(content)
    values = json.loads((folder / MANIFEST).read_text())
    values["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(values))


# Whole bundles


def test_a_written_bundle_is_read_back_as_it_was(tmp_path):
    manifest = toy_manifest(
        images_per_call=3, temperature=0.7, notes={"licence": "none", "drift": [1.5, None]}
    )
    write_bundle(tmp_path / "new", manifest, write_toy_graphs(tmp_path / "graphs"), toy_anchors())
    opened = open_bundle(tmp_path / "new")
    assert opened.manifest == manifest
    assert opened.path == tmp_path / "new"
    kept, given = opened.anchors, toy_anchors()
    assert kept.names == given.names
    assert (kept.matrix == given.matrix).all()
    for read, written in zip(
        (kept.visual_tokens, *kept.prefix), (given.visual_tokens, *given.prefix), strict=True
    ):
        assert read.dtype == np.float32
        assert (read == written).all()
    for graph in ("vision", "prefix", "decoder"):
        assert opened.graph(graph).read_bytes() == (tmp_path / "graphs" / f"{graph}.onnx").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX")
def test_whoever_may_read_one_file_may_read_all(tmp_path):
    written = write_toy_bundle(tmp_path / "new")
    assert len({path.stat().st_mode for path in written.path.iterdir()}) == 1


def test_a_bundle_without_anchors_is_whole(tmp_path):
    opened = write_bundle(tmp_path / "bare", toy_manifest(), write_toy_graphs(tmp_path / "graphs"), None)
    assert opened.anchors is None
    assert not (tmp_path / "bare" / ANCHORS).exists()


def test_the_anchors_of_the_graphs_folder_do_not_leak_into_a_new_bundle(tmp_path, bundle):
    assert write_bundle(tmp_path / "bare", toy_manifest(), bundle, None).anchors is None
    assert not (tmp_path / "bare" / ANCHORS).exists()


def test_the_identity_is_the_manifests_hash_and_equal_for_equal_bundles(tmp_path, bundle):
    again = write_toy_bundle(tmp_path / "again")
    assert again.identity == open_bundle(bundle).identity == file_hash(bundle / MANIFEST)
    assert again.identity != write_toy_bundle(tmp_path / "other", temperature=3.0).identity


def test_the_manifest_states_every_files_size_and_hash(bundle):
    files = json.loads((bundle / MANIFEST).read_text())["files"]
    assert set(files) == {path.name for path in bundle.iterdir()} - {MANIFEST}
    for name, record in files.items():
        content = (bundle / name).read_bytes()
        assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_unlisted_files_and_unknown_keys_do_no_harm(copy):
    (copy / "engines").mkdir()
    (copy / "notes.txt").write_text("mine")
    edit(copy, later_addition={"a": 1})
    assert open_bundle(copy).manifest.model == "toy"


def test_a_path_may_be_text(bundle):
    assert open_bundle(str(bundle)).path == bundle


# Damage to files


@pytest.mark.parametrize("what", ["absent", "empty folder", "file", "NUL"])
def test_what_is_no_bundle_folder_is_refused(tmp_path, what):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "file").write_text("{}")
    assert "is no bundle" in refusal("a\0b" if what == "NUL" else tmp_path / what)


def test_a_manifest_that_is_a_folder_is_refused(copy):
    (copy / MANIFEST).unlink()
    (copy / MANIFEST).mkdir()
    assert "is no bundle" in refusal(copy)


@pytest.mark.parametrize("name", ["vision.onnx", "prefix.onnx", "decoder.onnx", ANCHORS])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    assert f"{name} is missing" in refusal(copy)


@pytest.mark.parametrize("name", ["vision.onnx", "prefix.onnx", "decoder.onnx", ANCHORS])
@pytest.mark.parametrize("kept", [0, 0.5, -1])
def test_a_truncated_file_is_named(copy, name, kept):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(kept * len(content)) if kept >= 0 else -1])
    assert f"{name} is truncated" in refusal(copy)


@pytest.mark.parametrize("name", ["vision.onnx", "prefix.onnx", "decoder.onnx", ANCHORS])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_one_altered_bit_is_noticed(copy, name, place):
    content = bytearray((copy / name).read_bytes())
    content[int(place * len(content)) if place >= 0 else -1] ^= 1
    (copy / name).write_bytes(content)
    assert f"{name} was altered" in refusal(copy)


def test_a_file_put_in_a_files_place_is_noticed(copy):
    (copy / "vision.onnx").unlink()
    (copy / "vision.onnx").mkdir()
    assert "vision.onnx is missing" in refusal(copy)


def test_a_file_that_cannot_be_read_is_refused(copy, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(integrity, "read_through", refuse)
    assert "cannot be read (Permission denied)" in refusal(copy)


# Damage to the manifest


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is no JSON object"),
        (b"null", "is no JSON object"),
        (b'"manifest"', "is no JSON object"),
        (b"{}", "has bundle format unstated, this version reads 1"),
    ],
)
def test_a_manifest_of_another_form_is_refused(copy, content, said):
    (copy / MANIFEST).write_bytes(content)
    assert said in refusal(copy)


@pytest.mark.parametrize("version", [0, 2, -1, 1.5, "1", True, None, [1], {"a": 1}, 10**400])
def test_another_format_version_is_refused(copy, version):
    edit(copy, format=version)
    sentence = refusal(copy)
    assert "bundle format" in sentence
    assert "install the version that wrote it" in sentence
    assert len(sentence) < 300


REQUIRED = (
    "files",
    "anchors",
    "model",
    "precision",
    "image",
    "prompt",
    "levels",
    "level_weights",
    "temperature",
    "images_per_call",
    "notes",
)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(copy, key):
    values = json.loads((copy / MANIFEST).read_text())
    del values[key]
    (copy / MANIFEST).write_text(json.dumps(values))
    assert f"does not state '{key}'" in refusal(copy)


def test_the_manifest_has_no_key_that_is_not_required(bundle):
    assert set(json.loads((bundle / MANIFEST).read_text())) == {"format", *REQUIRED}


@pytest.mark.parametrize("name", ["../vision.onnx", "/etc/passwd", "a/b", "a\\b", "C:b", "./vision.onnx", ""])
def test_a_file_name_that_leads_elsewhere_is_refused(copy, name):
    (copy.parent / "vision.onnx").write_bytes((copy / "vision.onnx").read_bytes())
    record = json.loads((copy / MANIFEST).read_text())["files"]["vision.onnx"]
    edit(copy, **{"files__" + name: record})
    sentence = refusal(copy)
    assert "is no plain file name; do not use it" in sentence or (name == "" and "is missing" in sentence)


def with_data_elsewhere(graph, location, reverse=False):
    """An ONNX file's bytes with the data of its first tensor in another file."""
    model = onnx.load(graph)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="length", value="16")
    tensor.external_data.add(key="location", value=location)
    content = model.SerializeToString()
    forward = b"\x0a\x08location\x12" + bytes([len(location)]) + location.encode()
    assert forward in content
    return content.replace(forward, forward[10:] + forward[:10]) if reverse else content


@pytest.mark.parametrize("name", ["vision.onnx", "decoder.onnx"])
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_graph_that_takes_data_from_another_file_is_refused(copy, name, location, reverse):
    for folder in (copy, copy.parent):
        (folder / "weights.bin").write_bytes(bytes(16))
    replace_file(copy, name, with_data_elsewhere(copy / name, location, reverse))
    said = "in a way that is not understood" if reverse else "which may lie anywhere"
    assert said in refusal(copy)


@pytest.mark.parametrize("length", [b"\x08", b"\x88\x00", b"\x88\x80\x80\x80\x00"])
@pytest.mark.parametrize("tag", [b"\x0a", b"\x8a\x00", b"\x8a\x80\x80\x80\x00"])
@pytest.mark.parametrize("before", [0, (1 << 20) - 5, (1 << 20) + 20])
def test_the_mark_of_data_elsewhere_is_found_however_it_is_written(tmp_path, tag, length, before):
    (tmp_path / "graph.onnx").write_bytes(bytes(before) + tag + length + b"location" + bytes(9))
    assert integrity.read_through(tmp_path / "graph.onnx")[1]


WEIGHTS = "decoder.weights"


def with_listed_weights(folder, offset="0", **stated):
    """Moves a constant of the decoder to a file of its own that the manifest lists."""
    model = onnx.load(folder / "decoder.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "slopes")
    replace_file(folder, WEIGHTS, tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": WEIGHTS, "offset": offset, "length": "20", **stated}.items():
        tensor.external_data.add(key=key, value=value)
    replace_file(folder, "decoder.onnx", model.SerializeToString())


def test_a_graph_may_take_data_from_a_listed_file_of_the_bundle(copy, bundle, tmp_path):
    with_listed_weights(copy)
    photo = gray_image(tmp_path / "gray.png", 99)
    assert Scorer(copy).score(photo) == Scorer(bundle).score(photo)


def test_altered_data_of_a_graph_are_noticed(copy):
    with_listed_weights(copy)
    (copy / WEIGHTS).write_bytes(bytes(20))
    assert f"{WEIGHTS} was altered" in refusal(copy)


@pytest.mark.parametrize(
    "location", ["../decoder.weights", "./decoder.weights", "/decoder.weights", "other", ""]
)
def test_a_graph_that_takes_data_from_a_file_that_is_not_listed_is_refused(copy, location):
    (copy / "other").write_bytes(bytes(20))
    with_listed_weights(copy, location=location)
    assert "takes data from another file, which may lie anywhere" in refusal(copy)


@pytest.mark.parametrize(
    "stated", [{"offset": "1"}, {"length": "21"}, {"offset": "9" * 18}, {"offset": "20"}]
)
def test_a_graph_that_takes_data_from_beyond_the_end_is_refused(copy, stated):
    with_listed_weights(copy, **stated)
    assert "takes data from beyond the end of decoder.weights" in refusal(copy)


@pytest.mark.parametrize(
    "stated", [{"offset": "-1"}, {"offset": "0x4"}, {"length": "٢٠"}, {"basepath": "/etc"}]
)
def test_a_graph_whose_external_data_are_not_understood_is_refused(copy, stated):
    with_listed_weights(copy, **stated)
    assert "in a way that is not understood" in refusal(copy)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_a_graph_that_takes_data_through_a_link_is_refused(copy):
    with_listed_weights(copy)
    (copy / WEIGHTS).rename(copy.parent / "elsewhere")
    (copy / WEIGHTS).symlink_to(copy.parent / "elsewhere")
    assert "decoder.weights is a link" in refusal(copy)


def test_a_large_file_of_two_bundles_is_one_file_on_disk(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(bundle_module, "LARGE", 100)
    written = write_bundle(tmp_path / "new", toy_manifest(), bundle, toy_anchors())
    assert written.graph("decoder").samefile(bundle / "decoder.onnx")
    assert (bundle / "decoder.onnx").stat().st_size >= 100


def test_keys_and_values_may_be_float16(tmp_path, bundle):
    anchors = toy_anchors()
    halves = Prefix(*(part.astype(np.float16) for part in anchors.prefix))
    written = write_bundle(tmp_path / "new", toy_manifest(), bundle, replace(anchors, prefix=halves))
    read = open_bundle(written.path).anchors.prefix
    assert read.keys.dtype == read.values.dtype == np.float16
    mixed = replace(anchors, prefix=Prefix(halves.keys, anchors.prefix.values))
    with pytest.raises(BundleError, match="differ in kind"):
        write_bundle(tmp_path / "mixed", toy_manifest(), bundle, mixed)


def test_a_graph_may_speak_of_a_location(copy):
    model = onnx.load(copy / "vision.onnx")
    model.graph.node[0].name, model.doc_string = "location_of_pixels", "its location"
    replace_file(copy, "vision.onnx", model.SerializeToString())
    assert open_bundle(copy).manifest.model == "toy"


@pytest.mark.parametrize("name", ["vision.onnx", "prefix.onnx", "decoder.onnx", ANCHORS])
def test_an_unlisted_graph_is_refused(copy, name):
    values = json.loads((copy / MANIFEST).read_text())
    del values["files"][name]
    (copy / MANIFEST).write_text(json.dumps(values))
    assert f"does not list {name}" in refusal(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": ["vision.onnx"]},
        {"files": None},
        {"files__vision.onnx": None},
        {"files__vision.onnx": "sha256"},
        {"files__vision.onnx": {"bytes": 1}},
        {"files__vision.onnx__bytes": "12"},
        {"files__vision.onnx__sha256": None},
        {"model": None},
        {"precision": 8},
        {"prompt": ["a"]},
        {"notes": "free text"},
        {"image": None},
        {"image__size": 1e999},
        {"image__size": 10**400},
        {"image__mean": [0.5, 0.5, float("nan")]},
        {"levels": "abcde"},
        {"levels": ["a", "b", "c", "d", 5]},
        {"levels": [], "level_weights": []},
        {"levels": ["similar"], "level_weights": [0.5]},
        {"level_weights": [0, 0.25, 0.5, 0.75]},
        {"level_weights": [0, 0.25, 0.5, 0.75, 1.25]},
        {"level_weights": [0, 0.25, 0.5, 0.75, float("nan")]},
        {"level_weights": [0, 0.25, 0.5, 0.75, "1"]},
        {"level_weights": [0, 0.25, 0.5, 0.75, 10**400]},
        {"level_weights": {"a": 1}},
        {"temperature": 0},
        {"temperature": -1},
        {"temperature": "100"},
        {"temperature": True},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-300},
        {"temperature": 10**400},
        {"images_per_call": 0},
        {"images_per_call": -1},
        {"images_per_call": 1.5},
        {"images_per_call": True},
        {"images_per_call": "1"},
        {"anchors": []},
        {"anchors": False},
        {"anchors": {"names": []}},
        {"anchors__names": "abcde"},
        {"anchors__names": ["a", "b", "c", "d"]},
        {"anchors__names": ["a", "b", "c", "d", 5]},
        {"anchors__matrix": None},
        {"anchors__matrix": [[0.5]]},
        {"anchors__matrix": [[0.5] * 5] * 4},
        {"anchors__matrix": [[0.5] * 5] * 4 + [[0.5] * 4]},
        {"anchors__matrix": [["0.5"] * 5] * 5},
        {"anchors__matrix": [[None] * 5] * 5},
        {"anchors__matrix": [[True] * 5] * 5},
        {"anchors__matrix": [[0.5] * 5] * 4 + [[0.5] * 4 + [float("nan")]]},
        {"anchors__matrix": [[0.5] * 5] * 4 + [[0.5] * 4 + [1.0000001]]},
        {"anchors__matrix": [[0.5] * 5] * 4 + [[0.5] * 4 + [-0.1]]},
        {"anchors__matrix": [[0.5] * 5] * 4 + [[0.5] * 4 + [1e999]]},
        {"anchors__matrix": [[0.5] * 5] * 4 + [[0.5] * 4 + [10**400]]},
        {"anchors": {"names": [], "matrix": []}},
    ],
    ids=lambda changes: ", ".join(f"{name}={str(value)[:30]}" for name, value in changes.items()),
)
def test_a_value_of_the_wrong_kind_is_refused(copy, changes):
    edit(copy, **changes)
    refusal(copy)


# Damage to the anchors' tensors, with a matching hash


def tensors_of(folder):
    return dict(load_file(folder / ANCHORS))


@pytest.mark.parametrize("name", ["visual_tokens", "keys", "values"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor[:4],
        lambda tensor: tensor.astype(np.float64),
        lambda tensor: tensor.astype(np.int32),
        lambda tensor: tensor[..., 0],
        lambda tensor: tensor[0, 0, 0].sum(),
        None,
    ],
    ids=["four rows", "float64", "int32", "a dimension less", "a number", "absent"],
)
def test_anchors_of_another_shape_or_kind_are_refused(copy, name, change):
    tensors = tensors_of(copy)
    tensor = tensors.pop(name)
    if change is not None:
        tensors[name] = np.ascontiguousarray(change(tensor)).reshape(np.shape(change(tensor)))
    save_file(tensors, copy / ANCHORS)
    replace_file(copy, ANCHORS, (copy / ANCHORS).read_bytes())
    refusal(copy)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 64,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}",
        # A pickle that would print, were anything to load it.
        b"\x80\x04c__builtin__\nprint\n\x8c\x05pwned\x85R.",
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(copy, content, capsys):
    replace_file(copy, ANCHORS, content)
    refusal(copy)
    assert capsys.readouterr().out == ""


# Whatever the bytes


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, "../x", "vision.onnx", 1e308, 0.5]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Paths of all values inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@FUZZ
@given(data=st.data())
def test_any_json_value_in_any_place_opens_and_scores_or_is_refused(data, bundle, tmp_path):
    folder = tmp_path / "fuzzed"
    if not folder.exists():
        shutil.copytree(bundle, folder)
        gray_image(tmp_path / "gray.png", 99)
    values = json.loads((bundle / MANIFEST).read_text())
    path = data.draw(st.sampled_from(list(places(values))[1:]))
    place = values
    for key in path[:-1]:
        place = place[key]
    if data.draw(st.booleans()):
        place[path[-1]] = data.draw(JSON_VALUES)
    else:
        place.pop(path[-1])
    (folder / MANIFEST).write_text(json.dumps(values))
    try:
        size = open_bundle(folder).manifest.image.size
        assume(size < 100)
        Scorer(folder).score(tmp_path / "gray.png")
    except Compare2ScoreError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@FUZZ
@given(data=st.data())
def test_any_bytes_in_the_manifest_open_or_are_refused(data, bundle, tmp_path):
    folder = tmp_path / "fuzzed"
    if not folder.exists():
        shutil.copytree(bundle, folder)
    content = bytearray((bundle / MANIFEST).read_bytes())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=8))
    (folder / MANIFEST).write_bytes(content)
    try:
        open_bundle(folder)
    except BundleError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@FUZZ
@given(data=st.data())
def test_any_safetensors_header_opens_or_is_refused(data, bundle, tmp_path):
    folder = tmp_path / "fuzzed"
    if not folder.exists():
        shutil.copytree(bundle, folder)
    content = (bundle / ANCHORS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, tensors = content[8 : 8 + length], content[8 + length :]
    kind = data.draw(st.sampled_from(["bytes", "value", "dtype", "length"]))
    if kind == "bytes":
        start = data.draw(st.integers(0, len(header)))
        header = (
            header[:start] + data.draw(st.binary(max_size=8)) + header[start + data.draw(st.integers(0, 8)) :]
        )
    elif kind == "length":
        length = data.draw(st.integers(0, 2**64 - 1))
    else:
        values = json.loads(header)
        path = data.draw(st.sampled_from(list(places(values))[1:]))
        if kind == "dtype":
            names = ["BF16", "F8_E4M3", "F8_E5M2", "F4", "U8", "BOOL", "F64", "C64", "I16"]
            path = (data.draw(st.sampled_from(sorted(values))), "dtype")
        place = values
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = data.draw(st.sampled_from(names) if kind == "dtype" else JSON_VALUES)
        header = json.dumps(values).encode()
    if kind != "length":
        length = len(header)
    shutil.copyfile(bundle / MANIFEST, folder / MANIFEST)
    replace_file(folder, ANCHORS, struct.pack("<Q", length) + header + tensors)
    try:
        open_bundle(folder)
    except BundleError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


# Writing


@pytest.mark.parametrize("what", ["bundle", "empty folder", "file"])
def test_what_exists_is_never_written_over(tmp_path, bundle, what):
    target = tmp_path / "target"
    if what == "bundle":
        shutil.copytree(bundle, target)
    elif what == "file":
        target.write_text("mine")
    else:
        target.mkdir()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(BundleError, match="exists already; choose another folder"):
        write_bundle(target, toy_manifest(), bundle, toy_anchors())
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["save", "file_hash", "open_bundle"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing_behind(tmp_path, bundle, monkeypatch, name, failure):
    def fail(*_):
        raise failure

    monkeypatch.setattr(bundle_module, name, fail)
    with pytest.raises(type(failure)):
        write_bundle(tmp_path / "deep" / "new", toy_manifest(), bundle, toy_anchors())
    assert list((tmp_path / "deep").iterdir()) == []


def test_what_makes_no_bundle_is_not_written(tmp_path, bundle):
    with pytest.raises(BundleError, match="temperature"):
        write_bundle(tmp_path / "new", toy_manifest(temperature=float("nan")), bundle, toy_anchors())
    assert list(tmp_path.iterdir()) == []


def test_one_anchor_is_too_few(tmp_path):
    with pytest.raises(BundleError, match="fewer than two anchors"):
        write_toy_bundle(tmp_path / "new", toy_anchors((128,)))
    assert not (tmp_path / "new").exists()


def test_a_neighbour_that_is_called_part_is_left_alone(tmp_path, bundle):
    (tmp_path / "new.part").mkdir()
    (tmp_path / "new.part" / "thesis.txt").write_text("mine")
    write_bundle(tmp_path / "new", toy_manifest(), bundle, toy_anchors())
    assert (tmp_path / "new.part" / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new.part"]


def test_the_toy_anchors_matrix_is_a_preference_matrix():
    matrix = anchor_matrix()
    assert matrix + matrix.T == pytest.approx(np.ones((5, 5)))
    assert (np.diff(matrix[:, 2]) > 0).all()
