"""What language comparators answer to pairs of image files: logits over their vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compare2score.comparator.huggingface import HuggingFaceComparator
from compare2score.comparator.mplug_owl2 import MplugOwl2Comparator
from compare2score.comparator.multiway_llama import Block
from compare2score.image import preprocess
from compare2score.training.level_pairs import LevelPairs

AdaptableComparator = MplugOwl2Comparator | HuggingFaceComparator

KEPT_BYTES = 4 << 30
"""Visual tokens kept in memory: about 8,000 images of mPLUG-Owl2 in half precision."""


def level_ids(comparator: AdaptableComparator) -> tuple[int, ...]:
    """First tokens of the level words, from the lowest level to the highest."""
    if isinstance(comparator, MplugOwl2Comparator):
        return comparator.prompt_tokens.level_ids
    return comparator.prompt.level_ids


def answer_logits(comparator: AdaptableComparator, first: Tensor, second: Tensor) -> Tensor:
    """Logits [P, V] float32 over the vocabulary where the level word begins, of P pairs of images.

    The prompt is the one that scores are asked for with, one call of the decoder for all pairs; `compare`
    gives the same at the level words alone.

    Args:
        comparator: what answers.
        first, second: visual tokens [P, T, D] of the pairs' images.
    """
    if isinstance(comparator, MplugOwl2Comparator):
        return owl_answers(comparator, first, second)
    marked = torch.tensor([comparator.prompt_ids], device=first.device)
    return comparator.ask(marked, torch.stack([first, second], dim=1), 1)[:, -1]


def owl_answers(owl: MplugOwl2Comparator, first: Tensor, second: Tensor) -> Tensor:
    """`answer_logits` of mPLUG-Owl2: the whole prompt, whose text rows stand before its visual tokens."""
    count, length, _ = first.shape
    text = torch.cat([owl.text_rows(chunk) for chunk in range(3)])
    lengths = [len(chunk) for chunk in owl.prompt_tokens.texts]
    seen = [True] * length
    flags = [*[False] * lengths[0], *seen, *[False] * lengths[1], *seen, *[False] * lengths[2]]
    rows = torch.cat([text.expand(count, -1, -1), first, second], dim=1)
    last, _, _ = owl.run(rows, Block.of(0, flags), row=len(text) - 1)
    return owl.lm_head(owl.model.norm(last[:, -1])).float()  # type: ignore[no-any-return]


class Answers:
    """A comparator's answers to pairs of image files.

    Attributes:
        comparator: what answers, on `device`.
        frozen: whether the visual tokens of an image stay the same; then no gradient reaches them, and those
            of the images that are seen first are kept, up to KEPT_BYTES.
    """

    def __init__(self, comparator: AdaptableComparator, device: torch.device, frozen: bool) -> None:
        self.comparator, self.device, self.frozen = comparator, device, frozen
        self.kept: dict[Path, Tensor] = {}
        self.kept_bytes = 0
        self.loaders = ThreadPoolExecutor(thread_name_prefix="c2s-image")

    def of(self, pairs: LevelPairs, chosen: NDArray[np.int64]) -> Tensor:
        """Logits [P, V] of the chosen pairs, see `answer_logits`. Raises ImageError for a bad file."""
        firsts, seconds = ([pairs.paths[i] for i in side[chosen]] for side in (pairs.first, pairs.second))
        tokens = self.tokens([*firsts, *seconds])
        first, second = (torch.stack([tokens[path] for path in side]) for side in (firsts, seconds))
        return answer_logits(self.comparator, first, second)

    def tokens(self, paths: Sequence[Path]) -> dict[Path, Tensor]:
        """Visual tokens [T, D] of each file."""
        known = {path: self.kept[path].to(self.device) for path in paths if path in self.kept}
        missing = [path for path in dict.fromkeys(paths) if path not in known]
        if not missing:
            return known
        load = partial(preprocess, spec=self.comparator.spec.image)
        pixels = [torch.from_numpy(image)[None] for image in self.loaders.map(load, missing)]
        if self.frozen:
            with torch.no_grad():
                # Each by itself: in a batch, its last bits would depend on what else is in it.
                encoded = [self.comparator.encode(image.to(self.device))[0] for image in pixels]
            for path, tokens in zip(missing, encoded, strict=True):
                self.keep(path, tokens)
        else:
            encoded = list(self.comparator.encode(torch.cat(pixels).to(self.device)))
        return known | dict(zip(missing, encoded, strict=True))

    def keep(self, path: Path, tokens: Tensor) -> None:
        """Keeps a file's tokens while there is room."""
        size = tokens.numel() * tokens.element_size()
        if self.kept_bytes + size <= KEPT_BYTES:
            self.kept[path] = tokens.cpu()
            self.kept_bytes += size
