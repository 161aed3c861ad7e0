"""A LLaMA checkpoint's own tokenizer, read as the published code reads it: without transformers.

transformers 5 rebuilds LLaMA tokenizers with rules of its own, which tokenise a text that begins with a
blank otherwise than the published code did (one "▁" instead of two).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compare2score.errors import CheckpointError, MissingExtraError


def read_tokenizer(folder: Path) -> Callable[[str], list[int]] | None:
    """Text to token ids, without special tokens, by the folder's `tokenizer.model` or else `tokenizer.json`.

    None if the folder holds neither.

    Raises:
        CheckpointError: the file is damaged.
        MissingExtraError: the package that reads it is not installed.
    """
    model, table = folder / "tokenizer.model", folder / "tokenizer.json"
    if model.exists():
        return read_sentencepiece(model)
    return read_table(table) if table.exists() else None


def read_sentencepiece(path: Path) -> Callable[[str], list[int]]:
    """Reads a SentencePiece model."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise MissingExtraError("export", f"Reading {path.name}") from error
    try:
        processor = SentencePieceProcessor(model_proto=path.read_bytes())
        processor.encode("USER")  # an empty file fails here only
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a SentencePiece model; copy the checkpoint again.") from error
    return lambda text: list(processor.encode(text))


def read_table(path: Path) -> Callable[[str], list[int]]:
    """Reads a `tokenizer.json`, whose rules are in the file."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("export", f"Reading {path.name}") from error
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # what the package raises is a bare Exception
        raise CheckpointError(f"{path} is not a tokenizer; copy the checkpoint again.") from error
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
