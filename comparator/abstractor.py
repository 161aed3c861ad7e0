"""Visual abstractor of the nano comparator: feature maps -> a few visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

VARIANCE_FLOOR = 1e-6
TOKEN_GAIN = 0.13
"""Initial root mean square of a visual token's entries: that of the decoder's word embeddings."""
FEATURE_DROPOUT = 0.5
"""In training only: a few thousand rated images are soon learned by heart."""
GATE_STAGES = 4
"""First abstracted stages that tell kinds of images apart: traces of their making are fine ones."""
GATE_HIDDEN = 512
GATE_DROPOUT = 0.2


def cell_statistics(feature_map: Tensor, grid: int) -> Tensor:
    """Mean and standard deviation of every channel over each cell of a grid, and over the whole map.

    Distortions show in how filters' responses spread as much as in their mean, and more in the early
    stages than in the final embedding.

    Args:
        feature_map: [N, C, S, S], S a multiple of `grid`.
        grid: cells per side.

    Returns:
        [N, grid * grid + 1, 2 * C] in float32: cells row by row, then the whole map; means, then deviations.
    """
    n, c, s, _ = feature_map.shape
    cells = feature_map.float().reshape(n, c, grid, s // grid, grid, s // grid)
    mean = cells.mean(dim=(3, 5)).flatten(2)
    square = cells.square().mean(dim=(3, 5)).flatten(2)
    # The whole map's moments are the means of its equal cells' moments.
    mean = torch.cat([mean, mean.mean(dim=2, keepdim=True)], dim=2)
    square = torch.cat([square, square.mean(dim=2, keepdim=True)], dim=2)
    deviation = (square - mean.square()).clamp_min(VARIANCE_FLOOR).sqrt()
    return torch.cat([mean, deviation], dim=1).transpose(1, 2)


class VisualAbstractor(nn.Module):
    """Maps the cells' statistics of all stages to visual tokens [N, grid * grid + 1, D]."""

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, channels: Sequence[int], grid: int, width: int) -> None:
        super().__init__()
        features = 2 * sum(channels)
        tokens = grid * grid + 1
        self.grid = grid
        self.register_buffer("feature_mean", torch.zeros(tokens, features))
        self.register_buffer("feature_scale", torch.ones(tokens, features))
        self.project = nn.Linear(features, width)
        self.mix = nn.Linear(width, width)
        self.position = nn.Parameter(torch.zeros(tokens, width))
        self.norm = nn.LayerNorm(width)
        nn.init.constant_(self.norm.weight, TOKEN_GAIN)

    @torch.no_grad()
    def calibrate(self, statistics: Tensor) -> None:
        """Sets the standardisation of the features from a sample of images, [N, tokens, features]."""
        self.feature_mean.copy_(statistics.mean(dim=0))
        self.feature_scale.copy_(1 / statistics.std(dim=0).clamp_min(1e-3))

    def standardise(self, statistics: Tensor) -> Tensor:
        """Statistics [N, grid * grid + 1, features] in their own deviations, bounded."""
        return ((statistics - self.feature_mean) * self.feature_scale).clamp(-8, 8)

    def forward(self, statistics: Tensor) -> Tensor:
        """Visual tokens [N, grid * grid + 1, D] of cell statistics [N, grid * grid + 1, features]."""
        standard = nn.functional.dropout(self.standardise(statistics), FEATURE_DROPOUT, self.training)
        hidden = self.project(standard) + self.position
        tokens: Tensor = self.norm(hidden + self.mix(nn.functional.gelu(hidden)))
        return tokens


class KindGate(nn.Module):
    """Tells what kind of image it is, photographs from generated ones say, by fine traces of its making."""

    def __init__(self, channels: Sequence[int], kinds: int) -> None:
        super().__init__()
        self.features = 2 * sum(channels[:GATE_STAGES])
        self.read = nn.Sequential(
            nn.Dropout(GATE_DROPOUT),
            nn.Linear(self.features, GATE_HIDDEN),
            nn.GELU(),
            nn.Dropout(GATE_DROPOUT),
            nn.Linear(GATE_HIDDEN, kinds),
        )

    def select(self, standard: Tensor) -> Tensor:
        """What the gate reads, [N, features]: the early stages' part of the whole map's row."""
        return standard[:, -1, : self.features]

    def forward(self, standard: Tensor) -> Tensor:
        """Logits [N, kinds] of standardised statistics [N, grid * grid + 1, features]."""
        return self.read(self.select(standard))  # type: ignore[no-any-return]


class ExpertAbstractor(nn.Module):
    """Mixture of abstractors (Jacobs et al. 1991): a common one, and one for each kind that is set apart.

    People judge generated images by other things than photographs; one abstractor that learns both is worse
    at either. A gate weighs the abstractors' visual tokens.
    """

    def __init__(self, channels: Sequence[int], grid: int, width: int, experts: int) -> None:
        super().__init__()
        self.gate = KindGate(channels, 1 + experts)
        self.experts = nn.ModuleList(VisualAbstractor(channels, grid, width) for _ in range(experts))

    def calibrate(self, statistics: Tensor) -> None:
        """Calibrates every expert, see `VisualAbstractor.calibrate`."""
        for expert in self.experts:
            assert isinstance(expert, VisualAbstractor)
            expert.calibrate(statistics)

    def forward(self, common: VisualAbstractor, statistics: Tensor) -> Tensor:
        """Visual tokens [N, grid * grid + 1, D] of cell statistics [N, grid * grid + 1, features]."""
        shares = self.gate(common.standardise(statistics)).softmax(dim=1)
        tokens = torch.stack([reader(statistics) for reader in (common, *self.experts)], dim=1)
        mixed: Tensor = (shares[:, :, None, None] * tokens).sum(dim=1)
        return mixed
