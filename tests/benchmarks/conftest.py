"""The toy bundle, photographs made from seeds, small comparators exported in float32; to read only."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

# Tests are no package, so that what two folders share has to be found on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy_bundle import bundle  # noqa: F401


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Paths of five anchors and of a test image, 96 px."""
    from compare2score.benchmarks.photographs import write_anchors, write_photograph

    folder = tmp_path_factory.mktemp("photos")
    return write_anchors(folder, 96), write_photograph(folder / "test.jpg", 5, 96)


@pytest.fixture(scope="session")
def exported(tiny_comparator, photos, tmp_path_factory):
    """exported(form) -> a comparator that tells pictures apart, and its float32 bundle; made once a form."""
    import torch

    from compare2score.export.exporter import export_bundle
    from compare2score.image import preprocess

    made = {}

    def make(form):
        if form not in made:
            comparator = tiny_comparator(form).requires_grad_(False)
            images = np.stack([preprocess(path, comparator.config.image) for path in photos[0]])
            seen = comparator.run_frozen(torch.from_numpy(images), 2)
            comparator.abstractor.calibrate(comparator.statistics_from(*seen, 2))
            comparator.decoder.level_head.weight.mul_(4)
            folder = tmp_path_factory.mktemp(form)
            made[form] = comparator, export_bundle(comparator, folder / "bundle", "fp32", photos[0]).bundle
        return made[form]

    return make
