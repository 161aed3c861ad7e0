"""The optional parts that some verbs need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from compare2score.errors import MissingExtraError


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Around imports: an absent package becomes MissingExtraError, which names the `pip install`."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "compare2score":
            raise
        raise MissingExtraError(name, purpose) from error
