"""`c2s build --plan`: what a comparator needs on a board, computed and not measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from compare2score.benchmarks.architectures import MODELS, ModelName
from compare2score.benchmarks.boards import BOARDS, BoardName
from compare2score.benchmarks.deployment import NOT_MEASURED, gigabytes, least, plan, published
from compare2score.cli.console import print_facts, print_json, print_table

if TYPE_CHECKING:
    from compare2score.benchmarks.boards import Board
    from compare2score.benchmarks.workload import Workload

__all__ = ["BoardName", "ModelName", "print_plan"]


def print_plan(model: ModelName = "7b", board: BoardName | None = None, as_json: bool = False) -> None:
    """Prints the plan of a comparator on a board, or on every board known.

    For the verb: `ModelName` and `BoardName` are the choices of `--model` and `--board`. Loads neither torch
    nor TensorRT, and reads no bundle.

    Args:
        model: whose sizes to plan with.
        board: None for all.
        as_json: a line a board.
    """
    work = MODELS[model]()
    for number, name in enumerate(BOARDS if board is None else (board,)):
        if as_json:
            print_json(plan_json(work, name))
            continue
        if number:
            print()
        print_board(work, BOARDS[name])
    if not as_json:
        print(f"\n{NOT_MEASURED}")


def plan_json(work: Workload, name: BoardName) -> dict[str, object]:
    """A board's plan as JSON values."""
    board = BOARDS[name]
    return {
        "model": work.name,
        "board": name,
        "measured": False,
        "figures": asdict(board),
        "precisions": [each.to_json() for each in plan(work, board)],
        "published_loop": asdict(published(work, board)),
    }


def print_board(work: Workload, board: Board) -> None:
    """Prints a board's figures, the score's work, and a row a precision."""
    loop, planned = published(work, board), plan(work, board)
    rates = ", ".join(f"{name} {1e-12 * rate:g}" for name, rate in board.rates.items())
    major, minor = board.compute_capability
    fitting = [each.precision for each in planned if each.fits]
    print_facts(
        [
            ("board", f"{board.name}, compute capability {major}.{minor}"),
            ("memory", f"{gigabytes(board.memory)} at {1e-9 * board.bandwidth:,.0f} GB/s"),
            ("kept free", f"{gigabytes(board.reserved)}, an assumption"),
            ("dense rates", f"{rates} T operations/s"),
            ("a score", f"{work.name}: {operations(work.flops)}, {work.anchors} anchors"),
            ("published loop", f"{operations(loop.flops)}, fp16: {least(loop)}"),
            ("fits", ", ".join(fitting) or "no precision"),
        ]
    )
    print()
    headings = (
        "precision",
        "weights",
        "prefix",
        "activations",
        "engine",
        "bytes a score",
        "least time",
        "limits",
    )
    print_table(
        headings,
        [
            (
                each.precision,
                *(gigabytes(size) for size in (each.weights, each.prefix, each.activations, each.engine)),
                gigabytes(each.traffic),
                least(each),
                ", ".join(f"{part}: {bound}" for part, bound in each.bound.items()),
            )
            for each in planned
        ],
    )


def operations(flops: int) -> str:
    return f"{1e-12 * flops:.2f} TFLOP" if flops >= 1e11 else f"{1e-9 * flops:.2f} GFLOP"
