"""The published prompt and its five levels (Q-Future/Compare2Score), as plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compare2score.errors import CheckpointError

IMAGE = "<|image|>"
"""Marks where an image's visual tokens go."""

IMAGE_MARK = -200
"""Stands for it in a prompt's token ids, as in the published code: for all the visual tokens of one image."""

ASKED = "Compared with the first image, what is your quality rating for second image?"
ANSWERED = "The quality of the second image is"
QUESTION = f"USER: {IMAGE} {IMAGE} {ASKED} \nASSISTANT: {ANSWERED}"
"""The prompt of a comparison: the first image is the anchor, the second the test image."""

LEVELS = ("inferior", "worse", "similar", "better", "superior")
"""Answers, from the lowest to the highest quality of the second image relative to the first."""

LEVEL_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Contribution of each level's probability to P(second preferred over first)."""


def text_chunks(question: str = QUESTION) -> tuple[str, str, str]:
    """Splits a two-image question at its images.

    Returns the text before the first image, between the two, and after the second.
    Raises ValueError if the question does not hold exactly two images.
    """
    chunks = question.split(IMAGE)
    if len(chunks) != 3:
        raise ValueError(f"A comparison's question needs exactly two {IMAGE}, found {len(chunks) - 1}.")
    return chunks[0], chunks[1], chunks[2]


@dataclass(frozen=True)
class PromptTokens:
    """A two-image prompt and its levels as token ids of one decoder.

    Attributes:
        texts: ids of the text before the first image, between the two, and after the second; those of the
            first begin with the decoder's begin-of-text token, where it has one.
        level_ids: first token of each level word, in the order of the levels.
    """

    texts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    level_ids: tuple[int, ...]


def prompt_tokens(
    tokenize: Callable[[str], Sequence[int]],
    begin: tuple[int, ...] = (),
    question: str = QUESTION,
    levels: tuple[str, ...] = LEVELS,
) -> PromptTokens:
    """Tokenises a two-image question text by text, as the published code does, and finds the levels' tokens.

    Args:
        tokenize: text to ids by the decoder's own tokenizer, without special tokens.
        begin: ids before the first text, such as the decoder's begin-of-text token.
        question: the prompt, with an IMAGE where each of the two images goes.
        levels: level words. A level's token is the one that follows the question when its word is said.

    Raises:
        CheckpointError: two level words begin with the same token, or a word has no token of its own.
    """
    first, second, closing = (tuple(tokenize(chunk)) for chunk in text_chunks(question))
    level_ids = []
    for level in levels:
        said = tuple(tokenize(f"{text_chunks(question)[2]} {level}"))
        if said[: len(closing)] != closing or len(said) == len(closing):
            raise CheckpointError(
                f"The tokenizer gives the level word {level!r} no token of its own after the prompt."
            )
        level_ids.append(said[len(closing)])
    if len(set(level_ids)) < len(level_ids):
        raise CheckpointError(
            f"Two of the level words {levels} begin with the same token; choose other words."
        )
    return PromptTokens((begin + first, second, closing), tuple(level_ids))
