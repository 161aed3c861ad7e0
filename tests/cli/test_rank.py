"""`c2s rank`: images in order, bursts apart, and the best of each kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from toy_bundle import gray_image

from compare2score.pipelines import ranking

COLUMNS = ["path", "group", "rank", "value", "q", "std", "beats_next", "comparisons"]


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def order(result):
    return [(row["group"], row["rank"], Path(row["path"]).name) for row in rows(result.stdout)]


def shot(path, gray, seconds, crossed=False):
    """A photograph taken so many seconds after noon: light to the left, or to the right."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = f"2026:11:22 12:00:{seconds:02}"
    picture = Image.linear_gradient("L").rotate(-90 if crossed else 90).convert("RGB")
    path.parent.mkdir(exist_ok=True)
    picture.point(lambda value: value // 4 + gray).save(path, exif=exif.tobytes(), quality=95)
    return path


@pytest.fixture
def bursts(tmp_path):
    """Two bursts of two and one shot alone: b and c, a and d, e; the brighter of each is the later one."""
    shot(tmp_path / "bursts" / "b.jpg", 40, 10)
    shot(tmp_path / "bursts" / "c.jpg", 80, 11)
    shot(tmp_path / "bursts" / "a.jpg", 100, 30, crossed=True)
    shot(tmp_path / "bursts" / "d.jpg", 140, 32, crossed=True)
    gray_image(tmp_path / "bursts" / "e.png", 120)
    return tmp_path / "bursts"


def test_a_folder_is_ranked_as_json_lines_the_best_first(c2s, bundle, photos):
    result = c2s("rank", photos, "--bundle", bundle, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert order(result) == [(1, 1, "d.png"), (1, 2, "c.png"), (1, 3, "b.png"), (1, 4, "a.png")]
    found = rows(result.stdout)
    assert [list(row) for row in found] == [COLUMNS] * 4
    assert all(0.5 < row["beats_next"] < 1 for row in found[:-1])
    assert found[-1]["beats_next"] is None
    assert {row["comparisons"] for row in found} == {3}


def test_an_image_alone_has_its_score(c2s, bundle, photos):
    (ranked,) = rows(c2s("rank", photos / "b.png", "--bundle", bundle, "--json").stdout)
    (scored,) = rows(c2s("score", photos / "b.png", "--bundle", bundle, "--json").stdout)
    for name in ("value", "q", "std"):
        assert ranked[name] == pytest.approx(scored[name], abs=1e-9)


def test_the_table_shows_the_same(c2s, bundle, photos):
    result = c2s("rank", photos, "--bundle", bundle, "--top", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    heading, *lines = result.stdout.splitlines()
    assert heading.split() == ["path", "rank", "score", "q", "std", "above", "next"]
    best, second = rows(c2s("rank", photos, "--bundle", bundle, "--json").stdout)[:2]
    for line, row in zip(lines, (best, second), strict=True):
        numbers = [f"{row['value']:.2f}", f"{row['q']:+.2f}", f"{row['std']:.2f}", f"{row['beats_next']:.2f}"]
        assert line.split() == [row["path"], str(row["rank"]), *numbers]


def test_an_unreadable_image_costs_its_own_row_and_no_other_its_rank(c2s, bundle, photos):
    expected = c2s("rank", photos, "--bundle", bundle, "--json").stdout
    (photos / "bb.png").write_text("not an image")
    result = c2s("rank", photos / "gone.png", photos, "--bundle", bundle, "--json")
    assert result.exit_code == 1
    assert result.stderr == "2 of 6 images could not be ranked; their rows say why.\n"
    assert result.stdout.startswith(expected)
    failed = rows(result.stdout)[4:]
    assert [(row["path"], row["error"]["code"]) for row in failed] == [
        (str(photos / "gone.png"), "not_found"),
        (str(photos / "bb.png"), "not_an_image"),
    ]
    table = c2s("rank", photos / "gone.png", photos, "--bundle", bundle).stdout.splitlines()
    assert len(table) == 7
    assert table[-2].split()[:7] == [str(photos / "gone.png"), *"-----", "not_found:"]


def test_none_readable_is_errors_alone(c2s, bundle, tmp_path):
    result = c2s("rank", tmp_path / "a.png", tmp_path / "b.png", "--bundle", bundle, "--json")
    assert result.exit_code == 1
    assert [row["error"]["code"] for row in rows(result.stdout)] == ["not_found"] * 2


def test_bursts_by_time_are_ranked_apart(c2s, bundle, bursts):
    result = c2s("rank", bursts, "--bundle", bundle, "--json", "--group-by", "time")
    assert order(result) == [
        (1, 1, "d.jpg"),
        (1, 2, "a.jpg"),
        (2, 1, "c.jpg"),
        (2, 2, "b.jpg"),
        (3, 1, "e.png"),
    ]
    assert result.exit_code == 0
    assert result.stderr == "1 of 5 images do not say when they were taken; each is its own group.\n"
    assert [row["comparisons"] for row in rows(result.stdout)] == [1, 1, 1, 1, 0]


def test_the_gap_decides_what_a_burst_is(c2s, bundle, bursts):
    def groups(gap):
        result = c2s("rank", bursts, "--bundle", bundle, "--json", "--group-by", "time", "--gap", gap)
        return [group for group, _, _ in order(result)]

    assert groups(1) == [1, 2, 2, 3, 4]
    assert groups(0.5) == [1, 2, 3, 4, 5]
    assert groups(60) == [1, 1, 1, 1, 2]


def test_bursts_by_likeness_are_ranked_apart(c2s, bundle, bursts):
    (bursts / "e.png").unlink()
    result = c2s("rank", bursts, "--bundle", bundle, "--json", "--group-by", "hash")
    assert order(result) == [(1, 1, "d.jpg"), (1, 2, "a.jpg"), (2, 1, "c.jpg"), (2, 2, "b.jpg")]
    assert result.stderr == ""
    result = c2s("rank", bursts, "--bundle", bundle, "--json", "--group-by", "hash", "--distance", 64)
    assert [group for group, _, _ in order(result)] == [1, 1, 1, 1]


def test_the_best_of_each_burst_is_kept_in_one_command(c2s, bundle, bursts, tmp_path):
    best, listing = tmp_path / "best", tmp_path / "best.txt"
    given = ["rank", bursts, "--bundle", bundle, "--group-by", "time", "--top", 1]
    result = c2s(*given, "--copy-to", best, "--list", listing, "--json")
    assert order(result) == [(1, 1, "d.jpg"), (2, 1, "c.jpg"), (3, 1, "e.png")]
    assert sorted(path.name for path in best.iterdir()) == ["c.jpg", "d.jpg", "e.png"]
    assert (best / "c.jpg").read_bytes() == (bursts / "c.jpg").read_bytes()
    assert listing.read_text().split() == [str(bursts / name) for name in ("d.jpg", "c.jpg", "e.png")]
    # Once more: nothing is copied twice.
    assert c2s(*given, "--copy-to", best).exit_code == 0
    assert len(list(best.iterdir())) == 3


def test_names_that_collide_get_a_number(c2s, bundle, photos, tmp_path):
    gray_image(tmp_path / "more" / "d.png", 250)
    given = ["rank", photos, tmp_path / "more", "--bundle", bundle, "--top", 2]
    assert c2s(*given, "--link-to", tmp_path / "links").exit_code == 0
    links = {path.name: path.resolve() for path in (tmp_path / "links").iterdir()}
    assert links == {"d.png": tmp_path / "more" / "d.png", "d-2.png": photos / "d.png"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--gap", "1"], "--gap bounds the bursts of --group-by time"),
        (["--gap", "1", "--group-by", "hash"], "--gap bounds the bursts of --group-by time"),
        (["--distance", "1"], "--distance bounds the bursts of --group-by hash"),
        (["--copy-to", "x", "--link-to", "y"], "--copy-to and --link-to"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_use(c2s, bundle, photos, options, sentence):
    result = c2s("rank", photos, "--bundle", bundle, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("grouping", [[], ["--group-by", "hash"]])
def test_too_many_for_one_ranking_is_one_sentence(c2s, bundle, photos, monkeypatch, grouping):
    monkeypatch.setattr(ranking, "LIMIT", 3)
    result = c2s("rank", photos, "--bundle", bundle, *grouping)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("4 images are too many to rank together, more than 3;")


def test_a_bundle_without_anchors_is_refused_before_anything_is_read(c2s, bundle, tmp_path):
    from toy_bundle import toy_manifest, write_toy_graphs

    from compare2score.bundle import write_bundle

    bare = write_bundle(tmp_path / "bare", toy_manifest(), write_toy_graphs(tmp_path / "graphs"), None)
    result = c2s("rank", tmp_path / "gone.png", "--bundle", bare.path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has no anchors yet" in result.stderr


def test_it_works_as_a_process_of_its_own(c2s_process, bundle, photos):
    done = c2s_process("rank", photos, "--bundle", bundle, "--top", 1, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(rows(done.stdout)[0]["path"]).name == "d.png"
