"""`c2s build --plan`: what it prints of each board."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from compare2score.benchmarks.boards import BOARDS
from compare2score.cli.build_plan import print_plan


@pytest.mark.parametrize("model", ["7b", "nano"])
@pytest.mark.parametrize("board", BOARDS)
def test_a_board_has_a_row_a_precision_and_the_plan_says_it_is_computed(capsys, model, board):
    print_plan(model, board)
    lines = capsys.readouterr().out.splitlines()
    assert BOARDS[board].name in lines[0]
    start = next(i for i, line in enumerate(lines) if line.startswith("precision"))
    rows = [line.split()[0] for line in lines[start + 1 :] if line and not line.startswith("Computed")]
    assert rows == ["fp16", "int8", "int4", *(["fp8"] if "fp8" in BOARDS[board].rates else [])]
    assert lines[-1].startswith("Computed")


def test_what_fits_a_small_board_is_told(capsys):
    print_plan("7b", "orin-nano-8")
    told = capsys.readouterr().out
    assert "\nfits            int4\n" in told
    assert told.count("does not fit") == 3


def test_json_has_a_line_a_board_with_its_figures(capsys):
    print_plan("7b", None, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["board"] for line in lines] == list(BOARDS)
    for line in lines:
        assert line["measured"] is False
        assert line["figures"]["bandwidth"] == BOARDS[line["board"]].bandwidth
        assert {each["flops"] for each in line["precisions"]} == {line["precisions"][0]["flops"]}


def test_the_verb_plans_without_a_bundle_and_refuses_an_unknown_board():
    def run(*arguments):
        command = [sys.executable, "-m", "compare2score.cli", "build", "--plan", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("--model", "7b", "--board", "thor", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["board"] == "thor"
    done = run("--board", "toaster")
    assert done.returncode == 2
    assert "orin-nano-8" in done.stderr


def test_a_plan_needs_neither_torch_nor_a_library_for_engines():
    program = (
        "import sys\nfrom compare2score.cli.build_plan import print_plan\nprint_plan()\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "set()")
