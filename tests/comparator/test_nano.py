"""The nano comparator as a whole: its three calls, its frozen part, its config."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from compare2score.comparator.decoder import DecoderConfig
from compare2score.comparator.nano import NanoComparator, NanoConfig, default_image_spec
from compare2score.image import normalize


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("comparison", "experts"), [("late", 0), ("causal", 0), ("late", 2)])
@torch.inference_mode()
def test_a_saved_comparator_is_read_back_to_the_bit(tiny_comparator, pixels, tmp_path, comparison, experts):
    model = tiny_comparator(comparison, experts=experts)
    model.save(tmp_path / "new" / "checkpoint")
    read = NanoComparator.load(tmp_path / "new" / "checkpoint")
    assert read.config == model.config
    weights, expected = read.state_dict(), model.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not read.training
    answers = [m.compare(m.encode(pixels), *m.prefix(m.encode(pixels[:2]))) for m in (model, read)]
    assert answers[0].shape == (3, 2, 5)
    assert torch.equal(*answers)


@pytest.mark.parametrize("stages", [0, 1, 2, 3, 4])
@torch.inference_mode()
def test_encoding_goes_on_from_any_number_of_frozen_stages(tiny_comparator, pixels, stages):
    model = tiny_comparator()
    tokens = model.encode(pixels)
    feature_map, statistics = model.run_frozen(pixels, stages)
    assert tokens.shape == (3, 5, 32)
    assert statistics.shape[:2] == (3, 5)
    torch.testing.assert_close(model.encode_from(feature_map, statistics, stages), tokens, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_an_images_tokens_do_not_depend_on_its_batch(tiny_comparator, pixels):
    model = tiny_comparator()
    tokens = model.encode(pixels)
    for n in range(3):
        torch.testing.assert_close(model.encode(pixels[n : n + 1])[0], tokens[n], rtol=0, atol=1e-5)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-2


@torch.inference_mode()
def test_the_gate_decides_whose_tokens_they_are(tiny_comparator, pixels):
    model = tiny_comparator(experts=2)
    _, statistics = model.run_frozen(pixels, len(model.encoder.stages))
    gate = model.mixture.gate.read[-1]
    gate.weight.zero_()
    readings = [reader(statistics) for reader in (model.abstractor, *model.mixture.experts)]
    for chosen, expected in enumerate(readings):
        gate.bias.copy_(100 * torch.eye(3)[chosen])
        torch.testing.assert_close(model.encode(pixels), expected)
    gate.bias.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    blend = 0.2 * readings[0] + 0.5 * readings[1] + 0.3 * readings[2]
    torch.testing.assert_close(model.encode(pixels), blend)


def test_a_checkpoint_from_before_there_were_experts_has_none():
    config = NanoConfig(DecoderConfig(layers=4), ((1, 2), (3,), (4, 5, 6)), (7, 8, 9, 10, 11))
    values = json.loads(json.dumps(config.to_json()))
    del values["experts"]
    assert NanoConfig.from_json(values).experts == 0


def test_a_config_survives_json():
    config = NanoConfig(DecoderConfig(layers=4), ((1, 2), (3,), (4, 5, 6)), (7, 8, 9, 10, 11))
    assert NanoConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_default_image_is_normalised_as_efficientnet_lites():
    spec = default_image_spec(16)
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = ((pixels.astype(np.float64) - 127) / 128).transpose(2, 0, 1)
    np.testing.assert_allclose(normalize(pixels, spec), expected, atol=1e-6)
    assert spec.pad_color == (127, 127, 127)  # normalised: 0
