"""Checkpoint folders of general chat models, laid out as published ones, tiny and random."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

SAID = "Compared with the first image , what is your quality rating for second ? The of : User Assistant"
WORDS = [*SAID.split(), "inferior", "worse", "similar", "better", "superior"]
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}
IMAGES = "{% for m in messages %}" + "{{ m['role'] | capitalize }} : {% for c in m['content'] %}"
REST = "{% endfor %}<end>{% endfor %}{% if add_generation_prompt %}Assistant :{% endif %}"


def chat_template(image: str) -> str:
    """A chat template that writes `image` for every image."""
    content = f"{{% if c['type'] == 'image' %}}{image}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}"
    return IMAGES + content + REST


@dataclass(frozen=True)
class Family:
    """What makes a family's tiny checkpoint: sizes, special tokens, processor.

    `tokens` of the config are named by their text and become ids.
    """

    image: str
    vision: dict[str, Any]
    image_processor: str
    sizes: dict[str, Any]
    text: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    named_tokens: dict[str, str] = field(default_factory=dict)


IDEFICS3 = Family(
    image="<image>",
    vision=VISION,
    image_processor="Idefics3ImageProcessor",
    sizes={"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}},
    text={"model_type": "llama"},
    config={"scale_factor": 2},
    tokens={"image_token_id": "<image>"},
    processor={"image_seq_len": 4},
)
QWEN = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
FAMILIES = {
    "idefics3": IDEFICS3,
    "smolvlm": replace(IDEFICS3, image_processor="SmolVLMImageProcessor"),
    "idefics2": Family(
        image="<image>",
        vision={**VISION, "image_size": 64},
        image_processor="Idefics2ImageProcessor",
        sizes={"size": {"shortest_edge": 32, "longest_edge": 64}},
        text={"model_type": "mistral"},
        config={
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            }
        },
        tokens={"image_token_id": "<image>"},
        processor={"image_seq_len": 4},
    ),
    "llava": Family(
        image="<image>",
        vision={**VISION, "model_type": "clip_vision_model"},
        image_processor="CLIPImageProcessor",
        sizes={"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        text={"model_type": "llama"},
        tokens={"image_token_index": "<image>"},
        processor={
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    ),
    "llava_next": Family(
        image="<image>",
        vision={**VISION, "model_type": "clip_vision_model"},
        image_processor="LlavaNextImageProcessor",
        sizes={"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        text={"model_type": "llama"},
        tokens={"image_token_index": "<image>"},
        processor={
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    ),
    "llava_onevision": Family(
        image="<image>",
        vision={**VISION, "model_type": "siglip_vision_model"},
        image_processor="LlavaOnevisionImageProcessor",
        sizes={"size": {"height": 32, "width": 32}},
        text={"model_type": "qwen2"},
        tokens={"image_token_index": "<image>", "video_token_index": "<video>"},
        processor={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "internvl": Family(
        image="<IMG_CONTEXT>",
        vision={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        image_processor="GotOcr2ImageProcessor",
        sizes={"size": {"height": 32, "width": 32}, "crop_to_patches": True},
        text={"model_type": "qwen2"},
        tokens={"image_token_id": "<IMG_CONTEXT>"},
        processor={"image_seq_length": 4},
        named_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "qwen2_5_vl": Family(
        image="<|vision_start|><|image_pad|><|vision_end|>",
        vision={**QWEN_VISION, "window_size": 32, "fullatt_block_indexes": [1]},
        image_processor="Qwen2VLImageProcessor",
        sizes={"size": {"shortest_edge": 256, "longest_edge": 3000}, "patch_size": 8},
        text={"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        tokens=QWEN,
    ),
    "qwen2_vl": Family(
        image="<|vision_start|><|image_pad|><|vision_end|>",
        vision={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "patch_size": 8,
            "mlp_ratio": 2,
        },
        image_processor="Qwen2VLImageProcessor",
        sizes={"size": {"shortest_edge": 256, "longest_edge": 3000}, "patch_size": 8},
        text={"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        tokens=QWEN,
    ),
    "gemma3": Family(
        image="<start_of_image>",
        vision=VISION,
        image_processor="Gemma3ImageProcessor",
        sizes={"size": {"height": 32, "width": 32}},
        text={"head_dim": 8, "sliding_window": 128},
        config={"mm_tokens_per_image": 4},
        tokens={
            "image_token_id": "<image_soft_token>",
            "boi_token_id": "<start_of_image>",
            "eoi_token_id": "<end_of_image>",
        },
        processor={"image_seq_length": 4},
        named_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    ),
    "qwen3_vl": Family(
        image="<|vision_start|><|image_pad|><|vision_end|>",
        vision={**QWEN_VISION, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
        image_processor="Qwen2VLImageProcessor",
        sizes={"size": {"shortest_edge": 256, "longest_edge": 3000}, "patch_size": 8},
        text={
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        tokens=QWEN,
    ),
}
SPECIAL = ("<image>", "<video>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<end>")


def tiny_tokenizer(family: Family, words: list[str] = WORDS) -> Any:
    """A tokenizer of whole words, with the family's special tokens."""
    vocabulary = dict.fromkeys(["<unk>", "<s>", "</s>", *words])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=family.named_tokens,
    )
    special = dict.fromkeys([*SPECIAL, *family.tokens.values(), *family.named_tokens.values()])
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    return fast


def config_of(name: str, family: Family, tokenizer: Any) -> Any:
    """The config of a family, whose special tokens the tokenizer knows."""
    return transformers.CONFIG_MAPPING[name](
        text_config={**TEXT, **family.text},
        vision_config=family.vision,
        **family.config,
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in family.tokens.items()},
    )


def save_chat_checkpoint(name: str, folder: Path, seed: int = 0, **changes: dict[str, Any]) -> Path:
    """Writes a tiny random checkpoint of a family: weights, config, processor, tokenizer, chat template.

    `changes` are of the tables of its `Family`: text={"hidden_size": 64} and so on.
    """
    family = FAMILIES[name]
    family = replace(family, **{key: {**getattr(family, key), **new} for key, new in changes.items()})
    tokenizer = tiny_tokenizer(family)
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config_of(name, family, tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():  # norms, biases and what begins as zero
            if parameter.numel() == 1 or parameter.std() == 0:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    getattr(transformers, f"{family.image_processor}Pil")(**family.sizes).save_pretrained(folder)
    published = folder / "preprocessor_config.json"
    settings = json.loads(published.read_text())
    published.write_text(json.dumps({**settings, "image_processor_type": family.image_processor}))
    (folder / "processor_config.json").write_text(json.dumps(family.processor))
    (folder / "chat_template.jinja").write_text(chat_template(family.image))
    return folder
