"""Measurements measure what their rows say, at a tiny size; nothing here is held to a time."""

from __future__ import annotations

import numpy as np
import pytest
from toy_bundle import gray_image

from compare2score import ImageError, Scorer
from compare2score.benchmarks.fresh import measure_cold, measure_memory
from compare2score.benchmarks.latency import (
    BATCHES_A_CALL,
    Subject,
    measure_against,
    measure_estimate,
    measure_latency,
    measure_stages,
    measure_throughput,
)
from compare2score.benchmarks.reference import ReferenceScore
from compare2score.benchmarks.roofline import Machine, measure_roofline
from compare2score.benchmarks.timing import Limits

TWICE = Limits(warmup=0, least=2, most=2)


@pytest.fixture
def subject(bundle):
    return Subject("toy", Scorer(bundle, threads=1), 1)


@pytest.fixture
def image(tmp_path):
    return gray_image(tmp_path / "gray.png", 100)


def test_rows_name_what_was_measured(subject, image):
    (row,) = measure_latency(subject, image, TWICE)
    named = {
        name: row[name] for name in ("mode", "bundle", "identity", "precision", "threads", "batch", "images")
    }
    assert named == {
        "mode": "latency",
        "bundle": "toy",
        "identity": subject.scorer.bundle.identity,
        "precision": "fp32",
        "threads": 1,
        "batch": 1,
        "images": 1,
    }
    assert "onnxruntime" in row["backend"]
    assert row["repeats"] == 2
    assert row["p50"] <= row["p90"] <= row["p99"]
    assert row["images_per_second"] == pytest.approx(1 / row["p50"])
    assert row["joules_per_image"] == "not available"


def test_throughput_scores_every_image_of_its_batches(subject, image, monkeypatch):
    sizes = []
    encode = subject.scorer.backend.encode
    monkeypatch.setattr(subject.scorer.backend, "encode", lambda x: sizes.append(len(x)) or encode(x))
    (row,) = measure_throughput(subject, image, 4, TWICE)
    assert row["images"] == 4 * BATCHES_A_CALL
    assert sum(sizes) == 2 * row["images"]
    assert max(sizes) == 4


def test_an_image_that_cannot_be_scored_ends_the_measurement(subject, tmp_path):
    with pytest.raises(ImageError):
        measure_throughput(subject, tmp_path / "absent.jpg", 2, TWICE)


def test_stages_are_parts_of_the_score_and_leave_the_backend_as_it_was(subject, image):
    backend = subject.scorer.backend
    rows = {row["case"]: row for row in measure_stages(subject, image, TWICE)}
    assert subject.scorer.backend is backend
    assert list(rows)[:6] == ["decode", "preprocess", "vision", "decoder", "MAP", "total"]
    assert rows["total"]["share"] == 1
    assert 0 < rows["vision"]["share"] + rows["decoder"]["share"] < 1
    parts = sum(rows[case]["mean"] for case in ("vision", "decoder", "all but vision, decoder"))
    assert parts == pytest.approx(rows["total"]["mean"])


def test_the_estimate_is_measured_a_problem(subject):
    rows = {row["case"]: row for row in measure_estimate(subject, Limits(0, 2, 2))}
    assert rows["one problem"]["images"] == 1
    assert rows["10,000 problems"]["images"] == 10_000
    adam = rows["100 Adam steps"]
    for row in rows.values():
        assert row["ratio"] == pytest.approx(adam["p50"] * row["images"] / row["p50"])


@pytest.mark.parametrize("batch", [1, 2])
def test_ratios_are_of_seconds_an_image_pair_by_pair(subject, image, batch):
    off = np.add(subject.scorer.score(image).probabilities, [0, 0, 0.25, 0, 0])

    class Loop:
        def score(self, path):
            return ReferenceScore(tuple(off), 50.0)

    *pairs, median = measure_against(subject, Loop(), image, batch, Limits(0, 5, 5))
    images = 1 if batch == 1 else batch * BATCHES_A_CALL
    for row in pairs:
        assert row["images"] == images
        assert row["ratio"] == pytest.approx(row["reference_seconds"] * images / row["seconds"])
    assert median["ratio"] == np.median([row["ratio"] for row in pairs])
    assert median["ratio_least"] <= median["ratio"] <= median["ratio_most"]
    assert median["probability_difference"] == pytest.approx(0.25)


def test_the_limit_is_a_time_for_both_graphs(subject):
    machine = Machine(1, Limits(0, 2, 2))
    rows = {row["case"]: row for row in measure_roofline(subject, TWICE, machine)}
    assert set(rows) == {"vision", "decoder"}
    for row in rows.values():
        assert row["share"] == pytest.approx(row["attainable"] / row["p50"])
        assert row["attainable"] == max(row["compute"], row["memory"])
        assert row["memory"] > 0
    # The toy's one matrix product: channel means [1, 3] by [3, 4].
    assert rows["vision"]["flops"] == 2 * 3 * 4
    assert rows["decoder"]["flops"] == 0


def test_fresh_processes_score_with_the_bundle_that_is_measured(subject, image):
    cold = {row["case"]: row for row in measure_cold(subject, "onnxruntime", image, Limits(0, 1, 1))}
    assert cold["first score"]["p50"] > cold["import"]["p50"] > 0
    memory = {row["case"]: row for row in measure_memory(subject, "onnxruntime", image, [1, 2], 0)}
    assert set(memory) == {"peak", "an image more in a batch"}
    if cold["import"]["peak_mb"] is not None:
        assert cold["first score"]["peak_mb"] > cold["import"]["peak_mb"] > 5
