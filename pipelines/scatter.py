"""Scatter plots of opinions over scores, with the fitted logistic."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compare2score.errors import MissingExtraError
from compare2score.pipelines.correlation import fit_logistic, logistic
from compare2score.pipelines.evaluate import TableEvaluation

POINTS_DRAWN_AS_SHAPES = 2000
"""Above this the points are one picture inside the SVG, which would grow to megabytes."""


def check_plots() -> None:
    """Raises MissingExtraError if plots cannot be drawn: to be asked before hours of scoring."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("eval", "Drawing scatter plots") from error


def draw_scatter(evaluation: TableEvaluation, place: int, bundle: str, stem: Path) -> list[Path]:
    """Draws the table's opinions over the q of its bundle number `place`, as stem.png and stem.svg.

    The logistic is left out where there is none. Returns the two paths. Raises MissingExtraError.
    """
    check_plots()
    import matplotlib
    from matplotlib.figure import Figure

    q, mos = evaluation.scored[place].q[evaluation.kept], evaluation.table.mos[evaluation.kept]
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    many = len(q) > POINTS_DRAWN_AS_SHAPES
    axes.plot(q, mos, ".", markersize=4, alpha=0.3 if many else 0.6, rasterized=many)
    if (parameters := fit_logistic(q, mos)) is not None:
        line = np.linspace(q.min(), q.max(), 200)
        axes.plot(line, logistic(line, *parameters), color="black", linewidth=1.2)
    found = evaluation.whole.agreements[place].statistics
    title = (
        f"{evaluation.table.name}, {bundle}: SRCC {found['srcc'].value:.3f}, PLCC {found['plcc'].value:.3f}"
    )
    # A dollar sign in a name opens no formula.
    axes.set_title(title.replace("$", r"\$"), fontsize=9)
    axes.set_xlabel("q (MAP estimate)")
    axes.set_ylabel("mean opinion score")
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    # The same report is the same bytes: no date, and identifiers that stay from run to run.
    with matplotlib.rc_context({"svg.hashsalt": "compare2score"}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], dpi=150, metadata={"Date": None})
    return paths
