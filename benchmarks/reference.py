"""The published way to score an image, written again in torch: the baseline of every speed-up stated here.

What runs for one image, and which published behaviour it stands for (Q-Future/Compare2Score, the scorer's
`forward` and the solver it calls, at the commit that tests/golden names):

1. For each of the five anchors, one after another, the anchor's file and the test image's file are opened and
   converted to RGB. (Published: the anchors come out of a data set that decodes them for every image scored;
   the test image is loaded inside the loop over the anchors.)
2. Both are padded to a square of the mean colour, resized bicubically by Pillow, normalised and stacked to a
   batch of two. (Published: `expand2square`, then the CLIP image processor.)
3. The batch goes through the vision encoder: ten vision passes an image. (Published: the model takes both
   images of every comparison.)
4. One full prompt, text, anchor's tokens, text, test image's tokens, text, goes through all decoder layers
   for all positions. (Published: one forward call of the model, without a cache from any earlier one.)
5. The whole `lm_head`, every word of the vocabulary, is applied to the whole sequence, in float32 on return;
   then the last position's five level words are picked. (Published: `logits[:, -1, ids]` after the forward.)
6. The five logits are divided by the temperature, exponentiated, normalised and weighted, in numpy.
7. The probabilities extend the anchors' stored matrix by a row and a column; 100 Adam steps of rate 0.1 from
   uniform random values (seed 0) climb the posterior in float32, with F bounded below by 1e-6; the result is
   scaled to 0-100 by its own extremes.

What differs, because it must: the comparator is the bundle's, so the prompt's text rows are taken as they are
stored rather than looked up in an embedding table (microseconds either way), and of the vocabulary's rows all
but the levels' are random, which costs the same. A "late" comparator gets the mask under which a full prompt
answers as it was trained to. Nothing is kept from one image to the next, nothing is slowed down: torch's own
convolutions and matrix products run on as many threads as the scorer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from compare2score.comparator.decoder import ComparisonDecoder, DecoderLayer, rotate
from compare2score.comparator.nano import NanoComparator
from compare2score.image import ImageSpec
from compare2score.link import Link

VOCABULARY = 49_152
"""Rows of SmolLM2's `lm_head`."""
STEPS, RATE, FLOOR = 100, 0.1, 1e-6
"""The published solver's steps and step size, and the least F whose logarithm it takes."""


@dataclass(frozen=True)
class ReferenceScore:
    """What the reference loop finds: P(image preferred over anchor n), and the published min-max score."""

    probabilities: tuple[float, ...]
    value: float


