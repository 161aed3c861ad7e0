"""Idefics3 and SmolVLM with the fused decoder: as transformers computes them, in torch and exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from chat_checkpoint import save_chat_checkpoint
from PIL import Image
from torch import Tensor

from compare2score import Scorer
from compare2score.anchors.precompute import precompute_anchors
from compare2score.comparator import load_comparator
from compare2score.comparator.comparator import Comparator
from compare2score.comparator.huggingface import HuggingFaceComparator, load_general, load_huggingface
from compare2score.comparator.smolvlm import SmolVlmComparator
from compare2score.comparator.torch_backend import TorchBackend
from compare2score.export.exporter import export_bundle
from compare2score.export.graphs import TOLERANCE, export_graphs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    @cache
    def make(name: str) -> Path:
        torch.set_num_threads(1)
        return save_chat_checkpoint(name, tmp_path_factory.mktemp(name))

    return make


def pictures(count: int, side: int) -> Tensor:
    """Noise in steps of 1/255."""
    noise = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(4))
    return (noise * 255).round() / 255


def answer(comparator: Comparator, pixels: Tensor) -> Tensor:
    """Level logits [N, 2, 5] of all images against the first two."""
    tokens = comparator.encode(pixels)
    return comparator.compare(tokens, *comparator.prefix(tokens[:2]))


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
@torch.no_grad()
def test_the_fused_comparator_answers_as_the_general_one(checkpoint, name):
    general, fused = load_general(checkpoint(name)), load_huggingface(checkpoint(name))
    assert isinstance(fused, SmolVlmComparator)
    pixels = pictures(4, 32)
    tokens = fused.encode(pixels * 2 - 1)
    torch.testing.assert_close(tokens, general.encode(pixels), rtol=0, atol=1e-4)
    answers = answer(fused, pixels * 2 - 1)
    torch.testing.assert_close(answers, answer(general, pixels), rtol=0, atol=1e-4)
    assert (answers[0] - answers[1]).abs().max() > 1e-2
    prompt = torch.tensor([general.prompt_ids])
    logits = fused.logits(prompt, tokens[:2])
    torch.testing.assert_close(logits, general.logits(prompt, tokens[:2]), rtol=0, atol=1e-4)
    levels = list(fused.prompt.level_ids)
    torch.testing.assert_close(logits[0, -1, levels], answers[1, 0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_any_prompt_is_read_as_transformers_reads_it(checkpoint):
    fused = load_comparator(checkpoint("idefics3"))
    model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint("idefics3")).eval()
    pixels = pictures(3, 32) * 2 - 1
    mark, image = [-200], [fused.chat.image_token] * fused.tokens_per_image
    start, between, end = [1, 5], [6, 7, 8], [20, 9]
    ours = fused.logits(torch.tensor([[*start, *mark, *mark, *between, *mark, *end]]), fused.encode(pixels))
    ids = torch.tensor([[*start, *image, *image, *between, *image, *end]])
    theirs = model(input_ids=ids, pixel_values=pixels[None]).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    text = torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(
        fused.logits(text, fused.encode(pixels)[:0]), model(text).logits, rtol=0, atol=1e-4
    )


def test_another_number_of_images_than_marked_is_refused(checkpoint):
    fused = load_comparator(checkpoint("smolvlm"))
    with pytest.raises(ValueError, match="2 images, 3 were given"):
        fused.logits(torch.tensor([[1, -200, 4, -200, 5]]), torch.zeros(3, 4, 32))


@torch.no_grad()
def test_patches_of_a_square_smaller_than_the_towers_find_their_positions(tmp_path):
    # 6 patches a side on a grid of 12: positions are found by fractions, and are not the first 6.
    folder = save_chat_checkpoint("idefics3", tmp_path, vision={"image_size": 84, "patch_size": 7})
    (folder / "processor_config.json").write_text('{"image_seq_len": 9}')
    settings = (folder / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text(
        settings.replace('"longest_edge": 32', '"longest_edge": 42')
    )
    general, fused = load_general(folder), load_huggingface(folder)
    pixels = pictures(2, 42)
    assert fused.spec.image.size == 42
    torch.testing.assert_close(fused.encode(pixels * 2 - 1), general.encode(pixels), rtol=0, atol=1e-4)


def test_the_manifest_normalises_for_the_tower(checkpoint):
    general, fused = load_general(checkpoint("idefics3")).spec, load_huggingface(checkpoint("idefics3")).spec
    assert (fused.image.size, fused.image.mean, fused.image.std) == (32, (0.5,) * 3, (0.5,) * 3)
    assert fused.image.pad_color == general.image.pad_color == (127,) * 3
    assert (fused.model, fused.question, fused.levels) == (general.model, general.question, general.levels)


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "mistral"},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ],
    ids=["another decoder", "biases", "scaled positions"],
)
def test_a_decoder_that_is_not_ours_stays_with_transformers(tmp_path, text):
    folder = save_chat_checkpoint("idefics3", tmp_path, text=text)
    assert isinstance(load_comparator(folder), HuggingFaceComparator)


@torch.no_grad()
def test_bfloat16_answers_as_float32(checkpoint):
    pixels = pictures(2, 32) * 2 - 1
    exact, short = (load_huggingface(checkpoint("smolvlm"), d) for d in (torch.float32, torch.bfloat16))
    answers = answer(short, pixels.bfloat16())
    assert answers.dtype == torch.float32
    torch.testing.assert_close(answers, answer(exact, pixels), rtol=0, atol=0.3)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, texture) -> list[Path]:
    """Six pictures, none of them square, of rising contrast."""
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"{n}.png" for n in range(6)]
    for n, path in enumerate(paths):
        picture = texture(n)[: 48 + n]
        Image.fromarray((picture * (0.4 + 0.1 * n)).astype(np.uint8)).save(path)
    return paths


def torch_scorer(comparator: Comparator, anchors: list[Path]) -> Scorer:
    backend = TorchBackend(comparator)
    kept = precompute_anchors(backend.bundle, anchors, backend)
    return Scorer(replace(backend.bundle, anchors=kept), backend=backend)


def test_an_image_has_one_score_in_both_forms(checkpoint, photographs):
    folder, (image, *anchors) = checkpoint("smolvlm"), photographs
    values = [
        torch_scorer(load(folder), anchors).score(image).value for load in (load_general, load_huggingface)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def run(graphs: Path, pixels: Tensor) -> Tensor:
    """Level logits [N, 2, 5] of all images against the first two, by the exported graphs alone."""
    vision, prefix, decoder = (
        onnxruntime.InferenceSession(graphs / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("vision", "prefix", "decoder")
    )
    (tokens,) = vision.run(None, {"pixels": pixels.numpy()})
    keys, values = prefix.run(None, {"visual_tokens": tokens[:2]})
    given = {"visual_tokens": tokens, "prefix_keys": keys, "prefix_values": values}
    return torch.from_numpy(decoder.run(None, given)[0])


@torch.no_grad()
def test_exported_graphs_answer_as_transformers(checkpoint, tmp_path):
    general, fused = load_general(checkpoint("idefics3")), load_huggingface(checkpoint("idefics3"))
    parity = export_graphs(fused, tmp_path / "graphs")
    assert max(parity.values()) <= TOLERANCE
    pixels = pictures(3, 32)
    exported = run(tmp_path / "graphs", pixels * 2 - 1)
    torch.testing.assert_close(exported, answer(general, pixels), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_bundles_of_every_precision_score_like_transformers(checkpoint, photographs, tmp_path):
    *anchors, image = photographs
    expected = torch_scorer(load_general(checkpoint("idefics3")), anchors).score(image).value
    fused = load_huggingface(checkpoint("idefics3"))
    for precision, tolerance in (("fp32", 1e-2), ("fp16", 0.5), ("int8", 3.0), ("int4", 15.0)):
        export_bundle(fused, tmp_path / precision, precision, anchors)
        assert Scorer(tmp_path / precision).score(image).value == pytest.approx(expected, abs=tolerance)


@pytest.mark.slow
@torch.no_grad()
def test_smolvlm_256m_is_exported_at_its_width(tmp_path):
    folder = save_chat_checkpoint(
        "smolvlm",
        tmp_path / "checkpoint",
        text={
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
            "initializer_range": 0.02,
        },
        vision={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
            "initializer_range": 0.02,
        },
        config={"scale_factor": 4},
        processor={"image_seq_len": 64},
        sizes={"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    )
    general, fused = load_general(folder), load_huggingface(folder)
    assert fused.tokens_per_image == 64
    parity = export_graphs(fused, tmp_path / "graphs")
    assert max(parity.values()) <= TOLERANCE
    pixels = pictures(2, 512)
    exported = run(tmp_path / "graphs", pixels * 2 - 1)
    torch.testing.assert_close(exported, answer(general, pixels), rtol=0, atol=1e-4)
    # Neither the word embeddings nor the vocabulary's head are in the graphs.
    stored = sum(path.stat().st_size for path in (tmp_path / "graphs").iterdir())
    unused = 4 * 2 * fused.embedding.weight.numel()
    assert stored < 4 * sum(weight.numel() for weight in fused.parameters()) - 0.98 * unused
