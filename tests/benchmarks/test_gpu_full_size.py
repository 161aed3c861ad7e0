"""The full-size leg's logic, on the CPU with a small comparator; nothing here is a timing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from compare2score.benchmarks import gpu_full_size  # noqa: E402
from compare2score.benchmarks.architectures import mplug_owl2  # noqa: E402
from compare2score.benchmarks.gpu_full_size import (  # noqa: E402
    PROMPT,
    Fused,
    KeptConstants,
    captured,
    main,
    measure_full_size,
    published_loop,
    random_comparator,
    stopwatch,
    work_of,
)
from compare2score.benchmarks.timing import Limits  # noqa: E402
from compare2score.comparator.mplug_owl2 import MplugOwl2Comparator, MplugOwl2Config  # noqa: E402
from compare2score.comparator.mplug_owl2_vision import AbstractorConfig, VisionConfig  # noqa: E402
from compare2score.comparator.multiway_llama import MultiwayLlamaConfig  # noqa: E402

SMALL = MplugOwl2Config(
    VisionConfig(image=56, layers=2, width=32, heads=2, hidden=64),
    AbstractorConfig(queries=4, layers=2, width=32, heads=2, hidden=48),
    MultiwayLlamaConfig(layers=2, width=48, heads=4, kv_heads=4, hidden=96, vocabulary=32000),
)
FEW = Limits(warmup=0, least=2, most=2, budget=float("inf"), variation=0)


@pytest.fixture(scope="module")
def comparator():
    return random_comparator(SMALL, PROMPT, "cpu", torch.float32)


def pictures(count, seed=0):
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(seed))


def test_both_ways_answer_alike_with_the_same_weights(comparator):
    anchors, image = pictures(5), pictures(1, seed=1)
    with torch.inference_mode():
        fused = Fused(comparator, anchors)(image)[0]
        loop = published_loop(comparator, anchors, image[0])
    assert fused.shape == (5, 5)
    assert loop.std() > 1e-3
    torch.testing.assert_close(fused, loop, atol=1e-5, rtol=0)


def test_the_published_loop_makes_ten_vision_passes_and_reads_five_whole_prompts(comparator, monkeypatch):
    seen, read = [], []
    encode, logits = MplugOwl2Comparator.encode, MplugOwl2Comparator.logits

    def counted_encode(self, pixels):
        seen.append(len(pixels))
        return encode(self, pixels)

    def counted_logits(self, ids, tokens):
        found = logits(self, ids, tokens)
        read.append(tuple(found.shape))
        return found

    monkeypatch.setattr(MplugOwl2Comparator, "encode", counted_encode)
    monkeypatch.setattr(MplugOwl2Comparator, "logits", counted_logits)
    published_loop(comparator, pictures(5), pictures(1)[0])
    assert seen == [2] * 5
    assert read == [(1, 36 + 2 * 5, 32000)] * 5


def test_the_record_holds_agreement_rate_and_a_row_a_way(comparator):
    results = measure_full_size(comparator, (1, 3), FEW, side=64)
    assert results["differences"]["largest"] < 1e-5
    assert results["parameters"] == sum(p.numel() for p in comparator.parameters())
    assert [(row["way"], row["batch"]) for row in results["rows"]] == [
        ("published loop", 1),
        ("fused", 1),
        ("fused", 3),
    ]
    loop, one, three = results["rows"]
    assert three["flops"] == 3 * one["flops"] < 3 * loop["flops"]
    assert one["ratio"] == pytest.approx(loop["p50"] / one["p50"])
    for row in results["rows"]:
        achieved = row["flops"] / row["p50"]
        assert row["of_matrix_rate"] == pytest.approx(achieved / results["matrix_rate"])
        assert row["peak_bytes"] is None


def test_random_weights_are_the_same_for_the_same_seed_and_leave_norms_alone(comparator):
    again = random_comparator(SMALL, PROMPT, "cpu", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(comparator.parameters(), again.parameters(), strict=True))
    for name, parameter in comparator.named_parameters():
        if "norm" in name:
            assert set(parameter.unique().tolist()) == {1.0 if name.endswith("weight") else 0.0}, name
        elif parameter.numel() > 500:
            assert parameter.std() == pytest.approx(0.02, rel=0.2), name


def test_work_is_counted_from_the_comparators_sizes():
    with torch.device("meta"):
        full = MplugOwl2Comparator(MplugOwl2Config(), PROMPT)
    assert work_of(full) == mplug_owl2()


def test_copies_from_the_cpu_are_made_once_and_given_again_in_order():
    with torch.device("meta"):
        comparator = MplugOwl2Comparator(replace(SMALL), PROMPT)
    pixels = torch.empty(1, 3, 56, 56, device="meta")
    anchors = torch.empty(5, 3, 56, 56, device="meta")
    with torch.inference_mode():
        fused = Fused(comparator, anchors)
        constants = KeptConstants()
        with constants:
            first = fused(pixels)
        kept = list(constants.kept)
        with constants.again():
            second = fused(pixels)
    assert first.shape == second.shape == (1, 5, 5)
    assert len(kept) >= 3
    assert all(a is b for a, b in zip(kept, constants.kept, strict=True))
    assert next(constants.next, None) is None


def test_nothing_is_captured_and_the_clock_is_read_without_a_gpu():
    call = captured(lambda pixels: pixels + 1, torch.zeros(2))
    assert call().tolist() == [1, 1]
    assert stopwatch("cpu")(call) >= 0


def test_events_around_a_call_tell_its_seconds(monkeypatch):
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("record")

        def synchronize(self):
            order.append("synchronize")

        def elapsed_time(self, _):
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert stopwatch("cuda")(lambda: order.append("call")) == 0.25
    assert order == ["record", "call", "record", "synchronize"]


def test_without_a_gpu_the_leg_says_so_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(
        gpu_full_size, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
    )
    with pytest.raises(gpu_full_size.typer.Exit) as ended:
        main()
    assert ended.value.exit_code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "GPU" in told.err
