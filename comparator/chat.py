"""A chat model's own processor: how it writes a comparison of two images, and what it makes of an image."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from compare2score.comparator.prompt import ANSWERED, ASKED, IMAGE, IMAGE_MARK, LEVELS, PromptTokens
from compare2score.errors import CheckpointError

ONE_TILE = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")
"""Settings by which image processors cut an image into tiles; all are switched off."""

FREE_SIDE = 448
"""Side of the square for families that take images of any size: the published comparator's."""

STAND_INS = {"smolvlm": "Idefics3Processor"}
"""Used in place of a family's own processor, which treats images alike but wants packages for videos."""


@dataclass(frozen=True)
class Chat:
    """A processor with its tokenizer and chat template, set to one square tile an image.

    Attributes:
        processor: transformers' processor, without its part for videos.
        side: side in pixels of the square that its image processor leaves as it is.
        settings: what the processor is told at every call.
        image_token: id of the token that is repeated where an image's visual tokens go.
    """

    processor: Any
    side: int
    settings: dict[str, Any]
    image_token: int

    def read(self, text: str, pixel_values: Tensor) -> dict[str, Any]:
        """The processor's answer to a text and the images [N, 3, S, S], 0 to 1, that it mentions.

        The images belong to one sample, as in a comparison: some families treat a lone image otherwise.
        """
        rows = (pixel_values.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
        images = [Image.fromarray(image) for image in rows.permute(0, 2, 3, 1).cpu().numpy()]
        start = self.processor.tokenizer.bos_token
        return dict(
            self.processor(
                text=[text],
                images=[images],
                return_tensors="pt",
                add_special_tokens=not (start and text.startswith(start)),
                **self.settings,
            )
        )

    def question(self) -> str:
        """The comparison as the chat template writes it, with the processor's own mark for each image.

        Raises CheckpointError if the chat template cannot, or does not place two images.
        """
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": ASKED}]
        try:
            asked = str(
                self.processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
                )
            )
        except Exception as error:  # a template is a program, and fails as it likes
            raise CheckpointError(
                f"The checkpoint's chat template fails on two images and a question ({one_line(error)}); "
                "give a model with a working one."
            ) from error
        placed = asked.count(self.processor.image_token)
        if placed != 2:
            raise CheckpointError(
                f"The checkpoint's chat template places {placed} of two images; "
                "give a model that can be shown several."
            )
        return f"{asked}{'' if asked[-1].isspace() else ' '}{ANSWERED}"

    def manifest_question(self) -> str:
        """The comparison with an IMAGE where each of the two images goes."""
        return self.question().replace(self.processor.image_token, IMAGE)

    def prompt(self, levels: Sequence[str] = LEVELS) -> tuple[PromptTokens, int]:
        """Token ids of a comparison, as the processor expands it, and how many visual tokens an image has.

        Raises CheckpointError if its two images are not two runs of one length, or two level words begin with
        the same token.
        """
        given = self.read(self.question(), torch.zeros(2, 3, self.side, self.side))
        ids = tuple(given["input_ids"][0].tolist())
        places = [i for i, token in enumerate(ids) if token == self.image_token]
        count = len(places) // 2
        runs = places[:count], places[count:]
        if not count or any(len(run) != count or run[-1] - run[0] != count - 1 for run in runs):
            raise CheckpointError(
                f"The checkpoint's processor makes {len(places)} tokens of two images that are not two runs "
                "of one length, which is not supported; give a model of another family."
            )
        first, second = runs[0][0], runs[1][0]
        texts = ids[:first], ids[first + count : second], ids[second + count :]
        return PromptTokens(texts, self.level_ids(levels)), count

    def level_ids(self, levels: Sequence[str] = LEVELS) -> tuple[int, ...]:
        """First token of every level word, as it follows the beginning of the answer.

        Raises CheckpointError if two words begin with the same token.
        """

        def tokenize(text: str) -> list[int]:
            return list(self.processor.tokenizer(text, add_special_tokens=False).input_ids)

        begun = tokenize(ANSWERED)
        words: dict[int, str] = {}
        for level in levels:
            said = tokenize(f"{ANSWERED} {level}")
            token = next((new for i, new in enumerate(said) if begun[i : i + 1] != [new]), -1)
            if token in words:
                raise CheckpointError(
                    f"The level words {words[token]!r} and {level!r} begin with the same token of the "
                    "checkpoint's tokenizer, so it cannot tell them apart; give another model."
                )
            words[token] = level
        return tuple(words)

    @property
    def pad_color(self) -> tuple[int, int, int]:
        """Colour 0-255 around an image that is no square: the mean that the image processor subtracts."""
        mean = getattr(self.processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
        red, green, blue = (int(255 * value) for value in mean)
        return red, green, blue


def check_images(input_ids: Tensor, visual_tokens: Tensor) -> None:
    """Raises ValueError unless one prompt [1, S] marks as many images as visual tokens [n, T, D] hold."""
    marks = int((input_ids == IMAGE_MARK).sum())
    if len(input_ids) != 1 or marks != len(visual_tokens):
        raise ValueError(f"{len(input_ids)} prompts mark {marks} images, {len(visual_tokens)} were given.")


def load_chat(folder: Path, config: Any) -> Chat:
    """Reads a checkpoint folder's processor, tokenizer and chat template from local files.

    Image processors work through Pillow, so that the pixels do not depend on what else is installed.
    `config` is the model's: where its family counts tiles by it (`image_grid_pinpoints`), it is set to one.

    Raises CheckpointError if one of them is missing or cannot be used.
    """
    try:
        processor = load_processor(folder, config)
        images = processor.image_processor
        side = square_side(images)
    except ImportError as error:
        raise CheckpointError(
            f"The processor of the {config.model_type} family does not run here ({one_line(error)}); install "
            "what it needs or give a model of another family."
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} has no processor and tokenizer that can be used ({one_line(error)}); copy the "
            "checkpoint's processor, tokenizer and chat template files into it."
        ) from error
    if not processor.chat_template:
        raise CheckpointError(f"{folder} has no chat template; give an instruction-tuned (chat) checkpoint.")
    settings: dict[str, Any] = {name: False for name in ONE_TILE if hasattr(images, name)}
    if hasattr(images, "max_image_size"):
        settings["size"] = {"longest_edge": side}
    if hasattr(images, "image_grid_pinpoints"):
        settings["image_grid_pinpoints"] = config.image_grid_pinpoints = [[side, side]]
    for name, value in settings.items():
        setattr(images, name, value)
    token = getattr(config, "image_token_id", None)
    return Chat(processor, side, settings, config.image_token_index if token is None else token)


