"""`c2s compare`: how one image compares with another."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from compare2score.cli.console import print_facts, print_json
from compare2score.cli.options import Backend, Bundle, Json, Threads, examples

EXAMPLES = examples("c2s compare before.jpg after.jpg")


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The image compared with.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The image that the answer is about.")],
    bundle: Bundle = None,
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say how image B's quality compares with image A's.

    Prints the level, the probability that B is preferred (both orders averaged) and how far the two orders
    disagree, from 0 to 1.
    """
    from compare2score import Scorer

    comparison = Scorer(bundle, backend=backend, threads=threads).compare(a, b)
    if as_json:
        print_json({"a": a, "b": b, **asdict(comparison)})
        return
    print_facts(
        [
            ("level", f"B is {comparison.level}"),
            ("P(B preferred)", f"{comparison.probability:.3f}"),
            ("disagreement", f"{comparison.disagreement:.3f} between the two orders"),
        ]
    )
