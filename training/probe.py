"""A probe of quality on the visual tokens: what the encoder is tuned by, and what teaches the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compare2score.training.batches import LEVEL_BORDERS

TOKEN_DROPOUT = 0.3
PROBIT_AS_LOGIT = 1.702
"""The logistic function of 1.702 x is within 0.01 of the normal distribution's at x."""


class QualityProbe(nn.Module):
    """One number of quality per image, in units of a pair's sigma_ij, from its visual tokens.

    People judge a generated image by other things than a photograph: one linear reading of both was worse at
    each than a reading for each. So every table has its own, and a gate learns from the tokens which table's
    kind an image is of: the quality is the mean of the readings, weighted by the gate.
    """

    def __init__(self, tokens: int, width: int, tables: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(TOKEN_DROPOUT)
        self.read = nn.Linear(tokens * width, tables)
        self.gate = nn.Linear(tokens * width, tables)

    def forward(self, visual_tokens: Tensor) -> Tensor:
        """Quality [N] of visual tokens [N, T, D]."""
        return self.read_and_sort(visual_tokens)[0]

    def read_and_sort(self, visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Quality [N], and the gate's logits [N, tables], of visual tokens [N, T, D]."""
        flat = self.dropout(visual_tokens).flatten(1)
        logits = self.gate(flat).float()
        quality = (self.read(flat).float() * logits.softmax(dim=1)).sum(dim=1)
        return quality, logits


def levels_of(difference: Tensor) -> Tensor:
    """Probability of each level [P, 5] for differences of quality [P]: `batches.soft_levels`, in torch."""
    borders = torch.as_tensor(LEVEL_BORDERS, dtype=difference.dtype, device=difference.device)
    above = torch.special.ndtr(difference[:, None] - borders)
    return torch.diff(nn.functional.pad(above, (1, 0)), dim=1, append=torch.ones_like(above[:, :1]))


def ordinal_loss(difference: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy at the four borders between the levels.

    Under Thurstone's Case V a pair whose qualities differ by d sigma_ij lies beyond a border b with
    probability Phi(d - b), as in `batches.soft_levels`.

    Args:
        difference: quality of the first image minus that of the second, [P].
        targets: probability of each level of the second image, [P, 5].
    """
    borders = torch.as_tensor(LEVEL_BORDERS, dtype=difference.dtype, device=difference.device)
    beyond = targets.cumsum(dim=1)[:, :-1].clamp(0, 1)
    logits = PROBIT_AS_LOGIT * (difference[:, None] - borders)
    return nn.functional.binary_cross_entropy_with_logits(logits, beyond)
