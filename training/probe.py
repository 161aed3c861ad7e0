"""A linear probe of quality on the visual tokens: what the encoder is tuned by, cheaper than the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compare2score.training.batches import LEVEL_BORDERS

TOKEN_DROPOUT = 0.3
PROBIT_AS_LOGIT = 1.702
"""The logistic function of 1.702 x is within 0.01 of the normal distribution's at x."""


class QualityProbe(nn.Module):
    """One number of quality per image, in units of a pair's sigma_ij, linear in its visual tokens."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(TOKEN_DROPOUT)
        self.read = nn.Linear(tokens * width, 1)

    def forward(self, visual_tokens: Tensor) -> Tensor:
        """Quality [N] of visual tokens [N, T, D]."""
        quality: Tensor = self.read(self.dropout(visual_tokens).flatten(1))
        return quality.squeeze(-1).float()


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
