"""Test parts of a table: drawn at random without dividing a group, or as somebody published them."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compare2score.errors import LabelError
from compare2score.training.labels import LabelTable

TEST_SHARE = 0.2
"""Share of the images, or of the groups, in a test part, as in the paper's splits."""

Rows = NDArray[np.int64]


def random_parts(table: LabelTable, parts: int, seed: int = 0) -> list[Rows]:
    """Rows [n] of `parts` random test parts, each of TEST_SHARE of the table's groups or, without, images.

    As the published splits were made (zwx8981/UNIQUE, IQA_database/data_*.m): of datasets with references a
    fifth of these with all their images, of the others a fifth of the images. The parts are drawn one apart
    from the other, so that they overlap.

    Raises LabelError for parts < 1 or a table of fewer than five groups.
    """
    if parts < 1:
        raise LabelError(f"Cannot draw {parts} splits; ask for at least 1.")
    members = np.arange(len(table))
    if table.group is not None:
        members = np.unique(table.group, return_inverse=True)[1].reshape(-1)
    groups = int(members.max()) + 1
    if groups < round(1 / TEST_SHARE):
        raise LabelError(f"Label table '{table.name}' has {groups} groups; splits need 5 at least.")
    drawn = []
    for part in range(parts):
        order = np.random.default_rng([seed, part]).permutation(groups)
        test = order[: round(TEST_SHARE * groups)]
        drawn.append(np.flatnonzero(np.isin(members, test)))
    return drawn


def published_parts(table: LabelTable, folder: str | Path) -> list[Rows]:
    """Rows [n] of test parts kept as one folder a split, with a JSON file a dataset.

    The form is that of Q-Future/Compare2Score, playground/data/test_jsons: folders 1, 2, ..., in each a file
    of every dataset, a list of objects that name an image as `image` or `img_path`. Which file is this
    table's is seen by its images: the one that names most of them. Images are known by their names, and
    where the table has several of one name by the folder above them, too, so that the datasets' folders may
    be called otherwise. An image that only the file names is passed over: nothing can be said of it.

    Empty if no file names an image of the table. Raises LabelError if the folder holds no such files.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*/*.json"), key=lambda file: (len(file.parent.name), file))
    if not files:
        raise LabelError(f"{folder} holds no splits; name a folder with folders 1, 2, ... of JSON files.")
    depth = unique_depth(table.images)
    row_of = {tail(image, depth): row for row, image in enumerate(table.images)}
    parts: dict[Path, list[int]] = {}
    for file in files:
        names = {tail(name, depth) for name in read_names(file)}
        rows = sorted(row_of[name] for name in names & row_of.keys())
        if len(rows) > len(parts.get(file.parent, ())):
            parts[file.parent] = rows
    return [np.array(rows, np.int64) for rows in parts.values()]


def read_names(file: Path) -> list[str]:
    """The images that a published split's file names. Raises LabelError."""
    try:
        entries: Any = json.loads(file.read_text(encoding="utf-8"))
        return [str(entry.get("image") or entry["img_path"]) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabelError(f"{file} is not a list of objects with an image each; fetch it again.") from error


def unique_depth(images: tuple[str, ...]) -> int:
    """How many last parts of the paths tell all images apart."""
    depth = 1
    while len({tail(image, depth) for image in images}) < len(images) and depth < 32:
        depth += 1
    return depth


def tail(image: str, depth: int) -> tuple[str, ...]:
    """The last `depth` parts of a path, in lower case, as datasets spell names in more than one way."""
    return tuple(part.casefold() for part in PurePosixPath(image.replace("\\", "/")).parts[-depth:])
