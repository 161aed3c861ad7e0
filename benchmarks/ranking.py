"""Ranking within scenes: members compared with each other, against scoring by anchors alone.

    python -m compare2score.benchmarks.ranking --data DIR --data DIR

Each --data folder holds images and a `labels.csv` with split and group columns; a group is a scene (images of
one prompt, near-duplicates of one photograph).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

from compare2score import Scorer
from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.comparison import symmetric_preference_matrix
from compare2score.errors import ImageError, LabelError
from compare2score.link import Array
from compare2score.pipelines.evaluate import image_paths
from compare2score.pipelines.ranking import Encoded, compare_images, encode_images, probability_above
from compare2score.thurstone import map_estimate
from compare2score.training.labels import LabelTable, read_labels

METHODS = ("anchors alone", "members alone", "rank")
RESAMPLES = 2000
BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def scenes(labels: LabelTable) -> list[list[int]]:
    """Rows of every group of two images or more, in the table's order. Raises LabelError without groups."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(labels.group or ()):
        rows.setdefault(name, []).append(row)
    found = [members for members in rows.values() if len(members) > 1]
    if not found:
        raise LabelError(f"{labels.name} has no group of two images or more; add a group column.")
    return found


def scene_outcome(scorer: Scorer, images: Sequence[Encoded], mos: Array) -> Array:
    """One row for every pair of a scene that people do not rate equally, [pairs, methods + 1].

    For each of METHODS 1 if it orders the pair as people do, 0.5 if it ties them, else 0; last, P(the image
    that people prefer is above the other) by the ranking's posterior.
    """
    tokens = np.stack([image.tokens for image in images])
    standing = compare_images(scorer, images)
    directed = scorer.preferences(tokens, scorer.backend.prefix(tokens))
    q = (
        np.array([score.q for score in scorer.score_tokens(tokens)]),
        map_estimate(symmetric_preference_matrix(directed), scorer.link).q,
        standing.q,
    )
    better, worse = np.nonzero(mos[:, None] > mos)
    right = [(np.sign(values[better] - values[worse]) + 1) / 2 for values in q]
    return np.stack([*right, probability_above(standing, better, worse)], axis=1)


def interval(outcomes: Sequence[Array]) -> list[float]:
    """Bootstrap interval of 95 % of rank's pair accuracy less the anchors', drawing whole scenes."""
    gained = np.array([[(rows[:, 2] - rows[:, 0]).sum(), len(rows)] for rows in outcomes])
    drawn = np.random.default_rng(0).integers(len(gained), size=(RESAMPLES, len(gained)))
    sums = gained[drawn].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    return [float(low), float(high)]


def calibration(sure: NDArray[np.float64]) -> list[dict[str, Any]]:
    """For pairs by how sure the ranking is: how many, its mean probability, the share people agree with.

    sure: P(the image that people prefer is above the other), [pairs].
    """
    stated, rows = np.maximum(sure, 1 - sure), []
    for low, high in pairwise(BINS):
        inside = (stated >= low) & ((stated < high) | (high == BINS[-1]))
        if inside.any():
            agreed = float((sure[inside] > 0.5).mean())
            mean = float(stated[inside].mean())
            rows.append(
                {"from": low, "to": high, "pairs": int(inside.sum()), "stated": mean, "agreed": agreed}
            )
    return rows


def measure(scorer: Scorer, labels: LabelTable, most: int | None) -> dict[str, Any]:
    """Pair accuracy within the first `most` scenes of a table. Raises the first ImageError."""
    groups, paths = list(islice(scenes(labels), most)), list(image_paths(labels))
    encoder = encode_images(scorer, (paths[row] for rows in groups for row in rows))
    outcomes = []
    for rows in track(groups, description=labels.name):
        images = []
        for result in islice(encoder, len(rows)):
            if isinstance(result, ImageError):
                raise result
            images.append(result)
        outcomes.append(scene_outcome(scorer, images, labels.mos[rows]))
    pairs = np.concatenate(outcomes)
    if not len(pairs):
        raise LabelError(
            f"People rate all images of a scene of {labels.name} alike; there is nothing to order."
        )
    return {
        "scenes": len(groups),
        "images": sum(map(len, groups)),
        "pairs": len(pairs),
        "accuracy": dict(zip(METHODS, pairs[:, : len(METHODS)].mean(axis=0).tolist(), strict=True)),
        "rank_less_anchors_95": interval(outcomes),
        "ordered_differently": int((pairs[:, 0] != pairs[:, 2]).sum()),
        "calibration": calibration(pairs[:, -1]),
    }


def main(
    data: Annotated[list[Path], typer.Option(help="Labelled folder; repeat for more.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; the embedded one by default.")] = None,
    split: Annotated[str, typer.Option(help="Rows to report on.")] = "test",
    groups: Annotated[int | None, typer.Option(help="No more than this many scenes of each table.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Measures pair accuracy within scenes and writes ranking.json.

    Of each table: how often each of METHODS orders two images of one scene as people do, the interval of the
    gain of ranking over anchors alone, the pairs that the two order differently, and how the ranking's
    probabilities compare with people's agreement.
    """
    scorer = Scorer(bundle, threads=threads)
    results = {
        "bundle": scorer.bundle.identity,
        "precision": scorer.bundle.manifest.precision,
        "split": split,
        "tables": {
            folder.name: measure(scorer, read_labels(folder / "labels.csv", split=split), groups)
            for folder in data
        },
    }
    print(write_record("ranking", results, out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
