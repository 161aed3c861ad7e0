"""The errors a user can meet, each one sentence that says what is wrong and what to do."""

from __future__ import annotations

from typing import Literal

ImageErrorCode = Literal[
    "not_found", "not_an_image", "truncated", "too_large", "unsupported", "timeout", "io_error"
]


class Compare2ScoreError(Exception):
    """Base of every error this package raises on purpose; its text is one sentence for the user."""


class ImageError(Compare2ScoreError):
    """An input image cannot be scored.

    `code` is one of a closed set, so that callers can count causes without reading sentences.
    """

    def __init__(self, code: ImageErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ImageErrorCode = code


class BundleError(Compare2ScoreError):
    """A bundle is missing, truncated, altered or of another format version."""


class BackendError(Compare2ScoreError):
    """A backend is unknown, cannot be loaded here, or refuses its graphs."""


class CheckpointError(Compare2ScoreError):
    """A torch checkpoint cannot be read as a comparator."""


class LabelError(Compare2ScoreError):
    """A label table is missing, or a row of it cannot be used."""


class CollectionError(Compare2ScoreError):
    """A collection cannot be listed, its rows cannot be written, or its run cannot begin or go on."""


class ExportError(Compare2ScoreError):
    """An exported graph does not compute what the torch comparator computes."""


class MissingExtraError(Compare2ScoreError):
    """An optional dependency is absent; the text names the `pip install` that brings it."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs an optional part: pip install 'compare2score-edge[{extra}]'.")
        self.extra = extra
