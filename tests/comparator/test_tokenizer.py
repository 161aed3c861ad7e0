"""Prompt token ids through a checkpoint's own tokenizer."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers

from compare2score.comparator import load_comparator
from compare2score.comparator.prompt import LEVELS, QUESTION, prompt_tokens, text_chunks
from compare2score.comparator.tokenizer import read_tokenizer
from compare2score.errors import CheckpointError

# LLaMA-2's ids of the published prompt, from the golden data's README, and the pieces that they stand for.
FIRST = {3148: "▁US", 1001: "ER", 29901: ":", 29871: "▁"}
SECOND = {259: "▁▁"}
CLOSING = [
    (29871, "▁"), (3831, "▁Comp"), (1965, "ared"), (411, "▁with"), (278, "▁the"), (937, "▁first"),
    (1967, "▁image"), (29892, ","), (825, "▁what"), (338, "▁is"), (596, "▁your"), (11029, "▁quality"),
    (21700, "▁rating"), (363, "▁for"), (1473, "▁second"), (1967, "▁image"), (29973, "?"), (29871, "▁"),
    (13, "\n"), (22933, "ASS"), (9047, "IST"), (13566, "ANT"), (29901, ":"), (450, "▁The"),
    (11029, "▁quality"), (310, "▁of"), (278, "▁the"), (1473, "▁second"), (1967, "▁image"), (338, "▁is"),
]  # fmt: skip
LEVEL_IDS = (20773, 15029, 2788, 2253, 11558)


def llama_like(pieces: dict[int, str], size: int = 32000) -> Tokenizer:
    """A tokenizer that prepends a blank as LLaMA's does and takes the fewest pieces."""
    vocabulary = [(pieces.get(i, f"<unused {i}>"), -1.0 if i in pieces else -1e4) for i in range(size)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def test_the_prompt_has_the_published_ids(tmp_path):
    levels = dict(zip(LEVEL_IDS, (f"▁{level}" for level in LEVELS), strict=True))
    llama_like(FIRST | SECOND | dict(CLOSING) | levels).save(str(tmp_path / "tokenizer.json"))
    tokens = prompt_tokens(read_tokenizer(tmp_path), (1,))
    assert tokens.texts == ((1, 3148, 1001, 29901, 29871), (259,), tuple(i for i, _ in CLOSING))
    assert tokens.level_ids == LEVEL_IDS


def test_a_sentencepiece_model_is_read_as_sentencepiece_does(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentences = [f"{QUESTION} {level}" for level in LEVELS] + ["the  image is   better"] * 5
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20),
        model_writer=written,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    (tmp_path / "tokenizer.json").write_text("not looked at beside a tokenizer.model")
    tokens = prompt_tokens(read_tokenizer(tmp_path), (1,))
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    assert processor.id_to_piece(list(tokens.texts[1])) == [
        "▁▁"
    ]  # one blank of the prompt's, one of the model's
    assert [processor.decode(list(ids)) for ids in tokens.texts] == list(text_chunks())
    first_pieces = processor.id_to_piece(list(tokens.level_ids))
    assert all(f"▁{level}".startswith(piece) for level, piece in zip(LEVELS, first_pieces, strict=True))


@pytest.fixture
def checkpoint(owl_checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(owl_checkpoint, tmp_path / "checkpoint"))


def test_levels_that_begin_alike_are_refused(checkpoint):
    pieces = dict(enumerate(sorted(set(QUESTION + "".join(LEVELS) + "▁") - {" "}), start=3))
    # Letter by letter, "similar" and "superior" both begin with a blank.
    llama_like(pieces, 320).save(str(checkpoint / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="begin with the same token; choose other words"):
        load_comparator(checkpoint)


def test_a_tokenizer_of_another_model_is_refused(checkpoint):
    levels = dict(zip(LEVEL_IDS, (f"▁{level}" for level in LEVELS), strict=True))
    llama_like(FIRST | SECOND | dict(CLOSING) | levels).save(str(checkpoint / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"knows token 29973, the decoder only 320"):
        load_comparator(checkpoint)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00 no tokenizer"])
def test_a_damaged_tokenizer_is_refused(checkpoint, name, content):
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is not .*; copy the checkpoint again\.$"):
        load_comparator(checkpoint)
