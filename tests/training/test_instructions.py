"""Comparative instructions: levels, what is drawn, and the file."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from compare2score.errors import LabelError
from compare2score.training.instructions import (
    Instructions,
    comparative_level,
    read_instructions,
    sample_pairs,
    shortfall,
    write_instructions,
)
from compare2score.training.labels import LabelTable, read_labels

NAMES = ("inferior", "worse", "similar", "better", "superior")
MOS = Path(__file__).resolve().parents[2].parent / "shared" / "iqa" / "mos"


def make_table(name: str, mos, std, root: Path = Path("data")) -> LabelTable:
    images = tuple(f"{name}/{row}.png" for row in range(len(mos)))
    mos, std = np.asarray(mos, float), np.asarray(std, float)
    return LabelTable(name, images, mos, std, True, None, None, root)


def random_table(name: str, size: int, seed: int) -> LabelTable:
    generator = np.random.default_rng(seed)
    return make_table(name, generator.uniform(0, 5, size), generator.uniform(0.2, 1.0, size))


def name_of_level(mos_first: float, std_first: float, mos_second: float, std_second: float) -> str:
    """The rule in exact rational arithmetic, on squares: no square root, no rounding."""
    q = Fraction(mos_first) - Fraction(mos_second)
    variance = Fraction(std_first) ** 2 + Fraction(std_second) ** 2
    if q**2 <= variance:
        return "similar"
    if q**2 <= 4 * variance:
        return "worse" if q > 0 else "better"
    return "inferior" if q > 0 else "superior"


def census(table: LabelTable) -> dict[tuple[int, int], str]:
    """The level of every ordered pair of a small table."""
    rows = list(zip(table.mos.tolist(), table.std.tolist(), strict=True))
    return {(i, j): name_of_level(*rows[i], *rows[j]) for i, j in itertools.permutations(range(len(rows)), 2)}


def pairs_of(instructions: Instructions, dataset: int = 0) -> list[tuple[int, int]]:
    of = instructions.dataset == dataset
    return list(zip(instructions.first[of].tolist(), instructions.second[of].tolist(), strict=True))


# Levels


@pytest.mark.parametrize(
    ("q", "name"),
    [
        # std 3 and 4: sigma = 5
        (10.001, "inferior"),
        (10, "worse"),
        (5.001, "worse"),
        (5, "similar"),
        (0, "similar"),
        (-5, "similar"),
        (-5.001, "better"),
        (-10, "better"),
        (-10.001, "superior"),
    ],
)
def test_levels_at_the_borders(q, name):
    assert NAMES[comparative_level(50 + q, 3, 50, 4)] == name


def test_the_second_image_is_the_one_rated():
    assert NAMES[comparative_level(1.0, 0.1, 5.0, 0.1)] == "superior"
    assert NAMES[comparative_level(5.0, 0.1, 1.0, 0.1)] == "inferior"


def test_images_rated_without_any_spread_are_similar_only_if_equal():
    assert comparative_level([2.0, 2.0, 2.0], 0.0, [2.0, 1.0, 3.0], 0.0).tolist() == [2, 0, 4]


def test_levels_equal_the_rule_in_exact_arithmetic():
    generator = np.random.default_rng(0)
    # Whole numbers and Pythagorean spreads meet the borders often; other numbers never do.
    exact = generator.integers(0, 40, (2, 4000)).astype(float)
    spreads = np.array([(3, 4), (4, 3), (0, 5), (6, 8), (0, 0), (5, 12)], float)[
        generator.integers(0, 6, 4000)
    ].T
    smooth, smooth_spreads = generator.normal(50, 20, (2, 4000)), generator.uniform(0, 25, (2, 4000))
    met = set()
    for mos, std in ((exact, spreads), (smooth, smooth_spreads)):
        level = comparative_level(mos[0], std[0], mos[1], std[1])
        assert level.dtype == np.int64
        expected = [name_of_level(*case) for case in zip(mos[0], std[0], mos[1], std[1], strict=True)]
        assert [NAMES[index] for index in level] == expected
        met.update(expected)
    assert met == set(NAMES)
    assert (np.abs(exact[0] - exact[1]) == np.hypot(*spreads)).sum() > 50


def test_exchanging_the_images_mirrors_the_level():
    generator = np.random.default_rng(1)
    mos = np.round(generator.uniform(0, 5, (2, 100_000)), 1)
    std = np.round(generator.uniform(0, 1, (2, 100_000)), 1)
    forth = comparative_level(mos[0], std[0], mos[1], std[1])
    back = comparative_level(mos[1], std[1], mos[0], std[0])
    assert (back == 4 - forth).all()


def test_levels_broadcast():
    mos = np.array([1.0, 2.0, 4.0])
    level = comparative_level(mos[:, None], 0.4, mos, 0.3)
    assert level.tolist() == [[2, 3, 4], [1, 2, 4], [0, 0, 2]]


def test_levels_of_impossible_numbers_are_refused():
    with pytest.raises(LabelError, match="finite"):
        comparative_level([1.0, np.nan], 1.0, 2.0, 1.0)
    with pytest.raises(LabelError, match="negative"):
        comparative_level(1.0, 1.0, 2.0, -1.0)


# Drawing pairs


@pytest.mark.parametrize("mix", ["balanced", "natural"])
def test_pairs_are_of_one_table_different_images_never_repeated_and_rightly_labelled(mix):
    tables = [random_table("a", 40, 1), random_table("b", 90, 2), random_table("c", 7, 3)]
    instructions = sample_pairs(tables, 30, seed=5, mix=mix)
    assert instructions.datasets == ("a", "b", "c")
    assert len(instructions) == 90
    assert np.bincount(instructions.dataset).tolist() == [30, 30, 30]
    assert len(set(zip(instructions.dataset, instructions.first, instructions.second, strict=True))) == 90
    for index in range(90):
        table = tables[instructions.dataset[index]]
        i, j = instructions.first[index], instructions.second[index]
        assert i != j
        assert instructions.paths(index) == (table.root / table.images[i], table.root / table.images[j])
        assert NAMES[instructions.level[index]] == name_of_level(
            table.mos[i], table.std[i], table.mos[j], table.std[j]
        )
        assert instructions.mos_difference[index] == table.mos[j] - table.mos[i]
    assert (np.diff(instructions.dataset) != 0).sum() > 20, "the tables come shuffled together"


@pytest.mark.parametrize("mix", ["balanced", "natural"])
def test_the_seed_alone_decides_what_is_drawn(mix):
    tables = [random_table("a", 60, 1), random_table("b", 50, 2)]

    def draw(seed: int, chosen=tables) -> Instructions:
        return sample_pairs(chosen, 200, seed, mix)

    same, again, other = draw(0), draw(0), draw(1)
    for field in ("dataset", "first", "second", "level", "mos_difference"):
        np.testing.assert_array_equal(getattr(same, field), getattr(again, field))
    assert pairs_of(same) != pairs_of(other)
    assert set(pairs_of(draw(0, tables[:1]))) == set(pairs_of(same)), "later tables change nothing"


def test_a_balanced_mix_has_every_level_equally_often():
    tables = [random_table("a", 300, 1), random_table("b", 1200, 2)]
    instructions = sample_pairs(tables, 1003, seed=0)
    # 3 over: similar, worse and better get one more.
    assert instructions.level_counts().tolist() == [[200, 201, 201, 201, 200]] * 2
    assert shortfall(instructions, 1003).sum() == 0
    by_hand = Counter(zip(instructions.dataset.tolist(), instructions.level.tolist(), strict=True))
    assert by_hand[1, 2] == 201


def test_a_level_that_runs_out_is_taken_whole_and_the_others_fill_up():
    # One image far above 99 that differ little: 99 superior and 99 inferior pairs, no worse or better.
    table = make_table("a", [100.0, *np.linspace(0, 0.1, 99)], np.full(100, 1.0))
    population = census(table)
    assert Counter(population.values()) == {"superior": 99, "inferior": 99, "similar": 99 * 98}
    instructions = sample_pairs([table], 1000, seed=0)
    assert instructions.level_counts().tolist() == [[99, 0, 802, 0, 99]]
    assert shortfall(instructions, 1000).tolist() == [[101, 200, 0, 200, 101]]
    drawn = set(pairs_of(instructions))
    assert len(drawn) == 1000
    assert {pair for pair, name in population.items() if name != "similar"} <= drawn


def test_a_rare_level_of_a_large_table_is_found_to_the_last_pair():
    generator = np.random.default_rng(0)
    mos, std = generator.normal(0, 1, 3000), np.full(3000, 2.0)
    mos[1234] = 30.0
    instructions = sample_pairs([make_table("a", mos, std)], 20_000, seed=3)
    counts = instructions.level_counts()[0]
    sigma = np.sqrt(8.0)
    q = np.abs(mos[:, None] - mos)
    beyond, between = int((q > 2 * sigma).sum()) // 2, int(((q > sigma) & (q <= 2 * sigma)).sum()) // 2
    assert beyond < 4000 < between
    assert counts[[0, 4]].tolist() == [beyond, beyond]
    assert counts.sum() == len(set(pairs_of(instructions))) == 20_000
    assert max(counts[1:4]) - min(counts[1:4]) <= 1


@pytest.mark.parametrize("mix", ["balanced", "natural"])
def test_a_table_with_too_few_pairs_gives_them_all(mix):
    table = random_table("a", 6, 4)
    instructions = sample_pairs([table], 1000, seed=0, mix=mix)
    assert sorted(pairs_of(instructions)) == sorted(census(table))


def test_every_pair_of_a_level_is_as_likely_as_the_others_in_a_small_table():
    table = make_table("a", np.arange(10.0), np.full(10, 1.2))
    population = census(table)
    drawn = Counter(pair for seed in range(600) for pair in pairs_of(sample_pairs([table], 10, seed)))
    assert drawn.keys() == population.keys()
    for name in NAMES:
        times = [drawn[pair] for pair, level in population.items() if level == name]
        assert chisquare(times).pvalue > 1e-4, name


def test_every_pair_of_a_level_is_as_likely_as_the_others_in_a_large_table():
    table = random_table("a", 1000, 8)
    instructions = sample_pairs([table], 50_000, seed=0)
    q = (table.mos[:, None] - table.mos) / np.hypot(table.std[:, None], table.std)
    np.fill_diagonal(q, np.nan)
    for level, (low, high) in enumerate([(2, np.inf), (1, 2), (-1, 1), (-2, -1), (-np.inf, -2)]):
        population = (low < q) & (q < high)
        of = instructions.level == level
        for rows, pairs in (
            (instructions.first, population.sum(1)),
            (instructions.second, population.sum(0)),
        ):
            # 20 bins of 50 images each, in the order of the table.
            counts = np.bincount(rows[of] // 50, minlength=20)
            expected = pairs.reshape(20, 50).sum(1) / population.sum() * of.sum()
            assert chisquare(counts, expected).pvalue > 1e-4, NAMES[level]


def test_a_natural_mix_has_the_levels_as_often_as_the_table_has():
    table = random_table("a", 120, 6)
    population = Counter(census(table).values())
    counts = sample_pairs([table], 4000, seed=0, mix="natural").level_counts()[0]
    expected = np.array([population[name] for name in NAMES]) * 4000 / (120 * 119)
    assert chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tables": []}, "no label table"),
        ({"tables": [random_table("a", 9, 1), random_table("a", 8, 2)]}, "called 'a'"),
        ({"tables": [random_table("a", 1, 1)]}, "needs two"),
        ({"pairs": 0}, "at least 1"),
        ({"seed": -1}, "seed"),
        ({"mix": "even"}, "'even'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, words):
    with pytest.raises(LabelError, match=words):
        sample_pairs(**{"tables": [random_table("a", 9, 1)], "pairs": 5, "seed": 0} | arguments)


# The file


def two_tables(tmp_path: Path) -> list[LabelTable]:
    return [
        make_table("first set", [1.0, 2.0, 4.5], [0.25, 0.25, 0.25], tmp_path / "data" / "one"),
        make_table('blå "b"', [10.0, 20.0], [1.0, 1.0], tmp_path / "data"),
    ]


def test_the_file_has_the_published_conversation_form(tmp_path):
    table = make_table("bid", [1.0, 1.5], [0.25, 0.25], tmp_path / "data")
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "pairs.jsonl"
    write_instructions(path, sample_pairs([table], 2, seed=0))
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    better = next(entry for entry in entries if entry["level"] == "better")
    assert better == {
        "id": "bid-0-1",
        "image": ["../data/bid/0.png", "../data/bid/1.png"],
        "conversations": [
            {
                "from": "human",
                "value": "<|image|> <|image|> Compared with the first image, "
                "what is your quality rating for second image?",
            },
            {"from": "gpt", "value": "The quality of the second image is better."},
        ],
        "dataset": "bid",
        "level": "better",
        "mos_difference": 0.5,
    }
    assert len({entry["id"] for entry in entries}) == len(entries) == 2
    assert [child.name for child in path.parent.iterdir()] == ["pairs.jsonl"]


def test_training_and_scoring_see_the_same_text():
    from compare2score.comparator.prompt import LEVELS, QUESTION

    assert LEVELS == NAMES
    # The published scoring prompt, which the conversation template must give.
    assert QUESTION == (
        "USER: <|image|> <|image|> Compared with the first image, what is your quality rating for second "
        "image? \nASSISTANT: The quality of the second image is"
    )


def test_reading_gives_back_what_was_written(tmp_path):
    tables = [*two_tables(tmp_path), random_table("c", 30, 1)]
    tables[2] = replace(tables[2], images=tuple(str(tmp_path / f"abs{row}.png") for row in range(30)))
    written = sample_pairs(tables, 200, seed=0)
    write_instructions(tmp_path / "pairs.jsonl", written)
    read = read_instructions(tmp_path / "pairs.jsonl")
    assert len(read) == len(written) == 6 + 2 + 200
    np.testing.assert_array_equal(read.level, written.level)
    np.testing.assert_array_equal(read.mos_difference, written.mos_difference)
    for index in range(len(written)):
        assert read.datasets[read.dataset[index]] == written.datasets[written.dataset[index]]
        expected = [path.resolve() for path in written.paths(index)]
        assert [path.resolve() for path in read.paths(index)] == expected
    write_instructions(tmp_path / "again.jsonl", read)
    again = read_instructions(tmp_path / "again.jsonl")
    assert again.images == read.images
    np.testing.assert_array_equal(again.first, read.first)


def test_paths_are_relative_to_the_file_wherever_it_lies(tmp_path, monkeypatch):
    (tmp_path / "data" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "today").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "today")
    image = tmp_path / "data" / "one" / "first set" / "0.png"
    image.parent.mkdir()
    image.touch()
    monkeypatch.chdir(tmp_path)
    tables = [replace(two_tables(tmp_path)[0], root=Path("data/one"))]
    for folder in ("runs/today", "link", "data/one", "."):
        path = Path(folder) / "pairs.jsonl"
        write_instructions(path, sample_pairs(tables, 6, seed=0))
        read = read_instructions(path)
        found = [pair for index in range(len(read)) for pair in read.paths(index) if pair.name == "0.png"]
        assert found
        assert all(pair.samefile(image) for pair in found)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "pairs.jsonl"
    good = sample_pairs([random_table("a", 30, 1)], 200, seed=0)
    write_instructions(path, good)
    before = path.read_bytes()
    with pytest.raises(IndexError):
        write_instructions(path, replace(good, first=np.append(good.first[:-1], 99)))
    assert path.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    instructions = sample_pairs([random_table("a", 9, 1)], 5, seed=0)
    with pytest.raises(LabelError, match="cannot be written"):
        write_instructions(tmp_path / "absent" / "pairs.jsonl", instructions)
    (tmp_path / "file").touch()
    with pytest.raises(LabelError, match="cannot be written"):
        write_instructions(tmp_path / "file" / "pairs.jsonl", instructions)


def entry(**changes) -> dict:
    whole = {
        "id": "x",
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "<|image|><|image|>Which is better?"},
            {"from": "gpt", "value": "The quality of the second image is worse than the first."},
        ],
        "dataset": "set",
        "level": "worse",
        "mos_difference": -1,
    }
    return {key: value for key, value in (whole | changes).items() if value != "absent"}


def test_lines_of_others_in_the_same_form_are_read(tmp_path):
    path = tmp_path / "theirs.jsonl"
    bare = entry(id="absent", dataset="absent", level="absent", mos_difference="absent")
    path.write_text(json.dumps(entry()) + "\n\n" + json.dumps(bare), encoding="utf-8")
    read = read_instructions(path)
    assert read.datasets == ("set", "theirs")
    assert read.level.tolist() == [1, 1]
    assert read.mos_difference[0] == -1.0
    assert np.isnan(read.mos_difference[1])
    assert read.paths(1) == (tmp_path / "a.png", tmp_path / "b.png")
    write_instructions(tmp_path / "ours.jsonl", read)
    assert np.isnan(read_instructions(tmp_path / "ours.jsonl").mos_difference[1])


def turns(*values: str) -> list[dict]:
    return [{"from": who, "value": value} for who, value in zip(("human", "gpt"), values, strict=False)]


TWO = "<|image|><|image|>Which?"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (json.dumps(entry())[:100], "JSON"),
        ("[" * 200_000, "recursion|JSON"),
        ("[1, 2]", "object"),
        (json.dumps(entry(image="absent")), "'image'"),
        (json.dumps(entry(image="a.png")), "'image'"),
        (json.dumps(entry(image=["a.png"])), "'image'"),
        (json.dumps(entry(image=["a.png", ""])), "'image'"),
        (json.dumps(entry(image=["a.png", "a.png"])), "different"),
        (json.dumps(entry(conversations="absent")), "'conversations'"),
        (json.dumps(entry(conversations=["a", "b"])), "'conversations'"),
        (json.dumps(entry(conversations=turns(TWO))), "'conversations'"),
        (json.dumps(entry(conversations=turns(TWO, "worse")[::-1])), "'conversations'"),
        (json.dumps(entry(conversations=turns("<|image|>Which?", "worse"))), "twice"),
        (json.dumps(entry(conversations=turns(TWO, "good"))), "one level"),
        (json.dumps(entry(conversations=turns(TWO, "dissimilar"))), "one level"),
        (json.dumps(entry(conversations=turns(TWO, "worse or similar"))), "one level"),
        (json.dumps(entry(level="better")), "'better'.*'worse'"),
        (json.dumps(entry(dataset=3)), "'dataset'"),
        (json.dumps(entry(mos_difference="much")), "finite"),
        (json.dumps(entry(mos_difference=True)), "finite"),
        (json.dumps(entry(mos_difference=float("nan"))), "finite"),
        (json.dumps(entry(mos_difference=10**400)), "finite"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_with_its_file_and_line(tmp_path, line, words):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(entry()) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(LabelError, match=words) as caught:
        read_instructions(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(caught.value)


def test_a_missing_or_empty_file_or_other_text_is_refused(tmp_path):
    with pytest.raises(LabelError, match=r"absent\.jsonl"):
        read_instructions(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(LabelError, match="no instructions"):
        read_instructions(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"id": "å"}'.encode("latin-1"))
    with pytest.raises(LabelError, match="UTF-8"):
        read_instructions(tmp_path / "latin.jsonl")


def test_instructions_need_no_torch():
    program = "import sys, compare2score.training.instructions as _; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.skipif(not MOS.is_dir(), reason="needs the published label tables in ../shared/iqa/mos")
def test_instructions_at_the_papers_scale_are_whole(tmp_path):
    names = ("bid", "livec", "csiq", "kadid10k", "koniq10k", "live")
    tables = [read_labels(MOS / f"{name}.csv") for name in names]
    instructions = sample_pairs(tables, 30_000, seed=0)
    write_instructions(tmp_path / "pairs.jsonl", instructions)
    assert (instructions.level_counts() == 6000).all()
    keys = instructions.dataset * 10**9 + instructions.first * 10**4 + instructions.second
    assert len(np.unique(keys)) == 180_000
    with (tmp_path / "pairs.jsonl").open(encoding="utf-8") as file:
        for index, line in enumerate(itertools.islice(file, 500)):
            written = json.loads(line)
            table = tables[instructions.dataset[index]]
            i, j = instructions.first[index], instructions.second[index]
            assert written["dataset"] == table.name
            assert [Path(image).name for image in written["image"]] == [
                Path(table.images[i]).name,
                Path(table.images[j]).name,
            ]
            assert written["level"] == name_of_level(table.mos[i], table.std[i], table.mos[j], table.std[j])
        assert 500 + sum(1 for _ in file) == 180_000
