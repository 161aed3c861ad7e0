"""The published comparator against outputs of the reference implementation, and its two-part prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compare2score.comparator import load_comparator
from compare2score.comparator.mplug_owl2 import MplugOwl2Comparator, MplugOwl2Config
from compare2score.comparator.prompt import LEVEL_WEIGHTS, LEVELS, QUESTION
from compare2score.errors import CheckpointError

GOLDEN_FOLDER = Path(__file__).resolve().parents[1] / "golden" / "mplug_owl2_tiny"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN_FOLDER / "golden.safetensors")


@pytest.fixture(scope="module")
def owl(owl_checkpoint) -> MplugOwl2Comparator:
    model = load_comparator(owl_checkpoint)
    assert isinstance(model, MplugOwl2Comparator)
    return model


def full_prompt(model: MplugOwl2Comparator) -> Tensor:
    first, second, closing = model.prompt_tokens.texts
    return torch.tensor([[*first, -200, *second, -200, *closing]])


def level_logits(model: MplugOwl2Comparator, first: Tensor, second: Tensor) -> Tensor:
    """The five level logits of one whole prompt."""
    logits = model.logits(full_prompt(model), torch.stack([first, second]))
    return logits[0, -1, list(model.prompt_tokens.level_ids)]


@torch.inference_mode()
def test_it_computes_what_the_reference_computes(golden):
    model = load_comparator(GOLDEN_FOLDER)
    hidden = model.vision_hidden(golden["pixel_values"])
    tokens = model.encode(golden["pixel_values"])
    logits = torch.cat(
        [model.logits(golden["input_ids"], tokens[2 * b : 2 * b + 2]) for b in range(len(tokens) // 2)]
    )
    torch.testing.assert_close(hidden, golden["vision_hidden"], rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens, golden["visual_tokens"], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=1e-5)
    assert logits.dtype == torch.float32


@torch.inference_mode()
def test_prefix_and_suffix_answer_as_the_whole_prompt_does(owl, golden):
    tokens = owl.encode(golden["pixel_values"])
    firsts, seconds = tokens[:3], tokens[3:]
    keys, values = owl.prefix(firsts)
    assert keys.shape == values.shape == (3, 3, 6, len(owl.prompt_tokens.texts[0]) + 9, 16)
    answers = owl.compare(seconds, keys, values)
    expected = torch.stack([torch.stack([level_logits(owl, a, b) for a in firsts]) for b in seconds])
    assert answers.shape == (5, 3, 5)
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-5)
    assert (
        answers.flatten(0, 1).std(dim=0).min() > 1e-3
    )  # the images matter, so the comparison says something


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_half_precision_answers_nearly_the_same(owl, owl_checkpoint, golden, dtype):
    half = load_comparator(owl_checkpoint, dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    exact, rough = (
        m.compare(m.encode(golden["pixel_values"]), *m.prefix(m.encode(golden["pixel_values"][:2])))
        for m in (owl, half)
    )
    assert rough.dtype == torch.float32
    step = torch.finfo(dtype).eps
    assert (rough - exact).abs().max() < 30 * step * exact.abs().max()


@torch.inference_mode()
def test_the_order_of_text_and_images_in_a_prompt_is_free(owl, golden):
    """Causality: what follows a position does not change its logits, wherever the images stand."""
    tokens = owl.encode(golden["pixel_values"][:2])
    long = owl.logits(torch.tensor([[-200, 5, -200, 7, 9]]), tokens)
    short = owl.logits(torch.tensor([[-200, 5]]), tokens[:1])
    torch.testing.assert_close(long[:, :10], short, rtol=0, atol=1e-5)
    assert owl.logits(torch.tensor([[1, 5, 7]]), tokens[:0]).shape == (1, 3, 320)


def test_another_number_of_images_than_marks_is_refused(owl, golden):
    with pytest.raises(ValueError, match="has 1 images, 2 were given"):
        owl.logits(torch.tensor([[1, -200, 5]]), owl.encode(golden["pixel_values"][:2]))


def test_without_a_tokenizer_only_the_fixed_prompt_is_refused(golden):
    model = load_comparator(GOLDEN_FOLDER)
    tokens = model.encode(golden["pixel_values"][:1])
    with pytest.raises(CheckpointError, match=r"has no tokenizer; put .*tokenizer\.model"):
        model.prefix(tokens)


def test_it_is_asked_and_read_as_published(owl):
    spec = owl.spec
    assert (spec.question, spec.levels, spec.level_weights) == (QUESTION, LEVELS, LEVEL_WEIGHTS)
    assert spec.temperature == 100
    assert spec.image.size == 56
    assert spec.image.pad_color == tuple(int(255 * mean) for mean in spec.image.mean)


@torch.no_grad()
def test_it_is_traced_without_weights_for_any_number_of_images_and_anchors(owl_checkpoint):
    model = MplugOwl2Comparator.on_meta(owl_checkpoint)

    class Compare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return self.model.compare(tokens, keys, values)

    tokens = torch.empty(2, 9, 96, device="meta")
    keys, values = model.prefix(torch.empty(3, 9, 96, device="meta"))
    images, anchors = {0: torch.export.Dim("images", min=1)}, {0: torch.export.Dim("anchors", min=1)}
    traced = torch.export.export(
        Compare(), (tokens, keys, values), dynamic_shapes=(images, anchors, anchors), strict=False
    )
    assert {p.device.type for p in model.parameters()} == {"meta"}
    # Prompt ids, rotations and mask are recorded with their values.
    assert len(traced.constants) >= 5
    assert {constant.device.type for constant in traced.constants.values()} == {"cpu"}
    shape = traced.module()(torch.empty(5, 9, 96, device="meta"), keys[:1], values[:1]).shape
    assert shape == (5, 1, 5)


@pytest.mark.parametrize(
    "known_by", [{"model_type": "mplug_owl2"}, {"architectures": ["MPLUGOwl2LlamaForCausalLM"]}]
)
def test_it_is_known_by_model_type_or_class(owl_checkpoint, tmp_path, known_by):
    folder = Path(shutil.copytree(owl_checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"], config["architectures"], config["bos_token_id"]
    (folder / "config.json").write_text(json.dumps(config | known_by))
    model = load_comparator(folder)
    assert isinstance(model, MplugOwl2Comparator)
    assert model.prompt_tokens.texts[0][0] == 1


def test_at_its_default_sizes_it_is_the_published_model():
    with torch.device("meta"):
        model = MplugOwl2Comparator(MplugOwl2Config())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["model.vision_model.embeddings.position_embedding"] == (1, 1025, 1024)
    assert shapes["model.visual_abstractor.encoder.layers.5.crossattention.attention.k_pos_embed"] == (
        1025,
        1024,
    )
    assert shapes["model.visual_abstractor.encoder.layers.5.crossattention.output.mlp.w1.weight"] == (
        2816,
        1024,
    )
    assert shapes["model.layers.31.self_attn.k_proj.multiway.1.weight"] == (4096, 4096)
    assert shapes["lm_head.weight"] == (32000, 4096)
    assert model.config.visual_tokens == 65
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    assert 8.1 < billions < 8.3
    assert not list(model.buffers())
