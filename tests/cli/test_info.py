"""`c2s info`: the bundle and the machine, as they are."""

from __future__ import annotations

import importlib.metadata
import json
import os

import pytest
from toy_bundle import TEMPERATURE, anchor_matrix, toy_manifest, write_toy_graphs

from compare2score.bundle import file_hash, write_bundle


def test_json_states_the_bundle_as_it_is(c2s, bundle):
    result = c2s("info", "--bundle", bundle, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["bundle"] == str(bundle)
    assert facts["identity"] == file_hash(bundle / "manifest.json")
    assert (facts["model"], facts["precision"], facts["image_size"]) == ("toy", "fp32", 4)
    assert facts["temperature"] == TEMPERATURE
    assert facts["levels"] == ["inferior", "worse", "similar", "better", "superior"]
    assert facts["anchors"]["names"][0] == "gray32.png"
    for row, expected in zip(facts["anchors"]["matrix"], anchor_matrix().tolist(), strict=True):
        assert row == pytest.approx(expected)
    assert facts["files"] == {path.name: path.stat().st_size for path in bundle.iterdir()}


def test_json_states_the_machine(c2s, bundle):
    facts = json.loads(c2s("info", "--bundle", bundle, "--json").stdout)
    assert facts["backend"].startswith(f"onnxruntime {importlib.metadata.version('onnxruntime')}")
    assert facts["backend_reason"]
    assert facts["cpus"] == os.cpu_count()
    assert facts["packages"]["compare2score-edge"] == importlib.metadata.version("compare2score-edge")


def test_text_shows_the_preference_matrix(c2s, bundle):
    lines = c2s("info", "--bundle", bundle).stdout.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("Anchor"))
    assert lines[start - 1] == "P(row preferred over column)"
    shown = [[float(cell) for cell in line.split()[2:]] for line in lines[start + 1 : start + 6]]
    for row, expected in zip(shown, anchor_matrix().tolist(), strict=True):
        assert row == pytest.approx(expected, abs=5.1e-4)
    assert any(line.startswith("identity       ") for line in lines)


def test_a_bundle_without_anchors_says_how_to_get_them(c2s, tmp_path):
    bare = write_bundle(tmp_path / "bare", toy_manifest(), write_toy_graphs(tmp_path / "graphs"), None)
    assert json.loads(c2s("info", "--bundle", bare.path, "--json").stdout)["anchors"] is None
    assert "No anchors yet: build them with 'c2s anchors build'." in c2s("info", "--bundle", bare.path).stdout


def test_an_altered_bundle_is_refused(c2s, tmp_path):
    bare = write_bundle(tmp_path / "bare", toy_manifest(), write_toy_graphs(tmp_path / "graphs"), None)
    (bare.path / "vision.onnx").write_bytes(b"")
    result = c2s("info", "--bundle", bare.path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "vision.onnx is truncated" in result.stderr
