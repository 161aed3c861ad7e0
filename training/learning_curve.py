"""A training run's learning curve."""

from __future__ import annotations

import json
from pathlib import Path


def plot_log(folder: Path) -> None:
    """Draws `log.jsonl` as `log.png`: losses left, what validation found right, if there was any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    known = sorted(set().union(*rows))
    panels = {
        "cross entropy": {name: name for name in ("train_loss", "val_loss") if name in known},
        "validation SRCC": {n: n.removeprefix("val_srcc_") for n in known if n.startswith("val_srcc_")},
        "validation accuracy": {n: n for n in known if n == "val_accuracy"},
    }
    drawn = {label: names for label, names in panels.items() if names}
    figure, axes = pyplot.subplots(
        1, len(drawn), figsize=(4.5 * len(drawn), 3.2), layout="constrained", squeeze=False
    )
    for panel, (label, names) in zip(axes[0], drawn.items(), strict=True):
        for name, shown in names.items():
            panel.plot(
                [row["epoch"] for row in rows], [row.get(name) for row in rows], marker="o", label=shown
            )
        panel.set(xlabel="epoch", ylabel=label)
        panel.legend()
    figure.savefig(folder / "log.png", dpi=120)
    pyplot.close(figure)
