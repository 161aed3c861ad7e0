"""Idefics3 and SmolVLM as a comparator that can be exported: one tile an image, the fused LLaMA decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compare2score.comparator.attention import causal_mask, rotation_tables
from compare2score.comparator.chat import Chat, check_images
from compare2score.comparator.comparator import ComparatorSpec
from compare2score.comparator.decoder import ComparisonDecoder, DecoderConfig, DecoderLayer
from compare2score.comparator.prompt import IMAGE_MARK, PromptTokens
from compare2score.image import ImageSpec

FAMILIES = ("idefics3", "smolvlm")

LLAMA_NAMES = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Our decoder layer's modules, by the names that transformers gives them."""


class SmolVlmComparator(nn.Module):
    """The SigLIP tower and connector of a checkpoint, and its LLaMA cut to what a comparison needs.

    Images are normalised by the `ImageSpec` and need no processor. The weights are those of the transformers
    model, shared and not copied.

    Attributes:
        chat: the processor that wrote the prompt.
        prompt: token ids of a comparison and of the level words.
        tokens_per_image: T.
    """

    def __init__(self, model: Any, chat: Chat, prompt: PromptTokens, tokens_per_image: int) -> None:
        """Takes over an Idefics3 or SmolVLM of transformers that `fits` and its prompt."""
        super().__init__()
        self.chat, self.prompt, self.tokens_per_image = chat, prompt, tokens_per_image
        images = chat.processor.image_processor
        mean, std = tuple(images.image_mean), tuple(images.image_std)
        image = ImageSpec(chat.side, mean, std, chat.pad_color)
        self._spec = ComparatorSpec(model.config.model_type, image, chat.manifest_question())
        vision, text = model.model.vision_model, model.model.text_model
        self.patches = vision.embeddings.patch_embedding
        self.positions = nn.Parameter(position_rows(vision.embeddings, chat.side))
        self.encoder, self.encoder_norm = vision.encoder, vision.post_layernorm
        self.connector = model.model.connector
        self.embedding, self.head = text.embed_tokens, model.lm_head
        self.decoder: ComparisonDecoder = fuse_llama(text, self.head, prompt, tokens_per_image)

    @property
    def spec(self) -> ComparatorSpec:
        """How it is asked and read."""
        return self._spec

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [N, T, D] of preprocessed images [N, 3, S, S]."""
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.positions
        hidden = self.encoder(inputs_embeds=patches).last_hidden_state
        return self.connector(self.encoder_norm(hidden))  # type: ignore[no-any-return]

    def prefix(self, visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [A, layers, kv_heads, length, head_width] of first images' tokens [A, T, D]."""
        return self.decoder.prefix(visual_tokens)

    def compare(self, visual_tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Level logits [N, A, 5] of second images' tokens [N, T, D] against A prefixes."""
        return self.decoder(visual_tokens, keys, values)  # type: ignore[no-any-return]

    def logits(self, input_ids: Tensor, visual_tokens: Tensor) -> Tensor:
        """Logits [1, S', V] at every position of a prompt [1, S] with -200 for each image's tokens [T, D]."""
        check_images(input_ids, visual_tokens)
        marked = input_ids[0] == IMAGE_MARK
        text = self.embedding(input_ids[0].masked_fill(marked, 0)).split(1)
        images = iter(visual_tokens)
        rows = [next(images) if mark else row for mark, row in zip(marked.tolist(), text, strict=True)]
        x = torch.cat(rows)[None].to(visual_tokens.dtype)
        config, order = self.decoder.config, range(x.shape[1])
        tables = rotation_tables(order, config.head_width, config.rope_base, x)
        cosine, sine = (table.to(x.dtype) for table in tables)
        mask = causal_mask(order, 0, x)
        for layer in self.decoder.decoder_layers():
            x = layer(x, cosine, sine, *layer.keys_values(x, cosine, sine), mask)
        return self.head(self.decoder.norm(x)).float()  # type: ignore[no-any-return]


def fits(config: Any) -> bool:
    """Whether a model's config is of these families, with a plain LLaMA as our decoder is one."""
    if config.model_type not in FAMILIES or config.text_config.model_type != "llama":
        return False
    text = config.text_config
    plain = not text.attention_bias and not text.mlp_bias and text.hidden_act == "silu"
    return plain and text.rope_parameters.get("rope_type", "default") == "default"


def fuse_llama(text: Any, head: nn.Linear, prompt: PromptTokens, tokens_per_image: int) -> ComparisonDecoder:
    """Our decoder around the layers of a LLaMA of transformers, with the rows that a prompt needs."""
    source = text.config
    config = DecoderConfig(
        layers=source.num_hidden_layers,
        width=source.hidden_size,
        heads=source.num_attention_heads,
        kv_heads=source.num_key_value_heads,
        head_width=source.head_dim,
        hidden=source.intermediate_size,
        rope_base=source.rope_parameters["rope_theta"],
        norm_epsilon=source.rms_norm_eps,
        comparison="causal",
    )
    first, second, closing = prompt.texts
    lengths = len(first), len(second), len(closing)
    # Made without layers, whose random weights would be thrown away.
    decoder = ComparisonDecoder(replace(config, layers=0), lengths, tokens_per_image)
    decoder.config = config
    for theirs in text.layers:
        with torch.device("meta"):
            ours = DecoderLayer(config)
        named = {f"{name}.weight": theirs.get_submodule(path).weight for name, path in LLAMA_NAMES.items()}
        ours.load_state_dict(named, assign=True)
        decoder.layers.append(ours)
    decoder.norm.weight = text.norm.weight
    embedding = text.embed_tokens.weight
    rows = decoder.first_text, decoder.second_text, decoder.closing_text
    for parameter, ids in zip(rows, prompt.texts, strict=True):
        parameter.data = embedding.data[list(ids)]
    decoder.level_head.weight.data = head.weight.data[list(prompt.level_ids)]
    return decoder.to(embedding.dtype)


def position_rows(embeddings: Any, side: int) -> Tensor:
    """Position embeddings [patches, width] that a tower gives the patches of a square of `side` pixels.

    The tower finds them by the patches' fractional coordinates, so it is asked.
    """
    asked: list[Tensor] = []
    listener = embeddings.position_embedding.register_forward_hook(
        lambda _module, _given, rows: asked.append(rows[0].detach().clone())
    )
    weight = embeddings.patch_embedding.weight
    count = side // embeddings.patch_size
    with torch.no_grad():
        embeddings(
            pixel_values=weight.new_zeros(1, weight.shape[1], side, side),
            patch_attention_mask=torch.ones(1, count, count, dtype=torch.bool, device=weight.device),
        )
    listener.remove()
    return asked[0]
