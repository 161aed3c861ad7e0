"""What every torch comparator offers: a backend's three calls, and facts for the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from compare2score.comparator.prompt import LEVEL_WEIGHTS, LEVELS, QUESTION
from compare2score.image import ImageSpec


@dataclass(frozen=True)
class ComparatorSpec:
    """How a comparator is asked and how its answers are read.

    Attributes:
        model: the comparator's name, e.g. "compare2score-nano", "mplug_owl2".
        image: preprocessing of the pixels that `encode` takes.
        question: the prompt, with an IMAGE where each of the two images goes.
        levels: level words, from the lowest quality of the second image to the highest.
        level_weights: contribution of each level's probability to P(second preferred over first).
        temperature: divides the level logits before the softmax.
    """

    model: str
    image: ImageSpec
    question: str = QUESTION
    levels: tuple[str, ...] = LEVELS
    level_weights: tuple[float, ...] = LEVEL_WEIGHTS
    temperature: float = 1.0


class Comparator(Protocol):
    """A torch module that compares a second (test) image with a first one (anchor)."""

    @property
    def spec(self) -> ComparatorSpec:
        """How it is asked and read."""

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [N, T, D] of preprocessed images [N, 3, S, S]."""

    def prefix(self, visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of first images' visual tokens [A, T, D].

        Returns the decoder's keys and values, each [A, layers, kv_heads, length, head_width]. A comparator
        that reads its whole prompt for every pair keeps the tokens themselves, and nothing as values.
        """

    def compare(self, visual_tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Level logits [N, A, levels] of second images' tokens [N, T, D] against A prefixes."""


class LanguageComparator(Comparator, Protocol):
    """A comparator whose whole vocabulary and any prompt can be asked for."""

    def logits(self, input_ids: Tensor, visual_tokens: Tensor) -> Tensor:
        """Logits over the vocabulary at every position.

        Args:
            input_ids: [1, S] int64; -200 marks where the next image's visual tokens go.
            visual_tokens: [images, T, D], as many images as there are marks.

        Returns:
            [1, S', V] float32, S' = S + images * (T - 1).
        """
