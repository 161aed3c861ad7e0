"""A probe of quality on the visual tokens: what the encoder is tuned by, and what teaches the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compare2score.training.batches import LEVEL_BORDERS

TOKEN_DROPOUT = 0.3
HIDDEN = 256
PROBIT_AS_LOGIT = 1.702
"""The logistic function of 1.702 x is within 0.01 of the normal distribution's at x."""


class QualityProbe(nn.Module):
    """One number of quality per image, in units of a pair's sigma_ij, from its visual tokens.

    People judge a generated image by other things than a photograph, so that one linear reading cannot
    follow both; a hidden layer can, without being told which kind an image is of.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.read = nn.Sequential(
            nn.Dropout(TOKEN_DROPOUT),
            nn.Flatten(),
            nn.Linear(tokens * width, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, 1),
        )

    def forward(self, visual_tokens: Tensor) -> Tensor:
        """Quality [N] of visual tokens [N, T, D]."""
        return self.read(visual_tokens).float()[:, 0]  # type: ignore[no-any-return]


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
