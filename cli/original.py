"""A torch checkpoint in a bundle's place: what exported comparators are compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compare2score.cli.extra import extra

if TYPE_CHECKING:
    from compare2score import Scorer
    from compare2score.bundle import Anchors

Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", metavar="DIR", help="A comparator's torch checkpoint, in the place of a bundle."
    ),
]
AnchorImages = Annotated[
    Path | None,
    typer.Option(
        "--anchor-images",
        metavar="LABELS_OR_FOLDER",
        help="The checkpoint's anchors: a label table to choose five from, or a folder of images.",
    ),
]


def open_original(checkpoint: Path, source: Anchors | Path, **options: Any) -> Scorer:
    """A scorer that runs a checkpoint in torch.

    source: of the anchors: where their images are, see `cli.export.anchor_images`; or a bundle's own, whose
        visual tokens and preference matrix are kept while their prefixes are made anew.
    options: of `Scorer`.

    Raises CheckpointError, MissingExtraError, LabelError or ImageError.
    """
    from compare2score import Scorer
    from compare2score.anchors.precompute import precompute_anchors
    from compare2score.cli.export import anchor_images

    images = anchor_images(source) if isinstance(source, Path) else []
    with extra("export", "Scoring with torch"):
        from compare2score.comparator.checkpoint import load_comparator
        from compare2score.comparator.torch_backend import TorchBackend

        backend = TorchBackend(load_comparator(checkpoint))
    bundle = replace(backend.bundle, path=checkpoint)
    if isinstance(source, Path):
        kept = precompute_anchors(bundle, images, backend)
    else:
        kept = replace(source, prefix=backend.prefix(source.visual_tokens))
    return Scorer(replace(bundle, anchors=kept), backend=backend, **options)
