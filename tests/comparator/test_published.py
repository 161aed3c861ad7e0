"""Facts of the published inference against the golden data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compare2score.comparator.published import ANCHOR_MATRIX

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "map" / "map_golden.npz"


def test_the_anchor_matrix_is_the_references():
    np.testing.assert_array_equal(ANCHOR_MATRIX, np.load(GOLDEN)["anchor_matrix"])
