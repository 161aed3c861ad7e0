"""`c2s train`: instructions are counted by hand, and the nano verb passes on what it was given."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from compare2score.cli.train import Adapted, Comparison, Mix
from compare2score.training import recipe as recipes
from compare2score.training.recipe import LoraRecipe, Recipe

LEVELS = ("inferior", "worse", "similar", "better", "superior")


def table(path, mos, std=1.0, split=None):
    rows = [f"{i}.png,{value},{std}" + (f",{split[i]}" if split else "") for i, value in enumerate(mos)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["image,mos,std" + (",split" if split else ""), *rows]) + "\n")
    return path


@pytest.fixture
def run(c2s, tmp_path):
    def run(*arguments):
        return c2s("train", "instructions", "--out", tmp_path / "pairs.jsonl", *arguments)

    return run


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]


def test_levels_and_shortfalls_are_counted_by_table(run, tmp_path):
    # sigma = sqrt(2): differences of 0, 2 and 4 are similar, better (worse) and superior (inferior).
    near = table(tmp_path / "near.csv", [0, 0, 0])
    far = table(tmp_path / "far.csv", [0, 2, 4])
    result = run("--labels", near, "--labels", far, "--pairs", 5, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["out"] == str(tmp_path / "pairs.jsonl")
    assert report["pairs"] == 10 == len(lines(tmp_path))
    counts = {row["name"]: list(row["levels"].values()) for row in report["tables"]}
    missing = {row["name"]: list(row["missing"].values()) for row in report["tables"]}
    assert counts["near"] == [0, 0, 5, 0, 0]
    assert missing["near"] == [1, 1, 0, 1, 1]
    # far has two pairs each of better and worse, one each of superior and inferior, none of similar.
    assert counts["far"][2] == 0
    assert missing["far"] == [0, 0, 1, 0, 0]
    for name in ("near", "far"):
        answered = [row["level"] for row in lines(tmp_path) if row["dataset"] == name]
        assert [answered.count(level) for level in LEVELS] == counts[name]


def test_text_names_the_shortfall_on_stderr(run, tmp_path):
    result = run("--labels", table(tmp_path / "near.csv", [0, 0, 0]), "--pairs", 5)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "Table  inferior  worse  similar  better  superior  pairs",
        "near          0      0        5       0         0      5",
        f"{tmp_path / 'pairs.jsonl'}: 5 pairs",
    ]
    assert result.stderr == (
        "near has too few pairs of some levels; short of an equal share are 1 inferior, 1 worse, 1 better, "
        "1 superior.\n"
    )


def test_a_natural_mix_has_no_shares_to_fall_short_of(run, tmp_path):
    labels = table(tmp_path / "near.csv", [0, 0, 0])
    result = run("--labels", labels, "--pairs", 5, "--mix", "natural")
    assert (result.exit_code, result.stderr) == (0, "")


def test_one_option_takes_several_tables(run, tmp_path):
    tables = [table(tmp_path / f"{name}.csv", [0, 2, 4]) for name in "abc"]
    result = run("--labels", *tables, "--pairs", 2, "--json")
    assert [row["name"] for row in json.loads(result.stdout)["tables"]] == ["a", "b", "c"]


def test_only_train_rows_are_drawn_where_the_table_has_splits(run, tmp_path):
    labels = table(tmp_path / "t.csv", [0, 1, 2, 3], split=["train", "test", "train", "val"])
    assert run("--labels", labels, "--pairs", 100).exit_code == 0
    assert {image for row in lines(tmp_path) for image in row["image"]} == {"0.png", "2.png"}
    assert run("--labels", labels, "--pairs", 100, "--split", "test").exit_code == 2


def test_the_seed_decides(run, tmp_path):
    labels = table(tmp_path / "t.csv", range(30))
    written = []
    for seed in (0, 0, 1):
        assert run("--labels", labels, "--pairs", 50, "--seed", seed).exit_code == 0
        written.append((tmp_path / "pairs.jsonl").read_bytes())
    assert written[0] == written[1] != written[2]


def test_a_stated_deviation_stands_in_for_an_absent_one(run, tmp_path):
    labels = tmp_path / "plain.csv"
    labels.write_text("image,mos\na,0\nb,10\n")
    assert run("--labels", labels, "--pairs", 2, "--std", 100).exit_code == 0
    assert {row["level"] for row in lines(tmp_path)} == {"similar"}
    assert run("--labels", labels, "--pairs", 2, "--std", 1).exit_code == 0
    assert {row["level"] for row in lines(tmp_path)} == {"inferior", "superior"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pairs", "5"],
        ["--labels", "gone.csv", "--pairs", "5"],
        ["--labels", "t.csv", "--pairs", "0"],
        ["--labels", "t.csv", "--pairs", "5", "--mix", "even"],
        ["--labels", "t.csv", "--pairs", "5", "--std", "0"],
        ["--labels", "t.csv", "t.csv", "--pairs", "5"],
    ],
)
def test_wrong_use_writes_nothing(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "t.csv", [0, 2, 4])
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (tmp_path / "pairs.jsonl").exists()


def test_a_folder_that_cannot_be_written_to_is_one_sentence(c2s, tmp_path):
    labels = table(tmp_path / "t.csv", [0, 2, 4])
    result = c2s(
        "train", "instructions", "--labels", labels, "--pairs", 2, "--out", tmp_path / "no" / "pairs.jsonl"
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


# The nano verb, with the training itself taken out


@pytest.fixture
def training(monkeypatch):
    """Calls of train_nano, which prints an epoch and returns at once."""
    calls = []

    def train_nano(*arguments):
        calls.append(arguments)
        print('{"epoch": 1}')
        return arguments[2] / "checkpoint"

    module = ModuleType("compare2score.training.nano")
    module.train_nano = train_nano
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_the_run_gets_what_the_command_line_says(c2s, training, tmp_path):
    arguments = (
        "--data one two --pairs a.jsonl b.jsonl --photos clean --probe-epochs 1 --decoder-epochs 3 "
        "--batch 8 --partners 3 "
        "--size 192 --layers 2 --comparison causal --std 0.1 --distort-best 5 --no-distil "
        "--expert two"
    )
    result = c2s(
        "train", "nano", *arguments.split(), "--seed", 7, "--encoder-rate", "1e-3", "--out", tmp_path / "run"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f'{{"epoch": 1}}\ncheckpoint: {tmp_path / "run" / "checkpoint"}\n'
    recipe = dataclasses.replace(
        Recipe(),
        probe_epochs=1,
        decoder_epochs=3,
        batch=8,
        partners=3,
        encoder_rate=1e-3,
        distil=False,
        seed=7,
    )
    ((data, photos, out, *rest),) = training
    assert (data, photos, out) == ([Path("one"), Path("two")], [Path("clean")], tmp_path / "run")
    assert rest == [recipe, 192, 2, "causal", [Path("a.jsonl"), Path("b.jsonl")], 0.1, 5, ["two"]]


def test_a_recipe_file_sets_what_no_option_does(c2s, training, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text('{"size": 192, "std": 0.1, "seed": 5, "distil": false}')
    c2s("train", "nano", "--recipe", file, "--data", "one", "--seed", 7, "--out", tmp_path / "run")
    assert training[0][3] == dataclasses.replace(Recipe(), seed=7, distil=False)
    assert training[0][4:] == (192, 2, "late", [], 0.1, 0, [])


@pytest.mark.parametrize(
    ("text", "told"), [('{"sise": 192}', "'sise'"), ("[1]", "no option"), ("{", "as JSON"), (None, "as JSON")]
)
def test_a_recipe_file_that_cannot_be_used_is_one_sentence(c2s, training, tmp_path, text, told):
    file = tmp_path / "recipe.json"
    if text is not None:
        file.write_text(text)
    result = c2s("train", "nano", "--recipe", file, "--data", "one", "--out", tmp_path / "run")
    assert (result.exit_code, result.stdout, training) == (2, "", [])
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_embedded_comparators_recipe_can_be_used(c2s, training, tmp_path):
    embedded = Path(recipes.__file__).parent / "embedded.json"
    c2s("train", "nano", "--recipe", embedded, "--data", "one", "--out", tmp_path / "run")
    (recipe, size, *_, distorted, expert) = training[0][3:]
    expected = json.loads(embedded.read_text())
    given = {"size": size, "distort_best": distorted, "expert": expert}
    assert {**expected, **given, **dataclasses.asdict(recipe)} == {**dataclasses.asdict(recipe), **expected}


def test_json_ends_with_the_checkpoint(c2s, training, tmp_path):
    result = c2s("train", "nano", "--data", "one", "--out", tmp_path / "run", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"epoch": 1},
        {"checkpoint": str(tmp_path / "run" / "checkpoint")},
    ]
    assert training[0][1] == []


def test_nothing_to_train_on_is_wrong_use(c2s, training, tmp_path):
    result = c2s("train", "nano", "--out", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "There is nothing to train on; give --data, --pairs or --photos.\n"
    assert training == []


def test_an_interruption_says_how_to_go_on(c2s, training, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["compare2score.training.nano"], "train_nano", interrupted)
    result = c2s("train", "nano", "--data", "one", "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted; the same command goes on after the last whole epoch.\n"


def test_without_options_the_recipe_is_the_trainings_own(c2s, training, tmp_path):
    c2s("train", "nano", "--data", "one", "--out", tmp_path / "run")
    assert training[0][3] == Recipe()


def test_the_defaults_of_the_model_are_the_trainings_own(c2s, monkeypatch, tmp_path):
    pytest.importorskip("torch", reason="the training's module needs torch")
    from compare2score.training import nano

    calls = []
    defaults = nano.train_nano.__defaults__
    monkeypatch.setattr(nano, "train_nano", lambda *arguments: calls.append(arguments))
    c2s("train", "nano", "--data", "one", "--out", tmp_path / "run")
    *sizes, instructions, std, distorted, expert = calls[0][4:]
    assert (*sizes, tuple(instructions), std, distorted, tuple(expert)) == defaults


def test_the_choices_are_the_trainings_own():
    pytest.importorskip("torch", reason="the decoder's module needs torch")
    from compare2score.comparator import decoder
    from compare2score.training import pairs

    assert set(Mix.__args__) == set(pairs.Mix.__args__)
    assert set(Comparison.__args__) == set(decoder.Comparison.__args__)


# The lora verb, with the training itself taken out


@pytest.fixture
def adapting(monkeypatch):
    """Calls of train_lora, which prints an epoch and returns at once."""
    calls = []

    def train_lora(*arguments):
        calls.append(arguments)
        print('{"epoch": 1}')
        return SimpleNamespace(checkpoint=arguments[2] / "checkpoint", difference=2.5e-7)

    module = ModuleType("compare2score.training.lora")
    module.train_lora = train_lora
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_the_adapters_get_what_the_command_line_says(c2s, adapting, tmp_path):
    arguments = (
        "--base owl --pairs a.jsonl b.jsonl --val c.jsonl --epochs 3 --batch 16 --micro-batch 2 --rate 1e-4 "
        "--warmup 0.1 --weight-decay 0.01 --rank 8 --alpha 16 --dropout 0 --adapt all --seed 7"
    )
    result = c2s("train", "lora", *arguments.split(), "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert result.stdout == f'{{"epoch": 1}}\ncheckpoint: {tmp_path / "run" / "checkpoint"}\n'
    assert result.stderr == "Merging the adapters changed level logits by 2e-07 at most.\n"
    recipe = LoraRecipe(
        epochs=3,
        batch=16,
        micro_batch=2,
        rate=1e-4,
        warmup=0.1,
        weight_decay=0.01,
        rank=8,
        alpha=16,
        dropout=0,
        adapt="all",
        seed=7,
    )
    pairs, val = [Path("a.jsonl"), Path("b.jsonl")], [Path("c.jsonl")]
    assert adapting == [(Path("owl"), pairs, tmp_path / "run", recipe, val)]


def test_json_ends_with_the_merged_checkpoint(c2s, adapting, tmp_path):
    result = c2s("train", "lora", "--base", "owl", "--pairs", "a", "--out", tmp_path / "run", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"epoch": 1},
        {"checkpoint": str(tmp_path / "run" / "checkpoint"), "merged_difference": 2.5e-7},
    ]
    assert result.stderr == ""
    assert adapting[0][3:] == (LoraRecipe(), [])


def test_interrupted_adapters_say_how_to_go_on(c2s, adapting, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["compare2score.training.lora"], "train_lora", interrupted)
    result = c2s("train", "lora", "--base", "owl", "--pairs", "a.jsonl", "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted; the same command goes on where the run was last saved.\n"


@pytest.mark.parametrize(
    "wrong", ["--epochs 0", "--batch 0", "--rate -1", "--rank 0", "--dropout 1", "--adapt encoder"]
)
def test_settings_that_cannot_be_are_wrong_use(c2s, adapting, tmp_path, wrong):
    result = c2s(
        "train", "lora", "--base", "owl", "--pairs", "a.jsonl", "--out", tmp_path / "run", *wrong.split()
    )
    assert (result.exit_code, result.stdout, adapting) == (2, "", [])


def test_what_can_be_adapted_is_the_trainings_own():
    assert set(Adapted.__args__) == set(recipes.Adapted.__args__)


@pytest.mark.parametrize(
    ("verb", "package"),
    [("nano", "torch"), ("nano", "matplotlib"), ("lora", "torch"), ("lora", "matplotlib"), ("lora", "peft")],
)
def test_without_the_extra_one_sentence_names_the_install(tmp_path, verb, package):
    program = (
        "import sys\n"
        "sys.modules[sys.argv.pop(1)] = None\n"  # importing it fails, as if it were not installed
        "from compare2score.cli import main\n"
        "main()\n"
    )
    given = {"nano": ["--data", "x"], "lora": ["--base", "x", "--pairs", "y"]}[verb]
    command = [sys.executable, "-c", program, package, "train", verb, *given, "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Training needs an optional part: pip install 'compare2score-edge[train]'.\n"
    assert not (tmp_path / "run").exists()
