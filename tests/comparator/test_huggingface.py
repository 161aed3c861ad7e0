"""General chat models as comparators, held to transformers' own forward pass on tiny random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from chat_checkpoint import FAMILIES, save_chat_checkpoint
from PIL import Image

from compare2score.comparator import load_comparator
from compare2score.comparator.huggingface import PAIRS_PER_CALL, load_general
from compare2score.errors import ExportError
from compare2score.export.exporter import export_bundle

# Their processors load without a package for videos, so transformers' AutoProcessor is the reference.
WITHOUT_VIDEO = {"idefics2", "idefics3", "llava", "llava_next", "gemma3"}
QUESTION = (
    "User : {0}{0}Compared with the first image, what is your quality rating for second image?<end>"
    "Assistant : The quality of the second image is"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    @cache
    def make(name: str) -> Path:
        torch.set_num_threads(1)
        return save_chat_checkpoint(name, tmp_path_factory.mktemp(name))

    return make


def pictures(count: int, side: int) -> torch.Tensor:
    """Noise of several brightnesses, in steps of 1/255."""
    noise = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))
    return (noise * torch.linspace(255, 60, count)[:, None, None, None]).round() / 255


def asked_directly(folder: Path, comparator: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Logits [S, V] of transformers' model on its processor's whole output for two images."""
    name = comparator.spec.model
    if name in WITHOUT_VIDEO:
        processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    else:
        processor = comparator.chat.processor
    settings: dict[str, Any] = {}
    if name in ("idefics2", "idefics3"):
        processor.image_processor.do_image_splitting = settings["do_image_splitting"] = False
    if name == "idefics3":  # would enlarge the image before it is made a tile
        settings["size"] = {"longest_edge": comparator.spec.image.size}
    if name == "internvl":
        settings["crop_to_patches"] = False
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    if name == "llava_next":
        grid = [[comparator.spec.image.size] * 2]
        processor.image_processor.image_grid_pinpoints = model.config.image_grid_pinpoints = grid
    images = [Image.fromarray((255 * x).round().byte().permute(1, 2, 0).numpy()) for x in (first, second)]
    text = QUESTION.format(FAMILIES[name].image)
    given = processor(text=[text], images=[images], return_tensors="pt", **settings)
    return model(**given).logits[0]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_pair_is_read_as_transformers_reads_it(checkpoint, name):
    folder = checkpoint(name)
    comparator = load_general(folder)
    size = comparator.spec.image.size
    pixels = pictures(3, size)
    tokens = comparator.encode(pixels)
    assert tokens.shape[:2] == (3, comparator.tokens_per_image)
    answers = comparator.compare(tokens[1:], *comparator.prefix(tokens[:2]))
    assert answers.shape == (2, 2, 5)
    assert answers.dtype == torch.float32
    levels = list(comparator.prompt.level_ids)
    for n, a in ((0, 0), (1, 0), (1, 1)):
        whole = asked_directly(folder, comparator, pixels[a], pixels[1 + n])
        torch.testing.assert_close(answers[n, a], whole[-1, levels], rtol=0, atol=1e-4)
    prompt = torch.tensor([comparator.prompt_ids])
    logits = comparator.logits(prompt, tokens[[1, 2]])
    torch.testing.assert_close(logits[0], whole, rtol=0, atol=1e-4)
    # Neither image is ignored, and their order is not, either.
    assert (answers[0, 0] - answers[1, 0]).abs().max() > 5e-4
    assert (answers[1, 0] - answers[1, 1]).abs().max() > 5e-4
    assert (comparator.logits(prompt, tokens[[2, 1]]) - logits).abs().max() > 5e-4


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_an_images_tokens_do_not_depend_on_its_batch(checkpoint, name):
    comparator = load_general(checkpoint(name))
    pixels = pictures(3, comparator.spec.image.size)
    tokens = comparator.encode(pixels)
    for n in range(3):
        torch.testing.assert_close(comparator.encode(pixels[n : n + 1])[0], tokens[n], rtol=0, atol=1e-5)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-4


