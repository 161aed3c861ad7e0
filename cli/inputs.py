"""The images that a command line names: files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compare2score.errors import ImageError
from compare2score.pipelines.sources import SUFFIXES


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
            found = sorted(images_below(name), key=lambda item: Path(item.path).parts)
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


def images_below(folder: str) -> Iterator[Input]:
    """Images in a folder and the folders in it, in no order; a folder that cannot be read, with its error."""
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.lower().endswith(SUFFIXES) or name.startswith("."):
                continue
            path = Path(parent, name)
            linked = ImageError("unsupported", f"{path} is a symbolic link; name it itself to score it.")
            yield Input(str(path), linked if path.is_symlink() else None)
    for error in unreadable:
        reason = f"{error.filename} cannot be read ({error.strerror}); check the folder's permissions."
        yield Input(str(error.filename), ImageError("io_error", reason))
