"""The images that a command line names: files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass

from compare2score.errors import ImageError
from compare2score.pipelines.sources import SUFFIXES, Entry, images_below


@dataclass(frozen=True)
class Input:
    """One path to score, or one that is known not to be scorable."""

    path: str
    error: ImageError | None = None


def expand(names: Sequence[str]) -> list[Input]:
    """Lists the images that `names` stand for, in their order, each name's sorted by path.

    A folder stands for all files below it that have an image's suffix, but for hidden files and folders (a
    dot in front). A pattern (`*`, `?`, `[...]`; `**` for any folders between) stands for the files that it
    matches, unless something has just that name. Anything else stands for itself, whether it exists or not.
    A symbolic link inside a folder is not followed: a link to a file is listed with an error (`unsupported`).

    Raises ImageError (`not_found`) for a folder without images or a pattern without matches.
    """
    inputs: list[Input] = []
    for name in names:
        # os.path, because Path raises for what may not be looked into; that gets its error row instead.
        if os.path.isdir(name):  # noqa: PTH112
            found = [as_input(entry) for entry in images_below(name, follow_links=False)]
            if not found:
                raise ImageError(
                    "not_found", f"{name} holds no images ({' '.join(SUFFIXES)}); give another folder."
                )
        elif glob.has_magic(name) and not os.path.lexists(name):
            matches = glob.iglob(name, recursive=True)  # noqa: PTH207 (Path.glob refuses absolute patterns)
            found = [Input(path) for path in sorted(matches) if not os.path.isdir(path)]  # noqa: PTH112
            if not found:
                raise ImageError("not_found", f"No file matches {name}; check the pattern.")
        else:
            found = [Input(name)]
        inputs += found
    return inputs


def as_input(entry: Entry) -> Input:
    """An entry of a folder. Of links, another option is told of where a collection is filtered."""
    if entry.error is None:
        return Input(entry.path)
    code, text = entry.error
    if code == "unsupported":
        text = f"{entry.path} is a symbolic link; name it itself to score it."
    return Input(entry.path, ImageError(code, text))
