"""The published prompt: its text, its levels, its tokens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from compare2score.comparator.prompt import IMAGE, LEVEL_WEIGHTS, LEVELS, QUESTION, prompt_tokens, text_chunks
from compare2score.errors import CheckpointError

GOLDEN_README = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "README.md"


class Words:
    """A made-up tokenizer: a token is a word with the blank before it, or a run of blanks."""

    def __init__(self, pattern: str = r"\s?[^\s]+|\s+") -> None:
        self.pattern = pattern
        self.vocabulary: list[str] = []

    def __call__(self, text: str) -> list[int]:
        pieces = re.findall(self.pattern, text)
        self.vocabulary += [piece for piece in dict.fromkeys(pieces) if piece not in self.vocabulary]
        return [self.vocabulary.index(piece) for piece in pieces]

    def text(self, ids: tuple[int, ...]) -> str:
        return "".join(self.vocabulary[i] for i in ids)


def test_the_question_is_the_published_one():
    assert QUESTION == (
        "USER: <|image|> <|image|> Compared with the first image, what is your quality rating for second "
        "image? \nASSISTANT: The quality of the second image is"
    )


@pytest.mark.skipif(not GOLDEN_README.exists(), reason="the golden data's README lies beside the repository")
def test_the_question_is_that_of_the_golden_data():
    (published,) = re.findall(r"^- Prompt: `(.*?)`;", GOLDEN_README.read_text(encoding="utf-8"), re.MULTILINE)
    assert published.replace(r"\n", "\n") == QUESTION


def test_levels_rise_with_their_weights():
    assert LEVELS == ("inferior", "worse", "similar", "better", "superior")
    assert LEVEL_WEIGHTS == (0, 0.25, 0.5, 0.75, 1)


def test_the_chunks_are_what_stands_around_the_images():
    first, second, closing = text_chunks()
    assert (first, second) == ("USER: ", " ")
    assert closing.startswith(" Compared with the first image,")
    assert closing.endswith("The quality of the second image is")
    assert text_chunks(f"a{IMAGE}{IMAGE}") == ("a", "", "")


@pytest.mark.parametrize("images", [0, 1, 3])
def test_a_question_of_another_number_of_images_is_refused(images):
    with pytest.raises(ValueError, match=f"found {images}"):
        text_chunks("Compare " + IMAGE * images)


def test_token_ids_spell_the_question_and_the_levels():
    words = Words()
    tokens = prompt_tokens(words)
    assert IMAGE.join(words.text(ids) for ids in tokens.texts) == QUESTION
    assert [words.text((token,)) for token in tokens.level_ids] == [f" {level}" for level in LEVELS]


def test_another_question_and_other_levels_are_tokenised_the_same_way():
    words = Words()
    tokens = prompt_tokens(words, (), f"{IMAGE} against {IMAGE} is", ("bad", "good"))
    assert [words.text(ids) for ids in tokens.texts] == ["", " against ", " is"]
    assert [words.text((token,)) for token in tokens.level_ids] == [" bad", " good"]


def test_levels_of_one_first_token_are_refused():
    with pytest.raises(CheckpointError, match="same token"):
        prompt_tokens(Words(r"\s?[^\s]|\s+"))  # " similar" and " superior" both begin with " s"


def test_reading_the_prompt_does_not_load_torch():
    program = "import sys, compare2score.comparator.prompt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
