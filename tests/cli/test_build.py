"""`c2s build`: engines for GPUs that are not here (compile checks), and its refusals."""

from __future__ import annotations

import importlib.util
import json

import pytest
from toy_bundle import write_toy_bundle

from compare2score.backends.cuda import open_device
from compare2score.bundle import GRAPHS, file_hash, open_bundle
from compare2score.errors import BackendError, MissingExtraError

RTX = ("--target", "tensorrt-rtx", "--for", "sm86,sm89", "--batch", "1,4")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx-cu13 is not installed"
)


@pytest.fixture
def own(tmp_path):
    """A toy bundle that may be written to."""
    return write_toy_bundle(tmp_path / "own").path


def refusal(result):
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@needs_rtx
def test_engines_and_their_records_appear_in_the_bundle(c2s, own):
    result = c2s("build", own, *RTX)
    assert result.exit_code == 0, result.stderr
    folder = own / "engines" / "tensorrt-rtx"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{graph}.{kind}" for graph in GRAPHS for kind in ("engine", "json")
    )
    assert "sm86 sm89" in result.stdout
    assert "--backend tensorrt-rtx" in result.stdout


@needs_rtx
def test_json_states_every_engine(c2s, own):
    identity = file_hash(own / "manifest.json")
    facts = json.loads(c2s("build", own, *RTX, "--json").stdout)
    assert facts["bundle"] == str(own)
    assert [engine["graph"] for engine in facts["engines"]] == list(GRAPHS)
    for engine in facts["engines"]:
        assert engine["compute_capabilities"] == ["sm86", "sm89"]
        assert engine["precision"] == "fp16"
        assert engine["sha256"] == file_hash(own / "engines" / "tensorrt-rtx" / f"{engine['graph']}.engine")
    # The bundle is as it was.
    assert open_bundle(own).identity == identity


@needs_rtx
def test_an_engine_that_fits_is_kept_and_another_wants_rebuild(c2s, own):
    c2s("build", own, *RTX)
    engine = own / "engines" / "tensorrt-rtx" / "decoder.engine"
    before = engine.stat().st_mtime_ns
    again = c2s("build", own, *RTX)
    assert again.exit_code == 0
    assert "is there and fits" in again.stderr
    assert engine.stat().st_mtime_ns == before
    sentence = refusal(c2s("build", own, *RTX, "--precision", "fp32"))
    assert sentence.endswith(
        "build the engines again with 'c2s build BUNDLE --target tensorrt-rtx --rebuild'."
    )
    assert c2s("build", own, *RTX, "--precision", "fp32", "--rebuild").exit_code == 0
    assert json.loads((engine.parent / "decoder.json").read_text())["precision"] == "fp32"


@needs_rtx
def test_an_altered_engine_is_not_kept(c2s, own):
    c2s("build", own, *RTX)
    engine = own / "engines" / "tensorrt-rtx" / "decoder.engine"
    engine.write_bytes(engine.read_bytes()[:-1])
    assert "decoder.engine was altered" in refusal_after_kept(c2s("build", own, *RTX))
    assert c2s("build", own, *RTX, "--rebuild").exit_code == 0


def refusal_after_kept(result):
    assert result.exit_code == 2
    return result.stderr.splitlines()[-1]


@needs_rtx
def test_a_copy_with_engines_of_a_bundle_that_stays_as_it_is(c2s, bundle, tmp_path):
    out = tmp_path / "copy"
    result = c2s("build", bundle, "--out", out, *RTX)
    assert result.exit_code == 0, result.stderr
    assert not (bundle / "engines").exists()
    assert open_bundle(out).identity == open_bundle(bundle).identity
    assert (out / "engines" / "tensorrt-rtx" / "vision.engine").exists()
    assert "exists already" in refusal(c2s("build", bundle, "--out", out, *RTX))


@needs_rtx
@pytest.mark.slow
def test_engines_of_the_embedded_bundle_for_two_gpus_that_do_not_run_here(c2s, tmp_path, photos):
    out = tmp_path / "engines-bundle"
    result = c2s("build", "--target", "tensorrt-rtx", "--for", "sm86,sm89", "--out", out)
    assert result.exit_code == 0, result.stderr
    try:
        open_device()
    except (BackendError, MissingExtraError):
        pass
    else:
        pytest.skip("there is a GPU here")
    sentence = refusal(c2s("score", photos / "a.png", "--bundle", out, "--backend", "tensorrt-rtx"))
    assert sentence.startswith("No NVIDIA GPU can be used here (")
    facts = json.loads(c2s("info", "--bundle", out, "--json").stdout)
    assert facts["backend"].startswith("onnxruntime")
    assert "its tensorrt-rtx engines cannot be used: No NVIDIA GPU" in facts["backend_reason"]
    assert [engine["graph"] for engine in facts["engines"]] == list(GRAPHS)
    assert "engine: decoder" in c2s("info", "--bundle", out).stdout


@needs_rtx
def test_eight_bits_are_calibrated_with_images(c2s, own, photos):
    sentence = refusal(c2s("build", own, *RTX, "--precision", "int8"))
    assert sentence == "int8 needs images to calibrate with; give a folder of some with --images."
    result = c2s("build", own, *RTX, "--precision", "int8", "--images", photos)
    assert result.exit_code == 0, result.stderr


@needs_rtx
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "tensorrt-rtx", "--for", "sm90"), "does not build for sm90; choose of sm75"),
        (("--target", "tensorrt-rtx", "--for", "sm86", "--precision", "fp8"), "sm86 has no eight-bit floats"),
    ],
)
def test_what_cannot_be_built_is_said_before_anything_is_written(
    c2s, bundle, tmp_path, photos, arguments, words
):
    out = tmp_path / "out"
    result = c2s("build", bundle, "--out", out, "--images", photos, *arguments)
    assert words in refusal(result)
    assert not out.exists()


def test_the_embedded_bundle_wants_a_place_for_the_copy(c2s):
    assert "give --out DIR" in refusal(c2s("build", "--target", "tensorrt-rtx", "--for", "sm86"))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_without_the_library_the_install_is_named(c2s, own):
    sentence = refusal(c2s("build", own, "--target", "tensorrt"))
    assert sentence.endswith("pip install 'compare2score-edge[tensorrt]'.")


@pytest.mark.parametrize("batch", ["0", "1,x", ""])
def test_batches_are_whole_numbers(c2s, own, batch):
    result = c2s("build", own, "--batch", batch)
    assert result.exit_code == 2
    assert "--batch" in result.stderr
