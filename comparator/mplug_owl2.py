"""mPLUG-Owl2, the published comparator (q-future/Compare2Score), in plain torch.

A vision transformer sees each image, an abstractor reads it into a few visual tokens, and a LLaMA with
key, value and norm weights by modality reads prompt and tokens. Written from the architecture's facts and
held to outputs of the reference (tests/golden/mplug_owl2_tiny). The module tree has the published
checkpoint's parameter names, and nothing else: no buffers, no work on weights at construction. So it can be
built on the meta device, and any parameter is found in a checkpoint by its own name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compare2score.comparator.comparator import ComparatorSpec
from compare2score.comparator.mplug_owl2_vision import (
    AbstractorConfig,
    VisionConfig,
    VisionTransformer,
    VisualAbstractor,
)
from compare2score.comparator.multiway_llama import (
    Block,
    MultiwayLayer,
    MultiwayLlamaConfig,
    RMSNorm,
    run_layers,
)
from compare2score.comparator.prompt import IMAGE_MARK, PromptTokens, prompt_tokens
from compare2score.comparator.tokenizer import read_tokenizer
from compare2score.comparator.weights import CheckpointWeights
from compare2score.errors import CheckpointError
from compare2score.image import ImageSpec

ARCHITECTURE = "mplug_owl2"
TEMPERATURE = 100.0
"""The published inference divides the level logits by it."""
LLAMA_BEGIN = 1
"""LLaMA's begin-of-text token, should a config not say."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PAD_COLOR = (122, 116, 104)
"""int(255 * CLIP_MEAN)."""


@dataclass(frozen=True)
class MplugOwl2Config:
    """Sizes of the three parts; the defaults are the published ones."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    abstractor: AbstractorConfig = field(default_factory=AbstractorConfig)
    decoder: MultiwayLlamaConfig = field(default_factory=MultiwayLlamaConfig)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of one image: one a query, and the end of image."""
        return self.abstractor.queries + 1

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MplugOwl2Config:
        """Reads the published `config.json`.

        Raises KeyError, TypeError or ValueError if a value is missing, unusable, or asks for a variant of the
        architecture that is not built here.
        """
        seen, read = values["visual_config"]["visual_model"], values["visual_config"]["visual_abstractor"]
        for owner, name, known in (
            (values, "hidden_act", "silu"),
            (values, "rope_scaling", None),
            (values, "attention_bias", False),
            (values, "tie_word_embeddings", False),
            (seen, "hidden_act", "quick_gelu"),
        ):
            if owner.get(name, known) != known:
                raise ValueError(f"{name} is {owner[name]!r}, only {known!r} is known")
        config = cls(
            VisionConfig(
                image=seen["image_size"],
                patch=seen["patch_size"],
                layers=seen["num_hidden_layers"],
                width=seen["hidden_size"],
                heads=seen["num_attention_heads"],
                hidden=seen["intermediate_size"],
                norm_epsilon=seen["layer_norm_eps"],
            ),
            AbstractorConfig(
                queries=read["num_learnable_queries"],
                layers=read["num_hidden_layers"],
                width=read["hidden_size"],
                heads=read["num_attention_heads"],
                hidden=read["intermediate_size"],
                norm_epsilon=read["layer_norm_eps"],
            ),
            MultiwayLlamaConfig(
                layers=values["num_hidden_layers"],
                width=values["hidden_size"],
                heads=values["num_attention_heads"],
                kv_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
                hidden=values["intermediate_size"],
                vocabulary=values["vocab_size"],
                rope_base=values.get("rope_theta", 10_000.0),
                norm_epsilon=values["rms_norm_eps"],
            ),
        )
        for part in (config.vision, config.abstractor, config.decoder):
            for name, value in vars(part).items():
                if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                    raise ValueError(f"{name} is {value!r}, not a number above 0")
            if part.width % part.heads:
                raise ValueError(f"{part.heads} heads do not divide a width of {part.width}")
        return config


