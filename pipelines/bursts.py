"""Bursts: photographs of one scene, found by the time between them or by how alike they look."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GAP = 2.0
"""Seconds between two photographs of one burst."""
DISTANCE = 8
"""Bits of 64 that two photographs of one burst differ in: nearly all of BIQ2021's near-duplicates lie within
it, hardly any two other photographs do."""

_EXIF, _ORIGINAL, _ORIGINAL_FRACTION = 0x8769, 0x9003, 0x9291
_DIGITIZED, _DIGITIZED_FRACTION = 0x9004, 0x9292


def capture_time(path: str | Path) -> datetime | None:
    """When a photograph was taken, by its EXIF data (original time, else digitised), on the camera's clock.

    None where the file does not say, says nonsense or cannot be read. The file's own times are not asked:
    copying changes them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("JPEG", "PNG", "WEBP", "TIFF")) as image:
                exif: Any = image.getexif().get_ifd(_EXIF)
        for time, fraction in ((_ORIGINAL, _ORIGINAL_FRACTION), (_DIGITIZED, _DIGITIZED_FRACTION)):
            if taken := read_time(exif.get(time), exif.get(fraction)):
                return taken
    # Whatever a stranger's file makes of the parser, the photograph just has no time.
    except Exception:
        pass
    return None


def read_time(time: object, fraction: object) -> datetime | None:
    """EXIF's "2026:11:22 10:00:00" and fraction of a second "25" (0.25 s); None if the time is none."""
    try:
        taken = datetime.strptime(str(time).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    digits = str(fraction).strip("\0 ")
    return taken + timedelta(seconds=float(f"0.{digits}")) if digits.isdecimal() else taken


def group_by_time(times: Sequence[datetime | None], gap: float = GAP) -> list[list[int]]:
    """Groups of places in `times`: one that follows another by at most `gap` seconds shares its group.

    What has no time is a group of its own. Groups, and the places in one, are in the order of `times`.
    """
    timed = sorted((time, place) for place, time in enumerate(times) if time is not None)
    group = list(range(len(times)))
    for (before, one), (after, other) in pairwise(timed):
        if (after - before).total_seconds() <= gap:
            group[other] = group[one]
    return gathered(group)


def difference_hash(pixels: NDArray[np.uint8]) -> int:
    """64 bits of an image, uint8 [H, W, 3]: whether, in grey and 9 x 8 pixels, each is darker than the next.

    Brightness, contrast, size and compression hardly change it. The bits are in the order of rows, the first
    one highest; equal to `dhash` of the imagehash package, which would bring two more packages for this.
    """
    gray = Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.LANCZOS)
    small = np.asarray(gray)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def group_by_hash(hashes: Sequence[int], distance: int = DISTANCE) -> list[list[int]]:
    """Groups of places in `hashes`: those that differ in at most `distance` bits share a group.

    So do those that others between them connect: a slow pan is one burst. Ordered as by `group_by_time`.
    """
    bits = np.unpackbits(np.array(hashes, dtype=">u8").view(np.uint8)).reshape(-1, 64).astype(np.float32)
    ones = bits.sum(axis=1)
    group = np.arange(len(hashes))
    for place in range(len(hashes)):
        # In bits, |a - b| is a + b - 2ab.
        apart = ones[:place] + ones[place] - 2 * (bits[:place] @ bits[place])
        for joined in np.unique(group[:place][apart <= distance]):
            group[group == joined] = place
    return gathered(group.tolist())


def gathered(group: Sequence[int]) -> list[list[int]]:
    """Places by their group's number, both in the order of first appearance."""
    members: dict[int, list[int]] = {}
    for place, number in enumerate(group):
        members.setdefault(number, []).append(place)
    return list(members.values())
