"""The cut decoder against transformers' LLaMA on the whole sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from compare2score.comparator.decoder import Comparison
from compare2score.comparator.nano import NanoComparator
from compare2score.training.pretrained import copy_llama_layers

TOKENS = 5  # visual tokens of an image: a 2 x 2 grid and the whole


def make_llama(comparator: NanoComparator, layers: int) -> LlamaForCausalLM:
    sizes = comparator.config.decoder
    torch.manual_seed(1)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=sizes.width,
            intermediate_size=sizes.hidden,
            num_hidden_layers=layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            head_dim=sizes.head_width,
            rms_norm_eps=sizes.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_base},
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )
    with torch.no_grad():
        for parameter in llama.parameters():
            spread = 0.2 if parameter.dim() > 1 else 0.3
            parameter.copy_(torch.randn_like(parameter) * spread + (parameter.dim() == 1))
    return llama.eval()


def whole_sequence(
    comparator: NanoComparator, llama: LlamaForCausalLM, first: Tensor, second: Tensor
) -> Tensor:
    """Rows [1, L, D] of one comparison, the words' from LLaMA's own embedding."""
    texts = [llama.get_input_embeddings()(torch.tensor(ids)) for ids in comparator.config.prompt_ids]
    return torch.cat([texts[0], first, texts[1], second, texts[2]])[None]


def visible(comparator: NanoComparator) -> Tensor:
    """Which position sees which, [1, 1, L, L]: all before it, but in the late form not the other image."""
    first, second, closing = (len(ids) for ids in comparator.config.prompt_ids)
    block = torch.tensor([0] * (first + TOKENS) + [1] * (second + TOKENS) + [2] * closing)
    seen = torch.ones(len(block), len(block), dtype=torch.bool).tril()
    if comparator.config.decoder.comparison == "late":
        seen &= ~((block[:, None] == 1) & (block[None, :] == 0))
    return seen[None, None]


def reference_logits(
    comparator: NanoComparator, llama: LlamaForCausalLM, first: Tensor, second: Tensor
) -> Tensor:
    rows = whole_sequence(comparator, llama, first, second)
    mask = torch.zeros(visible(comparator).shape).masked_fill(~visible(comparator), float("-inf"))
    if comparator.config.decoder.comparison == "causal":
        mask = None  # transformers' own
    logits = llama(inputs_embeds=rows, attention_mask=mask, use_cache=False).logits
    return logits[0, -1, list(comparator.config.level_ids)]


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Visual tokens of two first and of three second images."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, TOKENS, 32, generator=generator), torch.randn(3, TOKENS, 32, generator=generator)


@pytest.mark.parametrize("comparison", ["causal", "late"])
@pytest.mark.parametrize("layers", [2, 3])
@torch.inference_mode()
def test_level_logits_are_those_of_llama_on_the_whole_sequence(tiny_comparator, images, comparison, layers):
    comparator = tiny_comparator(comparison)
    llama = make_llama(comparator, layers)
    copy_llama_layers(comparator, llama)
    llama.model.layers = llama.model.layers[: comparator.config.decoder.layers]  # the first ones are kept
    first, second = images
    logits = comparator.compare(second, *comparator.prefix(first))
    assert logits.shape == (3, 2, 5)
    assert logits.dtype == torch.float32
    for n in range(3):
        for a in range(2):
            expected = reference_logits(comparator, llama, first[a], second[n])
            torch.testing.assert_close(logits[n, a], expected, rtol=0, atol=1e-4)
    # Were all answers alike, the comparison above would prove little.
    assert logits.std(dim=(0, 1)).min() > 1e-2


@torch.inference_mode()
def test_the_two_forms_differ(tiny_comparator, images):
    first, second = images
    late, causal = tiny_comparator("late"), tiny_comparator("causal")
    answers = [c.compare(second, *c.prefix(first)) for c in (late, causal)]
    assert (answers[0] - answers[1]).abs().max() > 1e-2


@pytest.mark.parametrize("comparison", ["causal", "late"])
@torch.inference_mode()
def test_the_prefix_is_what_llama_keeps_of_the_first_image_whatever_the_second(
    tiny_comparator, images, comparison: Comparison
):
    comparator = tiny_comparator(comparison)
    llama = make_llama(comparator, 2)
    copy_llama_layers(comparator, llama)
    first, second = images
    keys, values = comparator.prefix(first)
    length = comparator.decoder.prefix_length
    assert keys.shape == values.shape == (2, 2, 2, length, 8)
    for other in second:
        rows = whole_sequence(comparator, llama, first[1], other)
        cache = llama(inputs_embeds=rows, use_cache=True).past_key_values
        for i in range(2):
            torch.testing.assert_close(keys[1, i], cache.layers[i].keys[0, :, :length], rtol=0, atol=1e-4)
            torch.testing.assert_close(values[1, i], cache.layers[i].values[0, :, :length], rtol=0, atol=1e-4)


@pytest.mark.parametrize("comparison", ["causal", "late"])
@torch.inference_mode()
def test_listed_pairs_give_the_entries_of_all_pairs(tiny_comparator, images, comparison):
    comparator = tiny_comparator(comparison)
    first, second = images
    prefixes = comparator.prefix(first)
    every = comparator.compare(second, *prefixes)
    pairs = torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 0, 2])
    listed = comparator.decoder(second, *prefixes, pairs)
    torch.testing.assert_close(listed, every[pairs[1], pairs[0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("comparison", ["causal", "late"])
@torch.inference_mode()
def test_a_comparison_does_not_depend_on_its_batch(tiny_comparator, images, comparison):
    comparator = tiny_comparator(comparison)
    first, second = images
    together = comparator.compare(second, *comparator.prefix(first))
    for n in range(3):
        for a in range(2):
            alone = comparator.compare(second[n : n + 1], *comparator.prefix(first[a : a + 1]))
            torch.testing.assert_close(alone[0, 0], together[n, a], rtol=0, atol=1e-5)


@pytest.mark.parametrize("comparison", ["causal", "late"])
def test_the_loss_reaches_every_weight(tiny_comparator, images, comparison):
    comparator = tiny_comparator(comparison)
    first, second = images
    keys, values = comparator.prefix(first)
    comparator.compare(second, keys, values).square().sum().backward()
    for name, parameter in comparator.decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
