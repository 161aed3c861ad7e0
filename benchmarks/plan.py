"""A plan of measurements: which bundles, how run, what of them; and the calls that carry it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from compare2score.anchors.precompute import replace_anchors
from compare2score.benchmarks.energy import Meter
from compare2score.benchmarks.fresh import measure_cold, measure_memory
from compare2score.benchmarks.latency import (
    Row,
    Subject,
    measure_against,
    measure_estimate,
    measure_latency,
    measure_stages,
    measure_throughput,
)
from compare2score.benchmarks.photographs import write_anchors
from compare2score.benchmarks.record import cores
from compare2score.bundle import open_bundle
from compare2score.scorer import Scorer

if TYPE_CHECKING:
    from compare2score.benchmarks.reference import ReferenceLoop
    from compare2score.benchmarks.timing import Limits

Job = Callable[[], list[Row]]
MODES = ("latency", "throughput", "stages", "cold", "memory", "map")


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be measured, and how.

    Attributes:
        bundles: folders; None is the embedded bundle.
        backends, threads, batches: every combination is measured; None threads are the backend's choice.
        modes: of MODES.
        roofline, against: whether to hold the graphs against the limit, and the scorer against the
            reference loop.
        image: the photograph to score.
        anchors: files that replace the bundles' anchors; without them, and with `against`, five are made,
            because a bundle keeps no photographs and the reference loop decodes them.
        checkpoint: the comparator's, if it is not to be read from the graphs.
        limits: of every measurement.
        scores: after how many memory is looked at again.
        meters: of energy.
    """

    bundles: Sequence[Path | None]
    backends: Sequence[str]
    threads: Sequence[int | None]
    batches: Sequence[int]
    modes: Sequence[str]
    roofline: bool
    against: bool
    image: Path
    anchors: Sequence[Path]
    checkpoint: Path | None
    limits: Limits
    scores: int
    meters: Sequence[Meter] = ()


def planned(plan: Plan, scratch: Path) -> Iterator[Job]:
    """Every measurement of a plan, in order; bundles with other anchors are written to `scratch`.

    Raises what opening a bundle and reading images raise, and BundleError for a bundle without anchors.
    """
    for number, path in enumerate(plan.bundles):
        name, folder, files = "embedded" if path is None else path.resolve().name, path, plan.anchors
        if plan.against and not files:
            pictures = scratch / f"anchors-{number}"
            pictures.mkdir()
            files = write_anchors(pictures)
        if files:
            folder = replace_anchors(open_bundle(path), files, scratch / f"bundle-{number}").path
        loops: list[ReferenceLoop] = []  # one for all settings of a bundle
        for backend in plan.backends:
            for threads in plan.threads:
                scorer = Scorer(folder, backend=backend, threads=threads)
                # Asked now: a bundle without anchors is refused before anything is measured.
                _ = scorer.anchors
                subject = Subject(name, scorer, threads)
                yield from planned_modes(plan, subject, backend)
                for batch in plan.batches if plan.against else ():
                    yield partial(against, plan, subject, batch, files, loops)


def planned_modes(plan: Plan, subject: Subject, backend: str) -> Iterator[Job]:
    """The measurements of one scorer alone."""
    image, limits, meters = plan.image, plan.limits, plan.meters
    for mode in plan.modes:
        if mode == "latency":
            yield partial(measure_latency, subject, image, limits, meters)
        elif mode == "throughput":
            for batch in plan.batches:
                yield partial(measure_throughput, subject, image, batch, limits, meters)
        elif mode == "stages":
            yield partial(measure_stages, subject, image, limits)
        elif mode == "cold":
            yield partial(measure_cold, subject, backend, image, limits)
        elif mode == "memory":
            yield partial(measure_memory, subject, backend, image, plan.batches, plan.scores)
        elif mode == "map":
            yield partial(measure_estimate, subject, limits)
    if plan.roofline:
        from compare2score.benchmarks.roofline import measure_roofline

        yield partial(measure_roofline, subject, limits)


def against(
    plan: Plan, subject: Subject, batch: int, files: Sequence[Path], loops: list[ReferenceLoop]
) -> list[Row]:
    """The reference loop and a scorer in turn, torch on as many threads as the scorer."""
    import torch

    from compare2score.benchmarks.reference import ReferenceLoop
    from compare2score.benchmarks.weights import read_comparator
    from compare2score.comparator.nano import NanoComparator

    torch.set_num_threads(subject.threads or cores())
    if not loops:
        bundle = subject.scorer.bundle
        comparator = NanoComparator.load(plan.checkpoint) if plan.checkpoint else read_comparator(bundle)
        loops.append(ReferenceLoop(comparator, files, subject.scorer.anchors.matrix))
    return measure_against(subject, loops[0], plan.image, batch, plan.limits)
