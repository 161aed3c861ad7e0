"""A training run's learning curve."""

from __future__ import annotations

import json
from pathlib import Path


def plot_log(folder: Path) -> None:
    """Draws `log.jsonl` as `log.png`: losses left, validation SRCC right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for name in ("train_loss", "val_loss"):
        left.plot(epochs, [row.get(name) for row in rows], marker="o", label=name)
    for name in sorted(set().union(*rows)):
        if name.startswith("val_srcc_"):
            right.plot(
                epochs, [row.get(name) for row in rows], marker="o", label=name.removeprefix("val_srcc_")
            )
    left.set(xlabel="epoch", ylabel="cross entropy")
    right.set(xlabel="epoch", ylabel="validation SRCC")
    left.legend()
    right.legend()
    figure.savefig(folder / "log.png", dpi=120)
    pyplot.close(figure)
