"""General multimodal models as comparators: multi-image chat models that transformers loads."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from compare2score.comparator.chat import Chat, check_images, load_chat, one_line
from compare2score.comparator.comparator import ComparatorSpec, LanguageComparator
from compare2score.comparator.prompt import IMAGE_MARK
from compare2score.errors import CheckpointError, MissingExtraError
from compare2score.image import ImageSpec

PAIRS_PER_CALL = 8
"""Comparisons read in one forward pass."""


class HuggingFaceComparator(nn.Module):
    """A chat model of transformers behind a comparator's calls.

    The model's own processor writes the prompt (its chat template with two images, the question and the
    beginning of the answer) and prepares the pixels, and the model's own forward pass reads them. Every
    image is one square tile (LLaVA-NeXT: its overview and one tile), so all have as many visual tokens. Where
    later layers of the decoder are fed by the vision tower, too (Qwen3-VL's deepstack), a visual token
    carries what they are fed after its own features.

    Level logits are read at temperature 1, as the model gives them.

    Attributes:
        model: transformers' module, to train and to save.
        chat: its processor.
        prompt: token ids of a comparison and of the level words.
        tokens_per_image: T.
    """

    def __init__(self, model: Any, chat: Chat) -> None:
        """Asks the processor and the vision tower once; raises CheckpointError if they do not fit."""
        super().__init__()
        takes = inspect.signature(model.base_model.forward).parameters
        if "mm_encoder_outputs" not in takes or not hasattr(model.base_model, "get_image_features"):
            raise CheckpointError(
                f"The {model.config.model_type} family does not read images as tokens of its prompt, which "
                "is not supported; give a model of another family."
            )
        self.model = model.eval()
        self.chat = chat
        self.prompt, self.tokens_per_image = chat.prompt()
        # The model's image processor normalises, so `encode` takes plain 0..1.
        image = ImageSpec(chat.side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), chat.pad_color)
        self._spec = ComparatorSpec(model.config.model_type, image, chat.manifest_question())
        blank = torch.zeros(2, 3, chat.side, chat.side)
        given = chat.read(chat.question(), blank)
        self._grid = given.get("image_grid_thw") if "image_grid_thw" in takes else None
        self._types = [name for name in given if name.endswith("token_type_ids") and name in takes]
        alone = chat.read(chat.processor.image_token, blank[:1])["input_ids"]
        self._least = 1 if int((alone == chat.image_token).sum()) == self.tokens_per_image else 2
        with torch.no_grad():
            features = self.features(blank)
        self._stacked = isinstance(features.pooler_output, Tensor)
        found = sum(part.numel() for part in features.pooler_output) / self.width
        if found != 2 * self.tokens_per_image:
            raise CheckpointError(
                f"The vision tower makes {found / 2:g} tokens of an image where the processor expects "
                f"{self.tokens_per_image}; give the processor files that belong to this checkpoint."
            )

    @property
    def spec(self) -> ComparatorSpec:
        """How it is asked and read."""
        return self._spec

    @property
    def width(self) -> int:
        """Width of the decoder's embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Token ids of a comparison, IMAGE_MARK for each of its images, as `logits` takes them."""
        first, second, closing = self.prompt.texts
        return (*first, IMAGE_MARK, *second, IMAGE_MARK, *closing)

    def features(self, pixel_values: Tensor) -> Any:
        """The vision tower's answer, as its family gives it, to images [N, 3, S, S] that share a prompt."""
        given = self.chat.read(self.chat.processor.image_token * len(pixel_values), pixel_values)
        inner = self.model.base_model
        takes = inspect.signature(inner.get_image_features).parameters
        weight = self.model.get_input_embeddings().weight
        inputs = {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for name, value in given.items()
            if name in takes
        }
        return inner.get_image_features(**inputs)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [N, T, D] of images [N, 3, S, S] with values 0 to 1."""
        n = len(pixel_values)
        found = self.features(pixel_values.expand(max(n, self._least), -1, -1, -1))
        parts = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
        rows = [part if isinstance(part, Tensor) else torch.cat(list(part)) for part in parts]
        return torch.cat([row.reshape(-1, self.tokens_per_image, self.width)[:n] for row in rows], dim=-1)

    def prefix(self, visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """First images' visual tokens [A, T, D] themselves, and an empty tensor [A, 0]."""
        return visual_tokens, visual_tokens.new_empty(len(visual_tokens), 0)

    def compare(self, visual_tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:  # noqa: ARG002
        """Level logits [N, A, 5] of second images' tokens [N, T, D] against first ones' [A, T, D]."""
        n, a = len(visual_tokens), len(keys)
        first = keys.repeat(n, 1, 1)
        second = visual_tokens.repeat_interleave(a, dim=0)
        pairs = torch.stack([first, second], dim=1)
        marked = torch.tensor([self.prompt_ids], device=keys.device)
        answers = [self.ask(marked, chunk, 1)[:, -1] for chunk in torch.split(pairs, PAIRS_PER_CALL)]
        return torch.cat(answers)[:, list(self.prompt.level_ids)].reshape(n, a, -1)

    def logits(self, input_ids: Tensor, visual_tokens: Tensor) -> Tensor:
        """Logits [1, S', V] at every position of a prompt [1, S] with -200 for each image's tokens [T, D]."""
        check_images(input_ids, visual_tokens)
        return self.ask(input_ids, visual_tokens[None], 0)

    def ask(self, marked: Tensor, images: Tensor, positions: int) -> Tensor:
        """Logits of one prompt [1, S] about each of P sets of images' tokens [P, images, T, D].

        Returns [P, positions, V] float32 of the last positions, all of them for 0.
        """
        p, n, tokens, _ = images.shape
        rows = marked.clone()
        lengths = torch.where(marked[0] == IMAGE_MARK, tokens, 1)
        rows[rows == IMAGE_MARK] = self.chat.image_token
        ids = rows[0].repeat_interleave(lengths)[None].expand(p, -1)
        extra: dict[str, Any] = {name: (ids == self.chat.image_token).long() for name in self._types}
        if n:
            parts = [part.flatten(0, 1) for part in torch.split(images, self.width, dim=-1)]
            given = [part if self._stacked else list(part) for part in parts]
            found = SimpleNamespace(pooler_output=given[0], deepstack_features=given[1:])
            extra["mm_encoder_outputs"] = {"image": found}
            if self._grid is not None:
                extra["image_grid_thw"] = self._grid[:1].repeat(p * n, 1).to(ids.device)
        output = self.model(input_ids=ids, logits_to_keep=positions, use_cache=False, **extra)
        return output.logits.float()  # type: ignore[no-any-return]


def load_huggingface(path: str | Path, dtype: torch.dtype | None = torch.float32) -> LanguageComparator:
    """Opens a folder of a multi-image chat model that transformers' AutoModelForImageTextToText loads.

    Only local files are read, and code inside the folder is never run. Idefics3 and SmolVLM with a LLaMA
    decoder come as the fused `SmolVlmComparator`, which can be exported; all others, and those by
    `load_general`, as a `HuggingFaceComparator`. dtype None keeps the precision in which it is stored.

    Raises:
        CheckpointError: the folder holds no such model, not all of it, or one that cannot compare.
        MissingExtraError: transformers is not installed.
    """
    from compare2score.comparator.smolvlm import SmolVlmComparator, fits

    general = load_general(path, dtype)
    if not fits(general.model.config):
        return general
    return SmolVlmComparator(general.model, general.chat, general.prompt, general.tokens_per_image)


def load_general(path: str | Path, dtype: torch.dtype | None = torch.float32) -> HuggingFaceComparator:
    """Opens the folder of any family as a HuggingFaceComparator; raises as `load_huggingface` does."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("export", "Reading a multimodal model") from error
    folder = Path(path)
    config = read_config(folder)
    with quiet():
        chat = load_chat(folder, config)
        try:
            model, report = transformers.AutoModelForImageTextToText.from_pretrained(
                folder,
                config=config,
                dtype=dtype or "auto",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # readers of several formats, each with its own errors
            raise CheckpointError(
                f"{folder} does not hold whole {config.model_type} weights ({one_line(error)}); copy the "
                "checkpoint again."
            ) from error
    if report["missing_keys"]:
        raise CheckpointError(
            f"{folder} lacks {len(report['missing_keys'])} of the model's weights, "
            f"{min(report['missing_keys'])} among them; copy the checkpoint again."
        )
    try:
        with quiet():
            return HuggingFaceComparator(model, chat)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds a {config.model_type} model that cannot be asked to compare two images "
            f"({one_line(error)}); give a multi-image chat model of another family."
        ) from error


def read_config(folder: Path) -> Any:
    """The config of an image-and-text model; raises CheckpointError for anything else."""
    import transformers

    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} has no readable config.json; give a checkpoint folder.") from error
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a config's values are checked by its family's own code
        raise CheckpointError(
            f"{folder} holds a {kind!r} checkpoint, which transformers {transformers.__version__} does not "
            f"read ({one_line(error)}); give a checkpoint of a supported family."
        ) from error
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise CheckpointError(
            f"{folder} holds a {kind!r} model, which does not read images and text together; "
            "give a multi-image chat model."
        )
    return config


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and advice off the terminal while a checkpoint is read."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
