"""Label tables of the paper's nine datasets, read from their folders as they are distributed.

Sources: the layouts and columns are those that public readers of the original downloads use. IQA-PyTorch
(chaofengc/IQA-PyTorch, scripts/process_*.py) for LIVE, LIVE Challenge, KonIQ-10k, KADID-10k, SPAQ, TID2013;
UNIQUE (zwx8981/UNIQUE, IQA_database/data_*.m) for BID and CSIQ, and for the deviations of LIVE; for AGIQA-3K
the database's own repository (lcysyzxdxc/AGIQA-3k-Database, data.csv). What is peculiar to a dataset stands
in its reader's docstring. Higher is better in every table.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compare2score.errors import LabelError, MissingExtraError
from compare2score.training.labels import STD_FRACTION, LabelTable

Row = tuple[str, float, float | None, str | None, str | None]
"""Image (relative to the dataset's folder), MOS, deviation, group, type."""

LIVE_FOLDERS = (("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174))
CSIQ_FILES = {
    "noise": "awgn/{}.AWGN.{}.png",
    "blur": "blur/{}.BLUR.{}.png",
    "contrast": "contrast/{}.contrast.{}.png",
    "fnoise": "fnoise/{}.fnoise.{}.png",
    "jpeg": "jpeg/{}.JPEG.{}.png",
    "jpeg 2000": "jpeg2000/{}.jpeg2000.{}.png",
}


def read_dataset(name: str, folder: str | Path) -> LabelTable:
    """Reads a dataset's table from the folder that its download unpacks to.

    name: a key of DATASETS. Raises LabelError if the name is unknown or the folder is not laid out like that
    dataset, MissingExtraError if its table is an Excel file and the reader for these is absent. Whether the
    images are there is not looked at.
    """
    if name not in DATASETS:
        raise LabelError(f"There is no dataset '{name}'; choose from {', '.join(DATASETS)}.")
    folder = Path(folder)
    try:
        rows = list(DATASETS[name](folder))
    except (LabelError, MissingExtraError):
        raise
    except Exception as error:
        # The readers of foreign formats raise whatever they please for a damaged file.
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise LabelError(
            f"{folder} is not laid out like {name} ({reason}); name the unpacked folder."
        ) from error
    if not rows:
        raise LabelError(f"{folder} has no rated images of {name}; name the unpacked folder.")
    return make_table(name, folder, rows)


def make_table(name: str, folder: Path, rows: Sequence[Row]) -> LabelTable:
    """The table of checked rows; image names are given the case that they have on the disk."""
    images, mos, std, group, kind = zip(*rows, strict=True)
    has_std = all(value is not None for value in std)
    opinions = np.array(mos, np.float64)
    deviations = np.array(std, np.float64) if has_std else np.full(len(rows), STD_FRACTION * np.ptp(opinions))
    if not (np.isfinite(opinions).all() and np.isfinite(deviations).all() and (deviations >= 0).all()):
        raise LabelError(f"{folder} has an opinion of {name} that is no number; fetch the dataset again.")
    if len(set(images)) < len(images):
        raise LabelError(f"{folder} rates an image of {name} twice; fetch the dataset again.")
    on_disk: dict[str, dict[str, str]] = {}
    return LabelTable(
        name=name,
        images=tuple(as_on_disk(folder, image, on_disk) for image in images),
        mos=opinions,
        std=deviations,
        has_std=has_std,
        split=None,
        group=None if None in group else tuple(map(str, group)),
        root=folder,
        more={} if None in kind else {"type": tuple(map(str, kind))},
    )


def as_on_disk(folder: Path, image: str, known: dict[str, dict[str, str]]) -> str:
    """The image's path with its name's case as the disk has it: TID2013's list and files differ in case."""
    parent, _, name = image.rpartition("/")
    if parent not in known:
        below = folder / parent
        files = below.iterdir() if below.is_dir() else ()
        known[parent] = {file.name.casefold(): file.name for file in files}
    found = known[parent].get(name.casefold(), name)
    return f"{parent}/{found}" if parent else found


def bid(folder: Path) -> Iterable[Row]:
    """DatabaseGrades.xls: image number, mean grade, from the fourth column on one grade a subject.

    Images are ImageDatabase/DatabaseImage0001.JPG, ... or lie beside the table; 586 of them. The deviation is
    that of the grades (n - 1), as in UNIQUE's data_BID.m.
    """
    below = "ImageDatabase/" if (folder / "ImageDatabase").is_dir() else ""
    for row in sheet(folder, "DatabaseGrades")[1:]:
        if row and number(row[0]) is not None and number(row[1]) is not None:
            grades = [grade for grade in map(number, row[3:]) if grade is not None]
            std = float(np.std(grades, ddof=1)) if len(grades) > 1 else None
            yield f"{below}DatabaseImage{int(float(row[0])):04d}.JPG", float(row[1]), std, None, None


def live(folder: Path) -> Iterable[Row]:
    """LIVE release 2: dmos_realigned.mat (dmos_new, dmos_std, orgs) and refnames_all.mat, 982 entries.

    The entries are those of jp2k, jpeg, wn, gblur and fastfading in this order, image n of a folder being
    img<n>.bmp; where orgs is 1 it is an undistorted reference and left out, 779 remain. DMOS is lower for
    better images; the MOS is the largest DMOS minus it, as in UNIQUE's data_live.m.
    """
    realigned = mat(folder / "dmos_realigned.mat")
    names = [str(np.ravel(name)[0]) for name in np.ravel(mat(folder / "refnames_all.mat")["refnames_all"])]
    dmos, std, undistorted = (np.ravel(realigned[key]) for key in ("dmos_new", "dmos_std", "orgs"))
    images = [(kind, f"{kind}/img{n + 1}.bmp") for kind, count in LIVE_FOLDERS for n in range(count)]
    kept = [place for place, original in enumerate(undistorted) if not original]
    if not len(images) == len(names) == len(dmos) == len(std) == len(undistorted):
        raise LabelError(f"{folder} rates {len(dmos)} images, LIVE has {len(images)}; use release 2.")
    worst = max(float(dmos[place]) for place in kept)
    for place in kept:
        kind, image = images[place]
        yield image, worst - float(dmos[place]), float(std[place]), names[place], kind


def live_challenge(folder: Path) -> Iterable[Row]:
    """ChallengeDB_release: AllImages, AllMOS and AllStdDev_release.mat in Data, pictures in Images.

    1,169 entries, of which the first seven (t1.bmp, ...) only trained the subjects (its README) and are
    left out.
    """
    data = {key: np.ravel(mat(folder / "Data" / f"{key}.mat")[key]) for key in LIVE_CHALLENGE_KEYS}
    names = [str(np.ravel(name)[0]) for name in data["AllImages_release"]]
    columns = zip(names, data["AllMOS_release"], data["AllStdDev_release"], strict=True)
    for name, mos, std in list(columns)[7:]:
        yield f"Images/{name}", float(mos), float(std), None, None


LIVE_CHALLENGE_KEYS = ("AllImages_release", "AllMOS_release", "AllStdDev_release")


def koniq10k(folder: Path) -> Iterable[Row]:
    """koniq10k_scores_and_distributions.csv: image_name, MOS and SD on the five-point scale.

    Images in 1024x768, or in 512x384 where only the small version was fetched.
    """
    below = "512x384" if not (folder / "1024x768").is_dir() and (folder / "512x384").is_dir() else "1024x768"
    for row in table(folder / "koniq10k_scores_and_distributions.csv"):
        yield f"{below}/{row['image_name']}", float(row["MOS"]), float(row["SD"]), None, None


def kadid10k(folder: Path) -> Iterable[Row]:
    """dmos.csv: dist_img, ref_img, dmos, var; images in images.

    For all its name, dmos is higher for better images. The column var holds standard deviations: with them
    the sums of squares of the 30 ratings come out whole, with variances they would not. The type is the
    distortion's number, 01-25, from I<reference>_<type>_<level>.png.
    """
    for row in table(folder / "dmos.csv"):
        image = row["dist_img"]
        yield f"images/{image}", float(row["dmos"]), float(row["var"]), row["ref_img"], image.split("_")[1]


def csiq(folder: Path) -> Iterable[Row]:
    """csiq.DMOS.xlsx, sheet all_by_image: image, dst_type, dst_lev, dmos_std, dmos below some lines of title.

    Images in dst_imgs/<type>/<image>.<TYPE>.<level>.png, 866. DMOS is 0-1, lower for better images; the MOS
    is 1 minus it, as in UNIQUE's data_csiq.m.
    """
    rows = sheet(folder, "csiq.DMOS", "all_by_image")
    at = next(place for place, row in enumerate(rows) if "image" in row and "dmos" in row)
    for values in rows[at + 1 :]:
        row = dict(zip(rows[at], values, strict=False))
        if row["image"] in (None, ""):
            continue
        # Spreadsheets keep the image called 1600 as a number.
        image = str(row["image"]).removesuffix(".0")
        file = CSIQ_FILES[row["dst_type"]].format(image, int(float(row["dst_lev"])))
        yield f"dst_imgs/{file}", 1 - float(row["dmos"]), float(row["dmos_std"]), image, row["dst_type"]


def spaq(folder: Path) -> Iterable[Row]:
    """Annotations/MOS and Image attribute scores.xlsx: "Image name", "MOS" (0-100), no deviation.

    Images in TestImage, 11,125.
    """
    rows = sheet(folder / "Annotations", "MOS and Image attribute scores")
    image, mos = (list(rows[0]).index(title) for title in ("Image name", "MOS"))
    for row in rows[1:]:
        if row[image] not in (None, ""):
            yield f"TestImage/{row[image]}", float(row[mos]), None, None, None


def tid2013(folder: Path) -> Iterable[Row]:
    """mos_with_names.txt ("5.51429 I01_01_1.bmp") and mos_std.txt, line by line; images in distorted_images.

    The reference and the distortion's number, 01-24, are in the name, I<reference>_<type>_<level>.bmp, 3,000
    of them. Upper and lower case differ between list and files.
    """
    named = (folder / "mos_with_names.txt").read_text(encoding="utf-8").split()
    deviations = (folder / "mos_std.txt").read_text(encoding="utf-8").split()
    for mos, name, std in zip(named[::2], named[1::2], deviations, strict=True):
        reference, kind, _ = name.upper().split("_")
        yield f"distorted_images/{name}", float(mos), float(std), reference, kind


def agiqa3k(folder: Path) -> Iterable[Row]:
    """data.csv: name, prompt, mos_quality, std_quality (the alignment with the prompt is another column).

    Images beside it, or in a folder AGIQA-3K or images. The group is the prompt, the type the generator:
    the name without its number.
    """
    below = next((f"{name}/" for name in ("AGIQA-3K", "images") if (folder / name).is_dir()), "")
    for row in table(folder / "data.csv"):
        name, std = row["name"], float(row["std_quality"])
        yield f"{below}{name}", float(row["mos_quality"]), std, row["prompt"], name.rpartition("_")[0]


DATASETS: Mapping[str, Callable[[Path], Iterable[Row]]] = {
    "bid": bid,
    "live": live,
    "livec": live_challenge,
    "koniq10k": koniq10k,
    "kadid10k": kadid10k,
    "csiq": csiq,
    "spaq": spaq,
    "tid2013": tid2013,
    "agiqa3k": agiqa3k,
}


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a csv file, by column."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def mat(path: Path) -> dict[str, NDArray[Any]]:
    """Variables of a MATLAB file."""
    # Imported here: of nine datasets two need it.
    from scipy.io import loadmat

    return dict(loadmat(path))


def number(cell: Any) -> float | None:
    """A cell's number, None for an empty cell or text."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def sheet(folder: Path, stem: str, name: str | None = None) -> list[tuple[Any, ...]]:
    """Rows of a sheet (by default the first) of stem.xlsx or stem.xls, or of stem.csv saved from it.

    Raises LabelError if there is none of them, MissingExtraError without a reader of Excel files.
    """
    files = [folder / f"{stem}{suffix}" for suffix in (".csv", ".xlsx", ".xls")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise LabelError(f"{folder} has no {stem}.xlsx, .xls or .csv; name the unpacked folder.")
    if file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as text:
            return [tuple(row) for row in csv.reader(text, strict=True)]
    try:
        if file.suffix == ".xls":
            import xlrd

            with xlrd.open_workbook(file) as old:
                page = old.sheet_by_name(name) if name else old.sheet_by_index(0)
                return [tuple(page.row_values(row)) for row in range(page.nrows)]
        import openpyxl
    except ModuleNotFoundError as error:
        raise MissingExtraError("eval", f"Reading {file.name}") from error
    book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    try:
        return list((book[name] if name else book.worksheets[0]).iter_rows(values_only=True))
    finally:
        book.close()
