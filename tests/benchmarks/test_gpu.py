"""The GPU leg's logic with stand-ins for GPU and library; nothing here is a timing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer

from compare2score import Scorer
from compare2score.benchmarks import gpu
from compare2score.benchmarks.gpu import event_stopwatch, main, parity, run_leg, time_batches
from compare2score.benchmarks.timing import Limits, timed
from compare2score.bundle import GRAPHS
from compare2score.errors import BackendError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy_bundle import bundle, gray_image  # noqa: F401

FEW = Limits(warmup=0, least=2, most=2, budget=float("inf"), variation=0)


class Louder:
    """A backend whose answers are off by a little."""

    name = "louder"

    def __init__(self, backend, offset):
        self.backend, self.offset, self.seen = backend, offset, []

    def encode(self, pixels):
        self.seen.append(len(pixels))
        return self.backend.encode(pixels)

    def prefix(self, visual_tokens):
        return self.backend.prefix(visual_tokens)

    def compare(self, visual_tokens, prefix):
        logits = self.backend.compare(visual_tokens, prefix).copy()
        logits[..., -1] += self.offset
        return logits


@pytest.fixture
def scorer(bundle):  # noqa: F811
    return Scorer(bundle)


def pixels_of(scorer, count):
    size = scorer.bundle.manifest.image.size
    return np.random.default_rng(0).normal(size=(count, 3, size, size)).astype(np.float32)


def test_a_scorer_is_as_far_from_another_as_their_logits(scorer):
    pixels = pixels_of(scorer, 3)
    assert parity(scorer, scorer, pixels) == {
        "images": 3.0,
        "level_logits": 0.0,
        "probabilities": 0.0,
        "q": 0.0,
        "q_mean": 0.0,
    }
    other = Scorer(scorer.bundle, backend=Louder(scorer.backend, 0.25))
    found = parity(scorer, other, pixels)
    assert found["level_logits"] == pytest.approx(0.25, abs=1e-5)
    assert found["probabilities"] > 0
    assert found["q"] >= found["q_mean"] > 0


def test_each_batch_is_one_call_of_so_many_images(scorer):
    backend = Louder(scorer.backend, 0)
    other = Scorer(scorer.bundle, backend=backend)
    rows = time_batches(other, pixels_of(scorer, 2), (1, 3), FEW, timed)
    assert backend.seen == [1, 1, 3, 3]
    assert [(row["batch"], row["images"], row["repeats"]) for row in rows] == [(1, 1, 2), (3, 3, 2)]
    assert all(row["p50"] <= row["p90"] <= row["p99"] for row in rows)


def test_events_on_the_devices_stream_surround_the_call():
    calls = []

    class Device:
        stream = 7

        def call(self, name, *arguments):
            calls.append((name, *arguments))
            return {"cudaEventCreate": f"event{len(calls)}", "cudaEventElapsedTime": 12.5}.get(name)

    watch = event_stopwatch(Device())
    assert watch(lambda: calls.append(("work",))) == pytest.approx(0.0125)
    assert calls[2:] == [
        ("cudaEventRecord", "event1", 7),
        ("work",),
        ("cudaEventRecord", "event2", 7),
        ("cudaEventSynchronize", "event2"),
        ("cudaEventElapsedTime", "event1", "event2"),
    ]
    assert event_stopwatch(object()) is timed


def test_the_leg_builds_in_a_copy_and_compares_with_the_cpu(bundle, tmp_path, monkeypatch):  # noqa: F811
    built = []

    def build(folder, spec, images):
        built.append(folder)
        return [{"graph": graph, "images": len(images)} for graph in GRAPHS]

    def open_scorer(path, backend):
        scorer = Scorer(path)
        return Scorer(path, backend=Louder(scorer.backend, 0.5)) if backend == "tensorrt" else scorer

    monkeypatch.setattr(gpu, "open_device", lambda: object())
    monkeypatch.setattr(gpu, "build_all", build)
    monkeypatch.setattr(gpu, "Scorer", open_scorer)
    before = sorted(Path(bundle).rglob("*"))
    spec = SimpleNamespace(target="tensorrt", precision="int8", batches=(1, 2))
    images = [gray_image(tmp_path / f"{shade}.png", shade) for shade in (50, 200)]
    results = run_leg(bundle, spec, images, FEW, tmp_path)
    assert built == [tmp_path / "bundle"]
    assert sorted(Path(bundle).rglob("*")) == before
    assert results["against_cpu"]["level_logits"] == pytest.approx(0.5, abs=1e-5)
    assert [row["batch"] for row in results["rows"]] == [1, 2]
    assert results["engines"][0]["images"] == 2
    assert results["clock"] == "the CPU's"
    assert results["backend"] == "louder"


def test_without_a_gpu_one_sentence_and_status_2(monkeypatch, capsys):
    def none():
        raise BackendError("No NVIDIA GPU can be used here (none is installed); use a machine with one.")

    monkeypatch.setattr(gpu, "open_device", none)
    with pytest.raises(typer.Exit) as ended:
        main()
    assert ended.value.exit_code == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
