"""`c2s score`: rows in order, one error a bad file, and nothing but data on stdout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image
from toy_bundle import ANCHOR_GRAYS, gray_image, preferred, toy_manifest, write_toy_bundle, write_toy_graphs

from compare2score import Scorer
from compare2score.bundle import write_bundle

GRAYS = (20, 90, 160, 240)


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def mixed(photos):
    """The folder of photos with a file among them that is no image."""
    (photos / "bad.png").write_text("not an image")
    return photos


def test_a_folder_is_scored_as_json_lines_in_order(c2s, bundle, photos):
    result = c2s("score", photos, "--bundle", bundle, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = rows(result.stdout)
    assert [Path(row["path"]).name for row in found] == ["a.png", "b.png", "c.png", "d.png"]
    assert [list(row) for row in found] == [["path", "value", "q", "std", "probabilities", "comparisons"]] * 4
    for row, gray in zip(found, GRAYS, strict=True):
        expected = [preferred(gray, anchor) for anchor in ANCHOR_GRAYS]
        assert row["probabilities"] == pytest.approx(expected, abs=1e-6)
    values = [row["value"] for row in found]
    assert values == sorted(values)


def test_adaptive_anchors_say_what_was_compared(c2s, bundle, photos):
    given = ["--bundle", bundle, "--json", "--anchors", "adaptive"]
    for row in rows(c2s("score", photos, *given, "--tolerance", "100").stdout):
        assert row["comparisons"] == 1
        assert row["probabilities"].count(None) == 4
    whole = rows(c2s("score", photos, "--bundle", bundle, "--json").stdout)
    every = rows(c2s("score", photos, *given, "--tolerance", "0").stdout)
    for row, full in zip(every, whole, strict=True):
        assert row["comparisons"] == full["comparisons"] == 5
        assert row["value"] == pytest.approx(full["value"], abs=1e-5)


def test_json_numbers_are_the_scorers_to_the_last_bit(c2s, bundle, photos):
    (row,) = rows(c2s("score", photos / "b.png", "--bundle", bundle, "--json").stdout)
    score = Scorer(bundle).score(photos / "b.png")
    assert (row["value"], row["q"], row["std"]) == (score.value, score.q, score.std)


def test_one_bad_file_is_one_error_and_the_others_get_their_scores(c2s, bundle, mixed):
    result = c2s("score", mixed, mixed / "gone.png", "--bundle", bundle, "--json", "--batch", "2")
    assert result.exit_code == 1
    assert result.stderr == "2 of 6 images could not be scored; their rows say why.\n"
    found = rows(result.stdout)
    codes = {Path(row["path"]).name: row["error"]["code"] for row in found if "error" in row}
    assert codes == {"bad.png": "not_an_image", "gone.png": "not_found"}
    assert [Path(row["path"]).name for row in found] == [
        "a.png",
        "b.png",
        "bad.png",
        "c.png",
        "d.png",
        "gone.png",
    ]
    assert found[2]["error"]["message"].endswith(".")
    good = rows(
        c2s("score", *[mixed / f"{name}.png" for name in "abcd"], "--bundle", bundle, "--json").stdout
    )
    assert [row for row in found if "error" not in row] == good


def test_piped_text_is_aligned_and_plain(c2s, bundle, mixed):
    result = c2s("score", mixed, "--bundle", bundle)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    width = len(str(mixed / "bad.png"))
    assert lines[0] == f"{'path':<{width}}   score       q    std"
    assert len({line[:width].rstrip() for line in lines}) == 6
    error = next(line for line in lines if "bad.png" in line)
    assert error.startswith(f"{mixed / 'bad.png'}       -       -      -  not_an_image: ")
    scores = [float(line[width:].split()[0]) for line in lines[1:] if line != error]
    assert scores == sorted(scores)
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        (["--scale", "minmax"], {"scale": "minmax"}),
        (["--link", "logit"], {"link": "logit"}),
        (["--threads", "1"], {}),
    ],
)
def test_options_reach_the_scorer(c2s, bundle, photos, options, keywords):
    (row,) = rows(c2s("score", photos / "b.png", "--bundle", bundle, "--json", *options).stdout)
    assert row["value"] == Scorer(bundle, **keywords).score(photos / "b.png").value


def test_quoted_patterns_are_expanded(c2s, bundle, photos):
    result = c2s("score", photos / "[ac].png", "--bundle", bundle, "--json")
    assert [Path(row["path"]).name for row in rows(result.stdout)] == ["a.png", "c.png"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("empty", "holds no images"), ("*.tga", "No file matches"), ("no/such/*.png", "No file matches")],
)
def test_nothing_to_score_is_wrong_use(c2s, bundle, photos, name, said):
    (photos / "empty").mkdir()
    result = c2s("score", photos / "a.png", photos / name, "--bundle", bundle)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_bundle_that_is_none_is_one_sentence(c2s, photos):
    result = c2s("score", photos, "--bundle", photos)
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        result.stderr == f"{photos} is no bundle: its manifest.json cannot be read; give a bundle folder.\n"
    )


def test_a_bundle_without_anchors_is_refused_before_any_row(c2s, tmp_path, photos):
    bare = write_bundle(tmp_path / "bare", toy_manifest(), write_toy_graphs(tmp_path / "graphs"), None)
    result = c2s("score", photos, "--bundle", bare.path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has no anchors yet" in result.stderr


def test_graphs_that_do_not_run_are_one_sentence(c2s, tmp_path, photos):
    graphs = write_toy_graphs(tmp_path / "graphs")
    (graphs / "decoder.onnx").write_bytes(b"damaged")
    broken = write_bundle(
        tmp_path / "broken", toy_manifest(), graphs, Scorer(write_toy_bundle(tmp_path / "b").path).anchors
    )
    result = c2s("score", photos, "--bundle", broken.path, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("ONNX Runtime refuses decoder.onnx")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--scale", "percent"],
        ["--link", "normal"],
        ["--threads", "0"],
        ["--batch", "0"],
        ["--batch", "many"],
        ["--anchors", "some"],
        ["--tolerance", "-1"],
        ["--no-such-option"],
    ],
)
def test_wrong_use_is_status_2(c2s, bundle, photos, arguments):
    paths = [photos] if arguments else []
    result = c2s("score", *paths, "--bundle", bundle, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr


def test_an_unknown_backend_is_one_sentence(c2s, bundle, photos):
    result = c2s("score", photos, "--bundle", bundle, "--backend", "tpu")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("There is no backend 'tpu'; choose 'auto' or one of 'onnxruntime', ")


@pytest.mark.skipif(sys.platform == "win32", reason="such names are not allowed there")
@pytest.mark.parametrize("name", ["a b.png", "[red]x.png", "new\nline.png", "\x1b[31mred.png", "ü\u202e.png"])
def test_odd_file_names_are_data_in_json_and_harmless_in_text(c2s, bundle, tmp_path, name):
    path = gray_image(tmp_path / "odd" / name, 99)
    assert [row["path"] for row in rows(c2s("score", path, "--bundle", bundle, "--json").stdout)] == [
        str(path)
    ]
    damaged = path.with_name(f"damaged{name}")
    damaged.touch()
    text = c2s("score", path, damaged, "--bundle", bundle).stdout
    assert len(text.splitlines()) == 3
    assert all(character.isprintable() for line in text.splitlines() for character in line)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_file_name_that_is_no_utf_8_is_scored(c2s_process, bundle, photos):
    os.rename(photos / "a.png", os.fsencode(photos) + b"/caf\xe9.png")  # noqa: PTH104
    done = c2s_process("score", photos, "--bundle", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf\\udce9.png" in done.stdout
    found = rows(c2s_process("score", photos, "--bundle", bundle, "--json").stdout)
    assert any(os.fsencode(row["path"]).endswith(b"caf\xe9.png") for row in found)


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "\\u03a9\\xfc.png"), ("cp1252", "\\u03a9ü.png")])
def test_a_name_that_the_output_cannot_encode_is_escaped(c2s_process, bundle, tmp_path, encoding, shown):
    gray_image(tmp_path / "Ωü.png", 99)
    environment = {"PYTHONIOENCODING": encoding}
    done = c2s_process("score", ".", "--bundle", bundle, cwd=tmp_path, env=environment, encoding=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split()[0] == shown


# As a process of its own


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_the_process_behaves_like_the_function(c2s_process, bundle, mixed):
    done = c2s_process("score", mixed, "--bundle", bundle, "--json")
    assert done.returncode == 1
    assert done.stderr == "1 of 5 images could not be scored; their rows say why.\n"
    assert len(rows(done.stdout)) == 5


def test_no_colour_code_leaves_a_pipe_whatever_the_environment_says(c2s_process, bundle, mixed):
    forced = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}
    given = ["--bundle", bundle]
    runs = (
        ["score", mixed, *given],
        ["score", mixed, *given, "--json"],
        ["info", *given],
        ["score", "-h"],
        ["score"],
    )
    for arguments in runs:
        done = c2s_process(*arguments, env=forced)
        assert "\x1b" not in done.stdout + done.stderr


def test_rows_appear_while_others_are_still_scored(bundle, photos):
    # The fifth score comes only once stdin is closed; the rows before it must not wait for that.
    program = (
        "import sys\n"
        "from compare2score import Scorer\n"
        "score_many = Scorer.score_many\n"
        "def slow(*arguments):\n"
        "    for place, score in enumerate(score_many(*arguments)):\n"
        "        if place == 4: sys.stdin.read()\n"
        "        yield score\n"
        "Scorer.score_many = slow\n"
        "from compare2score.cli import main\n"
        "main()\n"
    )
    arguments = [
        "score",
        str(photos),
        str(photos / "a.png"),
        "--bundle",
        str(bundle),
        "--batch",
        "1",
        "--json",
    ]
    command = [sys.executable, "-c", program, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=BUFFERED) as process:
        # Were the rows held back, this would end the wait, and fail, instead of waiting for ever.
        watch = threading.Timer(60, process.stdin.close)
        watch.start()
        first = [json.loads(process.stdout.readline()) for _ in range(4)]
        assert process.poll() is None
        assert not process.stdin.closed
        watch.cancel()
        rest, _ = process.communicate(timeout=60)
    assert len(first) + len(rows(rest)) == 5
    assert process.returncode == 0


def test_a_reader_that_goes_away_is_no_error_message(bundle, photos):
    names = [str(photos / "a.png")] * 3000
    command = [sys.executable, "-m", "compare2score.cli", "score", *names, "--bundle", str(bundle), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=BUFFERED) as process:
        assert json.loads(process.stdout.readline())["path"] == names[0]
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141


def test_scoring_loads_no_training_framework(bundle, photos):
    program = (
        "import sys\n"
        "from compare2score.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, "score", str(photos), "--bundle", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")


def on_terminal(*arguments, folder, stdout=None):
    """Exit status, and what a terminal of 100 columns shows of c2s's stderr, and stdout unless given."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "compare2score.cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    streams = {"stdout": stdout or follower, "stderr": follower}
    with subprocess.Popen(command, **streams, env=environment, cwd=folder) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                block = os.read(leader, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not block:
                break
            shown += block
        os.close(leader)
    return process.returncode, shown.decode()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_rows_go_to_a_file_while_the_bar_is_on_the_terminal(bundle, photos, tmp_path, options):
    with (tmp_path / "rows").open("w") as file:
        status, shown = on_terminal("score", ".", "--bundle", bundle, *options, folder=photos, stdout=file)
    assert status == 0
    assert "Scoring" in shown
    assert ".png" not in shown
    text = (tmp_path / "rows").read_text()
    assert len(text.splitlines()) == (4 if options else 5)
    assert "\x1b" not in text


def test_a_terminal_gets_a_drawn_table_with_bars(bundle, mixed):
    gray_image(mixed / "[bold]e.png", 250)
    status, shown = on_terminal("score", ".", "--bundle", bundle, folder=mixed)
    assert status == 1
    assert "Scoring" in shown, "the progress bar"
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
    table = [line for line in plain if re.match(r"  (Path|\S+\.png) ", line)]
    names = ["Path", "[bold]e.png", "a.png", "b.png", "bad.png", "c.png", "d.png"]
    assert [line.split()[0] for line in table] == names
    assert "\x1b[31mnot_an_image: " in shown, "errors in red"
    bars = [line.count("█") for line in table if "bad" not in line]
    # e is the brightest, then d, c, b, a.
    assert bars[1] == max(bars)
    assert bars[2:] == sorted(bars[2:])


def test_json_on_a_terminal_stays_json(bundle, photos):
    status, shown = on_terminal("score", ".", "--bundle", bundle, "--json", folder=photos)
    assert status == 0
    assert len(rows(shown)) == 4
    assert "\x1b" not in shown


def test_a_checkpoint_is_scored_in_torch_with_anchors_from_a_folder(c2s, owl_checkpoint, texture, tmp_path):
    for seed in range(4):
        Image.fromarray(texture(seed)).save(tmp_path / f"{seed}.png")
    options = ("--checkpoint", owl_checkpoint, "--anchor-images", tmp_path, "--json")
    run = c2s("score", tmp_path / "0.png", tmp_path / "3.png", *options)
    assert (run.exit_code, run.stderr) == (0, "")
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [len(row["probabilities"]) for row in rows] == [4, 4]
    assert rows[0]["q"] != rows[1]["q"]
    refused = c2s("score", tmp_path / "0.png", "--checkpoint", owl_checkpoint)
    assert (refused.exit_code, "give --anchor-images" in refused.stderr) == (2, True)