class ReferenceLoop:
    """Scores one image at a time, as published.

    Args:
        comparator: with the weights to compare with.
        anchors: files of the anchor images; decoded again for every image.
        matrix: the anchors' preference matrix [A, A], which the published code holds as a constant.
        vocabulary: rows of the head.
        link: "probit" (the paper's, and the golden data's) or "logit"; equal in cost.
        dtype, device: of the model; the published code runs float16 on a GPU.
    """

    def __init__(
        self,
        comparator: NanoComparator,
        anchors: Sequence[str | Path],
        matrix: ArrayLike,
        vocabulary: int = VOCABULARY,
        link: Link = "probit",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.comparator = comparator.eval().to(device=device, dtype=dtype)
        self.anchors = tuple(anchors)
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.link: Link = link
        config, decoder = comparator.config, comparator.decoder
        levels = len(config.levels)
        # Anywhere among the others: what is read is the same.
        self.level_ids = torch.linspace(0, vocabulary - 1, levels).long().tolist()
        generator = torch.Generator().manual_seed(0)
        head = 0.02 * torch.randn(vocabulary, config.decoder.width, generator=generator)
        self.head = head.to(device=device, dtype=dtype)
        self.head[self.level_ids] = decoder.level_head.weight.detach()
        self.mask = prompt_mask(decoder)

    def score(self, image: str | Path) -> ReferenceScore:
        """Scores an image file, all steps."""
        probabilities = []
        for anchor in self.anchors:
            logits = self.level_logits(*(opened(path) for path in (anchor, image)))
            odds = np.exp(logits / self.comparator.config.temperature)
            probabilities.append(float(odds / odds.sum() @ np.array(self.comparator.config.level_weights)))
        return ReferenceScore(tuple(probabilities), solve(extended(self.matrix, probabilities), self.link))

    @torch.inference_mode()
    def level_logits(self, anchor: Image.Image, image: Image.Image) -> NDArray[np.float32]:
        """The five logits [5] of one comparison: steps 2 to 5."""
        spec, model = self.comparator.config.image, self.comparator
        pixels = torch.from_numpy(np.stack([prepared(each, spec) for each in (anchor, image)]))
        tokens = model.encode(pixels.to(device=self.head.device, dtype=self.head.dtype))
        decoder = model.decoder
        parts = (decoder.first_text, tokens[0], decoder.second_text, tokens[1], decoder.closing_text)
        x = torch.cat([part.to(tokens.dtype) for part in parts])[None]
        for layer in decoder.decoder_layers():
            x = full_layer(layer, x, decoder.cosine, decoder.sine, self.mask)
        logits = F.linear(decoder.norm(x), self.head).float()
        return logits[0, -1, self.level_ids].cpu().numpy()


def opened(path: str | Path) -> Image.Image:
    """An image file as RGB, upright as our decoder has it (for most files a look at one tag)."""
    with Image.open(path) as file:
        return ImageOps.exif_transpose(file).convert("RGB")


def prepared(image: Image.Image, spec: ImageSpec) -> NDArray[np.float32]:
    """Padded to a square, resized, normalised: [3, S, S]."""
    if image.width != image.height:
        side = max(image.size)
        square = Image.new("RGB", (side, side), spec.pad_color)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    resized = np.asarray(image.resize((spec.size, spec.size), Image.Resampling.BICUBIC), np.float32)
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(((resized / np.float32(255) - mean) / std).transpose(2, 0, 1))


def prompt_mask(decoder: ComparisonDecoder) -> Tensor:
    """Additive mask [L, L] of the whole prompt: causal, and for a "late" comparator without the second
    image's view of the first.
    """
    mask = decoder.causal_mask.clone()
    if decoder.config.comparison == "late":
        start = decoder.prefix_length
        mask[start : start + decoder.second_length, :start] = float("-inf")
    return mask


def full_layer(layer: DecoderLayer, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
    """One LLaMA layer for all positions of x [1, L, D], key heads repeated for their groups of queries."""
    config, normed = layer.config, layer.attention_norm(x)
    query = rotate(layer.split_heads(layer.query(normed)), cosine, sine)
    key = rotate(layer.split_heads(layer.key(normed)), cosine, sine)
    value = layer.split_heads(layer.value(normed))
    groups = config.heads // config.kv_heads
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scores = query @ key.transpose(-1, -2) * config.head_width**-0.5 + mask
    mixed = scores.float().softmax(dim=-1).to(value.dtype) @ value
    x = x + layer.output(mixed.transpose(1, 2).flatten(2))
    normed = layer.mlp_norm(x)
    gated: Tensor = layer.down(F.silu(layer.gate(normed)) * layer.up(normed))
    return x + gated


def extended(matrix: NDArray[np.float64], probabilities: Sequence[float]) -> NDArray[np.float64]:
    """The anchors' matrix with a row and a column for the test image."""
    row = np.asarray(probabilities)
    above = np.hstack([matrix, 1 - row[:, None]])
    return np.vstack([above, [*row, 0.5]])


def solve(matrix: NDArray[np.float64], link: Link = "probit", steps: int = STEPS) -> float:
    """The published solver: Adam from random values; the last one's place between the extremes, 0-100."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        q = torch.rand(len(matrix), requires_grad=True)
    preferences = torch.tensor(matrix, dtype=torch.float32)
    optimizer = torch.optim.Adam([q], lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        difference = q[:, None] - q
        preferred = 0.5 * (1 + torch.erf(difference / 2**0.5)) if link == "probit" else difference.sigmoid()
        likelihood = (preferences * preferred.clamp_min(FLOOR).log()).sum()
        loss = q.square().sum() / 2 - likelihood
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    values = q.detach().numpy()
    return float(100 * (values[-1] - values.min()) / (values.max() - values.min()))
