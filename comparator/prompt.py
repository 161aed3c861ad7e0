"""The published prompt and its five levels (Q-Future/Compare2Score), as plain data."""

from __future__ import annotations

IMAGE = "<|image|>"
"""Marks where an image's visual tokens go."""

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