@torch.no_grad()
def test_more_pairs_than_a_call_reads_are_compared(checkpoint):
    comparator = load_general(checkpoint("qwen3_vl"))
    tokens = comparator.encode(pictures(5, comparator.spec.image.size))
    assert PAIRS_PER_CALL < 3 * 5
    answers = comparator.compare(tokens[:3], *comparator.prefix(tokens))
    assert answers.shape == (3, 5, 5)
    for n in range(3):
        for a in range(5):
            alone = comparator.compare(tokens[n : n + 1], *comparator.prefix(tokens[a : a + 1]))
            torch.testing.assert_close(alone[0, 0], answers[n, a], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "internvl"])
@torch.no_grad()
def test_any_prompt_is_read(checkpoint, name):
    comparator = load_general(checkpoint(name))
    tokens = comparator.encode(pictures(3, comparator.spec.image.size))
    text, three = torch.tensor([[4, 5, 6]]), torch.tensor([[4, -200, 5, -200, 6, -200]])
    without_images = comparator.model(input_ids=text).logits
    torch.testing.assert_close(comparator.logits(text, tokens[:0]), without_images, rtol=0, atol=1e-5)
    logits = comparator.logits(three, tokens)
    assert logits.shape == (1, 3 + 3 * comparator.tokens_per_image, without_images.shape[-1])
    assert (comparator.logits(three, tokens.flip(0)) - logits).abs().max() > 1e-3


@torch.no_grad()
def test_pixels_pass_the_image_processor_unchanged_but_for_its_normalisation(checkpoint):
    comparator = load_general(checkpoint("internvl"))
    pixels = pictures(2, comparator.spec.image.size)
    images = comparator.chat.processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.image_mean, images.image_std))
    given = comparator.chat.read(comparator.chat.question(), pixels)
    torch.testing.assert_close(given["pixel_values"], (pixels - mean) / std, rtol=0, atol=1e-5)


def test_the_manifest_says_how_the_model_is_asked(checkpoint):
    spec = load_general(checkpoint("qwen2_5_vl")).spec
    image = "<|vision_start|><|image|><|vision_end|>"
    assert spec.question == QUESTION.format(image)
    assert (spec.model, spec.temperature) == ("qwen2_5_vl", 1.0)
    assert (spec.image.mean, spec.image.std, spec.image.pad_color) == ((0,) * 3, (1,) * 3, (122, 116, 104))
    assert spec.image.size == 48


@torch.no_grad()
def test_half_precision_answers_as_single_precision(checkpoint):
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        comparator = load_general(checkpoint("internvl"), dtype)
        tokens = comparator.encode(pictures(2, comparator.spec.image.size))
        assert tokens.dtype == dtype
        answers.append(comparator.compare(tokens, *comparator.prefix(tokens)))
    assert answers[1].dtype == torch.float32
    torch.testing.assert_close(*answers, rtol=0, atol=0.3)


def test_loss_on_level_logits_reaches_the_weights(checkpoint):
    comparator = load_general(checkpoint("idefics2"))
    tokens = comparator.encode(pictures(2, comparator.spec.image.size))
    comparator.compare(tokens[1:], *comparator.prefix(tokens[:1])).square().sum().backward()
    layer = comparator.model.model.text_model.layers[0]
    assert layer.self_attn.q_proj.weight.grad.abs().max() > 0
    assert comparator.model.model.connector.modality_projection.up_proj.weight.grad.abs().max() > 0


def test_another_number_of_images_than_marked_is_refused(checkpoint):
    comparator = load_general(checkpoint("llava"))
    with pytest.raises(ValueError, match="2 images, 1 were given"):
        comparator.logits(torch.tensor([comparator.prompt_ids]), torch.zeros(1, 16, 32))


def test_load_comparator_opens_a_chat_model(checkpoint):
    assert load_comparator(checkpoint("llava_onevision")).spec.model == "llava_onevision"


def test_a_model_that_is_not_exported_is_refused_in_a_sentence(checkpoint, tmp_path):
    with pytest.raises(ExportError, match=r"qwen2_vl models are not exported, .*--checkpoint'\.$"):
        export_bundle(load_general(checkpoint("qwen2_vl")), tmp_path / "bundle", "fp32", [])
    assert not (tmp_path / "bundle").exists()