def load_processor(folder: Path, config: Any) -> Any:
    """The family's processor of texts and images; its part for videos, which needs torchvision, stays out."""
    import transformers

    name = STAND_INS.get(config.model_type)
    family = getattr(transformers, name) if name else transformers.PROCESSOR_MAPPING[type(config)]
    parts = [part for part in family.get_attributes() if "video" not in part]
    images_alone = {"get_attributes": classmethod(lambda _: list(parts))}
    family = cast(Any, type(family.__name__, (family,), images_alone))
    local = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
    images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **local)
    known, _ = family.get_processor_dict(folder, local_files_only=True)
    known = {key: value for key, value in known.items() if "video" not in key and key != "audio_tokenizer"}
    processor = family.from_args_and_dict([images, tokenizer], known)
    processor.chat_template = processor.chat_template or tokenizer.chat_template
    return processor


def square_side(images: Any) -> int:
    """Side of the square that an image processor hands to its model; at most FREE_SIDE where it takes any.

    Raises ValueError if its sizes name no square.
    """
    if hasattr(images, "max_image_size"):
        return int(images.max_image_size["longest_edge"])
    size = images.crop_size if getattr(images, "do_center_crop", False) else images.size
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    if size.get("height") or (least and not most):
        return int(size.get("height") or least)
    if not most:
        raise ValueError("its image processor names no size")
    # Families that merge patches bound the image's area under the names of its edges.
    step = images.patch_size * images.merge_size if hasattr(images, "merge_size") else 1
    return max(step, min(FREE_SIDE, math.isqrt(most) if step > 1 else most) // step * step)


def one_line(error: BaseException) -> str:
    """The first sentence of an error's text, cut to what fits in another sentence's brackets."""
    text = re.split(r"(?<=[.!?]) ", " ".join(str(error).split()))[0]
    return text[:160].rstrip(".") or type(error).__name__
