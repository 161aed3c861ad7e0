"""The nine datasets, as made-up folders laid out like their downloads: names, signs, deviations, groups."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from compare2score.errors import LabelError, MissingExtraError
from compare2score.pipelines.datasets import DATASETS, read_dataset

KADID = Path(__file__).resolve().parents[2].parent / "shared" / "iqa" / "mos" / "kadid10k.csv"
GRADES = [
    ["Image Number", "Average Subjective Grade", "Number", *(f"Subject {n}" for n in range(1, 4))],
    [1, 4.5, 3, 4.0, 4.5, 5.0],
    [17, 1.25, 2, 1.0, "", 1.5],
]


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def write_xlsx(path, rows, name="Sheet1", before=()):
    openpyxl = pytest.importorskip("openpyxl")
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.active.title = "notes"
    if not before:
        book.remove(book.active)
    sheet = book.create_sheet(name)
    for row in rows:
        sheet.append(row)
    book.save(path)


def names_in_cells(names):
    cells = np.empty((1, len(names)), object)
    cells[0] = [np.array([name]) for name in names]
    return cells


def check_bid(table):
    assert table.images == ("ImageDatabase/DatabaseImage0001.JPG", "ImageDatabase/DatabaseImage0017.JPG")
    assert table.mos.tolist() == [4.5, 1.25]
    assert table.std == pytest.approx([0.5, np.sqrt(0.125)])
    assert table.has_std


def test_bid_from_the_old_workbook_of_its_download(tmp_path):
    xlwt = pytest.importorskip("xlwt")
    pytest.importorskip("xlrd")
    book = xlwt.Workbook()
    page = book.add_sheet("Plan1")
    for place, row in enumerate(GRADES):
        for column, cell in enumerate(row):
            page.write(place, column, cell)
    book.save(str(tmp_path / "DatabaseGrades.xls"))
    touch(tmp_path, "ImageDatabase/DatabaseImage0001.JPG")
    check_bid(read_dataset("bid", tmp_path))


@pytest.mark.parametrize("kind", ["xlsx", "csv"])
def test_bid_from_a_workbook_saved_anew(tmp_path, kind):
    write = write_xlsx if kind == "xlsx" else write_csv
    write(tmp_path / f"DatabaseGrades.{kind}", GRADES)
    touch(tmp_path, "ImageDatabase/DatabaseImage0001.JPG")
    check_bid(read_dataset("bid", tmp_path))


def write_live(folder, count=982):
    dmos, originals = np.linspace(0, 98.1, count), np.zeros(count)
    originals[[0, 227, count - 1]] = 1
    references = ["womanhat.bmp" if n % 2 else "caps.bmp" for n in range(count)]
    values = {"dmos_new": dmos[None], "dmos_std": dmos[None] / 10 + 1, "orgs": originals[None]}
    savemat(folder / "dmos_realigned.mat", values)
    savemat(folder / "refnames_all.mat", {"refnames_all": names_in_cells(references)})
    return dmos


def test_live_without_its_references_and_with_dmos_turned_round(tmp_path):
    dmos = write_live(tmp_path)
    table = read_dataset("live", tmp_path)
    assert len(table) == 982 - 3
    assert (table.images[0], table.images[225], table.images[226]) == (
        "jp2k/img2.bmp",
        "jp2k/img227.bmp",
        "jpeg/img2.bmp",
    )
    assert table.images[-1] == "fastfading/img173.bmp"
    place = table.images.index("gblur/img5.bmp")
    entry = 227 + 233 + 174 + 4
    # The worst image that is left is the last but one.
    assert table.mos[place] == pytest.approx(dmos[980] - dmos[entry])
    assert table.std[place] == pytest.approx(dmos[entry] / 10 + 1)
    assert (table.group[place], table.more["type"][place]) == ("caps.bmp", "gblur")
    assert table.mos[-1] == 0


def test_live_of_another_release_is_refused(tmp_path):
    write_live(tmp_path, 400)
    with pytest.raises(LabelError, match="rates 400 images, LIVE has 982"):
        read_dataset("live", tmp_path)


def test_live_challenge_without_the_subjects_training_images(tmp_path):
    (tmp_path / "Data").mkdir()
    names = [*(f"t{n}.bmp" for n in range(1, 8)), "3.bmp", "1024.JPG"]
    cells = names_in_cells(names).T
    savemat(tmp_path / "Data" / "AllImages_release.mat", {"AllImages_release": cells})
    savemat(tmp_path / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.arange(9.0)[None]})
    savemat(tmp_path / "Data" / "AllStdDev_release.mat", {"AllStdDev_release": np.arange(9.0)[None] + 20})
    table = read_dataset("livec", tmp_path)
    assert table.images == ("Images/3.bmp", "Images/1024.JPG")
    assert (table.mos.tolist(), table.std.tolist()) == ([7, 8], [27, 28])


@pytest.mark.parametrize("size", ["1024x768", "512x384"])
def test_koniq_on_its_five_point_scale(tmp_path, size):
    header = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore"]
    rows = [
        header,
        ["9.jpg", 0, 0, 25, 73, 7, 105, 3.83, 0.53, 77.4],
        ["10.jpg", 1, 2, 3, 4, 5, 15, 3, 1, 50],
    ]
    write_csv(tmp_path / "koniq10k_scores_and_distributions.csv", rows)
    touch(tmp_path, f"{size}/9.jpg")
    table = read_dataset("koniq10k", tmp_path)
    assert table.images == (f"{size}/9.jpg", f"{size}/10.jpg")
    assert (table.mos.tolist(), table.std.tolist()) == ([3.83, 3], [0.53, 1])
    assert (table.group, table.split, dict(table.more)) == (None, None, {})


def test_kadid_with_its_references_and_distortions(tmp_path):
    rows = [["dist_img", "ref_img", "dmos", "var"], ["I01_09_05.png", "I01.png", 1.2, 0.4]]
    write_csv(tmp_path / "dmos.csv", [*rows, ["I81_25_01.png", "I81.png", 4.57, 0.496]])
    table = read_dataset("kadid10k", tmp_path)
    assert table.images == ("images/I01_09_05.png", "images/I81_25_01.png")
    assert (table.mos.tolist(), table.std.tolist()) == ([1.2, 4.57], [0.4, 0.496])
    assert (table.group, table.more["type"]) == (("I01.png", "I81.png"), ("09", "25"))


@pytest.mark.skipif(not KADID.exists(), reason="needs the shared label tables")
def test_what_kadid_calls_var_is_a_deviation():
    with KADID.open(encoding="utf-8") as file:
        rows = [(float(row["mos"]), float(row["std"])) for row in csv.DictReader(file)]
    mos, var = np.array(rows).T
    mean = np.round(mos * 30) / 30

    def from_whole(variance):
        """Mean distance from a whole number of the sum of squares of 30 ratings; by chance 1/4."""
        squares = 30 * (variance + mean**2)
        return np.abs(squares - np.round(squares)).mean()

    assert from_whole(var**2) < 0.05
    assert from_whole(var) > 0.2


def test_csiq_below_its_title_and_with_dmos_turned_round(tmp_path):
    blank = [None] * 9
    header = [None, None, None, "image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]
    rows = [
        blank,
        [None, "CSIQ", *blank[2:]],
        blank,
        header,
        [None, None, None, 1600, 1, "noise", 1, 0.061, 0.062],
        [None, None, None, "aerial_city", 3, "jpeg 2000", 4, 0.1, 0.75],
        [None, None, None, "woman", 6, "contrast", 3, 0.05, 0.5],
        blank,
    ]
    write_xlsx(tmp_path / "csiq.DMOS.xlsx", rows, "all_by_image", before=("notes",))
    table = read_dataset("csiq", tmp_path)
    assert table.images == (
        "dst_imgs/awgn/1600.AWGN.1.png",
        "dst_imgs/jpeg2000/aerial_city.jpeg2000.4.png",
        "dst_imgs/contrast/woman.contrast.3.png",
    )
    assert table.mos == pytest.approx([0.938, 0.25, 0.5])
    assert table.std.tolist() == [0.061, 0.1, 0.05]
    assert table.group == ("1600", "aerial_city", "woman")
    assert table.more["type"] == ("noise", "jpeg 2000", "contrast")


def test_spaq_which_states_no_deviation(tmp_path):
    rows = [["Image name", "MOS", "Brightness"], ["00001.jpg", 48.86, 50], ["00002.jpg", 62.5, 60]]
    write_xlsx(tmp_path / "Annotations" / "MOS and Image attribute scores.xlsx", rows)
    table = read_dataset("spaq", tmp_path)
    assert table.images == ("TestImage/00001.jpg", "TestImage/00002.jpg")
    assert table.mos.tolist() == [48.86, 62.5]
    assert not table.has_std
    assert table.std == pytest.approx(0.15 * (62.5 - 48.86))


def test_tid2013_whose_list_and_files_differ_in_case(tmp_path):
    (tmp_path / "mos_with_names.txt").write_text(
        "5.51429 I01_01_1.bmp\n5.56757 i01_01_2.bmp\n2 i25_24_5.bmp\n"
    )
    (tmp_path / "mos_std.txt").write_text("0.13013\n0.1\n0.2\n")
    touch(tmp_path, "distorted_images/I01_01_1.BMP", "distorted_images/i01_01_2.bmp")
    table = read_dataset("tid2013", tmp_path)
    assert table.images == (
        "distorted_images/I01_01_1.BMP",
        "distorted_images/i01_01_2.bmp",
        "distorted_images/i25_24_5.bmp",
    )
    assert (table.mos.tolist(), table.std.tolist()) == ([5.51429, 5.56757, 2], [0.13013, 0.1, 0.2])
    assert (table.group, table.more["type"]) == (("I01", "I01", "I25"), ("01", "01", "24"))


@pytest.mark.parametrize("below", ["AGIQA-3K/", "images/", ""])
def test_agiqa_by_quality_not_by_alignment(tmp_path, below):
    columns = [
        "name",
        "prompt",
        "adj1",
        "adj2",
        "style",
        "mos_quality",
        "std_quality",
        "mos_align",
        "std_align",
    ]
    row = ["sd1.5_highcorr_215.jpg", "a cat, anime style", "", "", "anime style", 2.26, 0.66, 4.0, 0.1]
    write_csv(tmp_path / "data.csv", [columns, row])
    touch(tmp_path, f"{below}sd1.5_highcorr_215.jpg")
    table = read_dataset("agiqa3k", tmp_path)
    assert table.images == (f"{below}sd1.5_highcorr_215.jpg",)
    assert (table.mos.tolist(), table.std.tolist()) == ([2.26], [0.66])
    assert (table.group, table.more["type"]) == (("a cat, anime style",), ("sd1.5_highcorr",))


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_folder_of_something_else_is_one_sentence(tmp_path, name):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(LabelError) as raised:
            read_dataset(name, folder)
        assert str(folder) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("live", "dmos_realigned.mat"),
        ("livec", "Data/AllImages_release.mat"),
        ("csiq", "csiq.DMOS.xlsx"),
        ("bid", "DatabaseGrades.xls"),
        ("kadid10k", "dmos.csv"),
        ("tid2013", "mos_with_names.txt"),
    ],
)
def test_a_damaged_table_is_one_sentence(tmp_path, name, file):
    pytest.importorskip("openpyxl")
    pytest.importorskip("xlrd")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"MATLAB 5.0 \x00\x01\xff no such thing" * 9)
    with pytest.raises(LabelError, match="name the unpacked folder"):
        read_dataset(name, tmp_path)


def test_without_a_reader_of_excel_files_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "csiq.DMOS.xlsx").touch()
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtraError, match=r"compare2score-edge\[eval\]"):
        read_dataset("csiq", tmp_path)


def test_an_unknown_dataset_is_told_the_known_ones(tmp_path):
    with pytest.raises(LabelError, match=r"no dataset 'ava'.*bid, live, livec, koniq10k"):
        read_dataset("ava", tmp_path)


def test_an_opinion_that_is_no_number_is_refused(tmp_path):
    rows = [["dist_img", "ref_img", "dmos", "var"], ["I01_09_05.png", "I01.png", "nan", 0.4]]
    write_csv(tmp_path / "dmos.csv", rows)
    with pytest.raises(LabelError, match="no number"):
        read_dataset("kadid10k", tmp_path)
