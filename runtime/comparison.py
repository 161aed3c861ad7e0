"""Soft comparison: level logits -> comparison probabilities -> preference matrix (arXiv 2405.19298, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def level_probabilities(level_logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Softmax of level logits [..., levels] divided by the temperature (100 in the published comparator)."""
    scaled = np.asarray(level_logits, dtype=np.float64) / temperature
    odds = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=-1, keepdims=True))


def comparison_probability(
    level_logits: ArrayLike, weights: Sequence[float], temperature: float
) -> NDArray[np.float64]:
    """P(second image preferred over first): the levels' softmax, weighted.

    Args:
        level_logits: [..., 5], from "inferior" to "superior".
        weights: what each level contributes, [5], in [0, 1].
        temperature: divides the logits before the softmax.

    Returns:
        [...] in [0, 1].
    """
    probability = level_probabilities(level_logits, temperature) @ np.asarray(weights, dtype=np.float64)
    # Rounding can lift a sum of several levels with weight 1 above 1, which no matrix of probabilities holds.
    return np.asarray(np.clip(probability, 0.0, 1.0))


def symmetric_preference_matrix(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Preference matrix of n images from all ordered comparisons among them.

    Args:
        probabilities: [n, n], entry (i, j) = P(i preferred over j) when j comes first and i second.

    Returns:
        [n, n] with both orders averaged, so that C_ij + C_ji = 1, and 0.5 on the diagonal.
    """
    second_wins = np.asarray(probabilities, dtype=np.float64)
    matrix = (second_wins + 1 - second_wins.T) / 2
    np.fill_diagonal(matrix, 0.5)
    return matrix


def votes(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Hard votes in place of comparison probabilities: a whole one for the preferred image, shared by equals.

    With them the preference matrix becomes the count matrix that the paper compares its soft one with.

    Args:
        probabilities: any shape, in [0, 1]; NaN where a comparison was not asked stays NaN.
    """
    return np.asarray((np.sign(np.asarray(probabilities, dtype=np.float64) - 0.5) + 1) / 2)


def extend_preference_matrix(anchor_matrix: ArrayLike, probabilities: ArrayLike) -> NDArray[np.float64]:
    """Adds the test image, last, to the anchors' preference matrix.

    Args:
        anchor_matrix: [n, n], entry (i, j) = P(anchor i preferred over anchor j).
        probabilities: [..., n], P(test image preferred over each anchor); NaN where that was not asked.

    Returns:
        [..., n + 1, n + 1]. What was not asked is 0 in both directions: no evidence, unlike 0.5.
    """
    row = np.asarray(probabilities, dtype=np.float64)
    anchors = np.asarray(anchor_matrix, dtype=np.float64)
    n = anchors.shape[-1]
    matrix = np.full((*row.shape[:-1], n + 1, n + 1), 0.5)
    matrix[..., :n, :n] = anchors
    asked = ~np.isnan(row)
    matrix[..., n, :n] = np.where(asked, row, 0.0)
    matrix[..., :n, n] = np.where(asked, 1 - row, 0.0)
    return matrix
