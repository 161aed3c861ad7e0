"""The plan of a deployment: arithmetic that can be done by hand, and what it says of the boards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compare2score.benchmarks.architectures import MODELS, mplug_owl2
from compare2score.benchmarks.boards import BOARDS
from compare2score.benchmarks.deployment import (
    INT4_BLOCKS,
    NOT_MEASURED,
    boards_table,
    deploy,
    plan,
    precisions,
    published,
    roofline,
    weight_bytes,
)
from compare2score.benchmarks.tables import filled
from compare2score.benchmarks.workload import Part, Product

HAND = Part(
    (
        Product(rows=10, depth=256, columns=64),
        Product(rows=10, depth=300, columns=8, kind="convolution"),
        Product(rows=100, depth=9, columns=1, count=16, kind="kept"),
        Product(rows=10, depth=64, columns=10, count=4, kind="attention"),
    ),
    other_weights=100,
    boundary=50,
    live=1000,
)


def test_weights_take_the_bits_of_their_precision_and_their_scales():
    matrix, convolution, kept, other = 256 * 64, 300 * 8, 9 * 16, 100
    assert weight_bytes(HAND, "fp16") == 2 * (matrix + convolution + kept + other)
    eight = matrix + 2 * 64 + convolution + 2 * 8 + 2 * (kept + other)
    assert weight_bytes(HAND, "int8") == weight_bytes(HAND, "fp8") == eight
    assert weight_bytes(HAND, "int4") == matrix / 2 + 2 * 64 * 4 + 2 * (convolution + kept + other)


def test_four_bits_have_the_blocks_that_the_export_makes():
    pytest.importorskip("onnx_ir")
    from compare2score.export.int4 import BLOCKS

    assert BLOCKS == INT4_BLOCKS
    for depth, block in ((2816, 64), (96, 32), (48, 16)):
        part = Part((Product(rows=1, depth=depth, columns=4),), 0, 0, 0)
        assert weight_bytes(part, "int4") == depth * 4 / 2 + 2 * (depth // block) * 4
    assert weight_bytes(Part((Product(1, 7, 4),), 0, 0, 0), "int4") == 2 * 7 * 4


def test_a_part_takes_the_longer_of_its_operations_and_its_bytes():
    board = replace(BOARDS["orin-nano-8"], rates={"fp16": 1e6, "int8": 2e6}, bandwidth=1e6)
    reduced = 2 * 10 * (256 * 64 + 300 * 8)
    half = 2 * 100 * 9 * 16 + 2 * 4 * 10 * 64 * 10
    assert roofline(HAND, "int8", 1, board) == (pytest.approx(reduced / 2e6 + half / 1e6), "compute")
    assert roofline(HAND, "int4", 1, board) == (pytest.approx((reduced + half) / 1e6), "compute")
    assert roofline(HAND, "int8", 9e6, board) == (9, "memory")


def test_fp8_is_planned_only_where_tensor_cores_know_it():
    known = {name: "fp8" in precisions(board) for name, board in BOARDS.items()}
    assert known == {"orin-agx-64": False, "orin-nano-8": False, "thor": True, "h200": True}
    for board in BOARDS.values():
        assert ("fp8" in board.rates) == ("fp8" in precisions(board))


def test_a_precision_fits_if_it_leaves_what_the_board_keeps():
    work, board = mplug_owl2(), BOARDS["orin-nano-8"]
    fits = {each.precision: each.fits for each in plan(work, board)}
    assert fits == {"fp16": False, "int8": False, "int4": True}
    planned = deploy(work, board, "int4")
    just = planned.engine + board.reserved
    assert deploy(work, replace(board, memory=just), "int4").fits
    assert not deploy(work, replace(board, memory=just - 1), "int4").fits


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", BOARDS)
def test_no_plan_is_faster_than_its_bytes_or_its_operations_allow(model, name):
    board = BOARDS[name]
    for each in plan(MODELS[model](), board):
        assert each.seconds >= each.traffic / board.bandwidth * (1 - 1e-12)
        assert each.seconds >= each.flops / max(board.rates.values())
        assert each.engine == each.weights + each.prefix + each.activations
        assert each.to_json()["seconds"] == each.seconds


def test_the_published_way_is_never_the_faster_one():
    for model in MODELS.values():
        for board in BOARDS.values():
            loop = published(model(), board)
            assert loop.seconds > deploy(model(), board, "fp16").seconds
    assert not published(mplug_owl2(), BOARDS["orin-nano-8"]).fits


def test_the_table_has_a_row_a_board_and_says_that_nothing_was_measured(tmp_path):
    table = boards_table(mplug_owl2())
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]] == [
        board.name for board in BOARDS.values()
    ]
    text = filled("<!-- table:plan -->\nold\n<!-- end -->\n", tmp_path)
    assert text == f"<!-- table:plan -->\n{table}\n\n{NOT_MEASURED}\n<!-- end -->\n"