class MplugOwl2Model(nn.Module):
    """Holds what the published checkpoint keeps below `model`."""

    def __init__(self, config: MplugOwl2Config) -> None:
        super().__init__()
        decoder = config.decoder
        self.embed_tokens = nn.Embedding(decoder.vocabulary, decoder.width)
        self.vision_model = VisionTransformer(config.vision)
        self.visual_abstractor = VisualAbstractor(config.abstractor, config.vision, decoder.width)
        self.layers = nn.ModuleList(MultiwayLayer(decoder) for _ in range(decoder.layers))
        self.norm = RMSNorm(decoder.width, decoder.norm_epsilon)


class MplugOwl2Comparator(nn.Module):
    """The published comparator: any prompt (`logits`), or the fixed one in two parts (`prefix`, `compare`).

    Attributes:
        config: its sizes.
        prompt: the fixed prompt's token ids, None without a tokenizer; only the two parts need it.
    """

    def __init__(self, config: MplugOwl2Config, prompt: PromptTokens | None = None) -> None:
        super().__init__()
        self.config = config
        self.prompt = prompt
        self.model = MplugOwl2Model(config)
        self.lm_head = nn.Linear(config.decoder.width, config.decoder.vocabulary, bias=False)

    @classmethod
    def on_meta(cls, folder: Path) -> MplugOwl2Comparator:
        """The comparator of a checkpoint folder without its weights: all parameters on the meta device.

        Raises CheckpointError if `config.json` or the tokenizer is unusable.
        """
        try:
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config = MplugOwl2Config.from_json(values)
            begin = int(values.get("bos_token_id") or LLAMA_BEGIN)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(
                f"{folder / 'config.json'} describes no mPLUG-Owl2 ({reason}); give the published one."
            ) from error
        tokenize = read_tokenizer(folder)
        prompt = None
        if tokenize is not None:
            prompt = prompt_tokens(tokenize, (begin,))
            ids = {i for text in prompt.texts for i in text} | set(prompt.level_ids)
            if max(ids) >= config.decoder.vocabulary:
                raise CheckpointError(
                    f"The tokenizer in {folder} knows token {max(ids)}, the decoder only "
                    f"{config.decoder.vocabulary} tokens; give the checkpoint's own tokenizer."
                )
        with torch.device("meta"):
            return cls(config, prompt).eval()

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = torch.float32) -> MplugOwl2Comparator:
        """Opens a checkpoint in the published layout; dtype None keeps the precision in which it is stored.

        A checkpoint without a tokenizer opens too: only `prefix` and `compare` need one.
        Raises CheckpointError naming what is missing, unknown, misshaped, cut short or unsafe to read.
        """
        model = cls.on_meta(folder)
        CheckpointWeights.open(folder).load_into(model, dtype)
        return model

    @property
    def spec(self) -> ComparatorSpec:
        """How it is asked and read."""
        image = ImageSpec(self.config.vision.image, CLIP_MEAN, CLIP_STD, PAD_COLOR)
        return ComparatorSpec(ARCHITECTURE, image, temperature=TEMPERATURE)

    @property
    def prompt_tokens(self) -> PromptTokens:
        """Token ids of the fixed prompt; raises CheckpointError without a tokenizer."""
        if self.prompt is None:
            raise CheckpointError(
                "The checkpoint has no tokenizer; put the published tokenizer.model or tokenizer.json beside "
                "its config.json."
            )
        return self.prompt

    def vision_hidden(self, pixel_values: Tensor) -> Tensor:
        """The vision encoder's last hidden state [N, patches + 1, width] of images [N, 3, S, S]."""
        return self.model.vision_model(pixel_values)  # type: ignore[no-any-return]

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [N, T, D] of preprocessed images [N, 3, S, S]."""
        return self.model.visual_abstractor(self.vision_hidden(pixel_values))  # type: ignore[no-any-return]

    def run(
        self, x: Tensor, block: Block, past: tuple[Tensor, Tensor] | None = None, row: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs a block of the prompt through the decoder's layers, see `run_layers`."""
        layers = cast("list[MultiwayLayer]", list(self.model.layers))
        return run_layers(layers, self.config.decoder, x, block, past, row)

    def logits(self, input_ids: Tensor, visual_tokens: Tensor) -> Tensor:
        """Logits over the vocabulary at every position of one prompt.

        Args:
            input_ids: [1, S] int64; -200 marks where the next image's visual tokens go.
            visual_tokens: [images, T, D], as many images as there are marks.

        Returns:
            [1, S', V] float32, S' = S + images * (T - 1).

        Raises:
            ValueError: the number of images is another than that of marks.
        """
        images, length, width = visual_tokens.shape
        ids = input_ids[0].tolist()
        if ids.count(IMAGE_MARK) != images:
            raise ValueError(f"The prompt has {ids.count(IMAGE_MARK)} images, {images} were given.")
        text = torch.tensor([i for i in ids if i != IMAGE_MARK], device=visual_tokens.device)
        flags = [flag for i in ids for flag in ([True] * length if i == IMAGE_MARK else [False])]
        block = Block.of(0, flags)
        x = torch.cat([self.model.embed_tokens(text), visual_tokens.reshape(-1, width)])[None]
        x, _, _ = self.run(x, block)
        order = torch.tensor(block.positions, device=x.device).argsort()
        return self.lm_head(self.model.norm(x[:, order])).float()  # type: ignore[no-any-return]

    def text_rows(self, chunk: int) -> Tensor:
        """Word embeddings [L, D] of the prompt's text before, between (1) or after (2) its images."""
        return rows_of(self.model.embed_tokens.weight, self.prompt_tokens.texts[chunk])

    def level_rows(self) -> Tensor:
        """The head's rows [5, D] of the level words' first tokens."""
        return rows_of(self.lm_head.weight, self.prompt_tokens.level_ids)

    def prefix(self, visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of first images' visual tokens [A, T, D].

        Returns:
            keys and values, each [A, layers, kv_heads, length, head_width]. They hold the prompt up to and
            with the first image.
        """
        return self.prefix_after(self.text_rows(0), visual_tokens)

    def prefix_after(self, text: Tensor, visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`prefix` with the first text's rows [L, D] given, which an exporter stores."""
        count, length, _ = visual_tokens.shape
        x = torch.cat([text.expand(count, -1, -1), visual_tokens], dim=1)
        _, keys, values = self.run(x, Block.of(0, [False] * len(text) + [True] * length))
        return keys, values

    def compare(self, visual_tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Level logits [N, A, 5] float32 of second images' tokens [N, T, D] against A prefixes."""
        return self.compare_between(
            self.text_rows(1), self.text_rows(2), self.level_rows(), visual_tokens, keys, values
        )

    def compare_between(
        self,
        second: Tensor,
        closing: Tensor,
        levels: Tensor,
        visual_tokens: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """`compare` with the second and the closing text's rows and the head's rows given."""
        n, a, length = visual_tokens.shape[0], keys.shape[0], visual_tokens.shape[1]
        first_index = torch.arange(a, device=keys.device).expand(n, a).reshape(-1)
        second_index = torch.arange(n, device=keys.device)[:, None].expand(n, a).reshape(-1)
        text = torch.cat([second, closing])
        x = torch.cat([text.expand(n, -1, -1), visual_tokens], dim=1)[second_index]
        block = Block.of(keys.shape[3], [False] * len(second) + [True] * length + [False] * len(closing))
        x, _, _ = self.run(x, block, (keys[first_index], values[first_index]), row=len(text) - 1)
        logits = F.linear(self.model.norm(x[:, -1]), levels).float()
        return torch.unflatten(logits, 0, (n, a))


def rows_of(weight: Tensor, ids: tuple[int, ...]) -> Tensor:
    """The rows [L, D] of a weight at token ids."""
    # Made on the CPU, as real constants, whatever device the weight is traced on.
    return F.embedding(torch.tensor(ids, device="cpu").to(weight.device), weight)
