"""Regressors on the frozen vision encoder: what plain features already give, on the same rows."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from compare2score.comparator.efficientnet_lite import (
    LITE2_STAGES,
    LITE2_STEM_CHANNELS,
    EfficientNetLite,
    load_imagenet_weights,
)
from compare2score.comparator.nano import default_image_spec
from compare2score.decode import ImageSource
from compare2score.image import preprocess
from compare2score.pipelines.correlation import srcc
from compare2score.training.pretrained import ENCODER_PACKAGE, package_file

Array = NDArray[np.float64]
Labelled = tuple[Array, Array]

SIZE = 512
REGRESSORS: dict[str, list[Any]] = {
    "ridge": [Ridge(alpha=alpha) for alpha in 10.0 ** np.arange(1, 6)],
    "kernel ridge": [
        KernelRidge(kernel="rbf", alpha=alpha, gamma=gamma)
        for alpha in (0.01, 0.03, 0.1, 0.3)
        for gamma in (3e-5, 1e-4, 3e-4, 1e-3)
    ],
}


def fitted(name: str, train: Labelled, validation: Labelled) -> Callable[[Array], Array]:
    """A regressor from features [N, F] to MOS [N], with the settings chosen by validation SRCC.

    The one chosen is fitted again on train and validation rows together.
    """
    models = [make_pipeline(StandardScaler(), clone(model)) for model in REGRESSORS[name]]
    center = train[1].mean()  # kernel ridge has no intercept
    fits = [
        srcc(model.fit(train[0], train[1] - center).predict(validation[0]), validation[1]) for model in models
    ]
    best = models[int(np.argmax(fits))]
    every = [np.concatenate(parts) for parts in zip(train, validation, strict=True)]
    best.fit(every[0], every[1] - center)
    return lambda features: np.asarray(best.predict(features) + center)


@functools.cache
def imagenet_encoder() -> EfficientNetLite:
    """The encoder as it is before any training here."""
    encoder = EfficientNetLite(LITE2_STEM_CHANNELS, LITE2_STAGES).eval()
    weights = torch.load(package_file(ENCODER_PACKAGE, "models/*.pth"), weights_only=True)
    load_imagenet_weights(encoder, weights)
    return encoder


@torch.inference_mode()
def frozen_features(images: Iterable[ImageSource]) -> Array:
    """Mean and standard deviation of every channel of the stem and all stages, [N, 1776], at 512 pixels."""
    encoder, spec, rows = imagenet_encoder(), default_image_spec(SIZE), []
    for image in images:
        stem = encoder.run_stem(torch.from_numpy(preprocess(image, spec)[None]))
        maps = [stem, *encoder.continue_from(stem, 0)]
        moments = [(m.mean(dim=(2, 3)), m.std(dim=(2, 3), correction=0)) for m in maps]
        rows.append(torch.cat([torch.cat(pair, dim=1) for pair in moments], dim=1)[0].double().numpy())
    return np.stack(rows)


def kept_features(images: list[Path], cache: Path) -> Array:
    """`frozen_features` of files, kept in `cache` by their list."""
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("\n".join(map(str, images)).encode()).hexdigest()[:16]
    file = cache / f"features-{key}.npy"
    if not file.exists():
        np.save(file, frozen_features(track(images, description="Encoder features")))
    return np.asarray(np.load(file))
