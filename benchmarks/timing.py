"""Timing: warm-up, repeats until the variation settles or a budget is spent, percentiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compare2score.benchmarks.energy import Meter

FEWEST = 3
"""Rounds that are made even where the budget is spent sooner: fewer have no deviation to speak of."""


@dataclass(frozen=True)
class Limits:
    """How long something is repeated.

    Attributes:
        warmup: rounds that are made first and not counted.
        least, most: rounds that are counted.
        budget: seconds after which no further round begins.
        variation: coefficient of variation (standard deviation over mean) at which the rounds may end.
    """

    warmup: int = 3
    least: int = 10
    most: int = 1000
    budget: float = 20.0
    variation: float = 0.05


@dataclass(frozen=True)
class Timing:
    """Seconds of every counted round.

    Attributes:
        seconds: one value a round.
        stable: whether their coefficient of variation came within the limit, in enough rounds.
        joules: energy of a round by meter; empty where the machine cannot tell.
    """

    seconds: tuple[float, ...]
    stable: bool
    joules: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return float(np.mean(self.seconds))

    @property
    def std(self) -> float:
        """Of the sample; 0 for a single round."""
        return float(np.std(self.seconds, ddof=1)) if len(self.seconds) > 1 else 0.0

    @property
    def variation(self) -> float:
        """Coefficient of variation."""
        return self.std / abs(self.mean) if self.mean else 0.0

    def percentile(self, p: float) -> float:
        """The value below which p per cent of the rounds lie, interpolated."""
        return float(np.percentile(self.seconds, p))

    @property
    def median(self) -> float:
        return self.percentile(50)


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    start = clock()
    call()
    return clock() - start


def measure(
    call: Callable[[], object],
    limits: Limits,
    meters: Sequence[Meter] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times one thing again and again; meters are read before the first counted round and after the last."""
    return measure_rounds(lambda: {"": timed(call, clock)}, limits, meters=meters, clock=clock)[""]


def measure_rounds(
    measured_round: Callable[[], Mapping[str, float]],
    limits: Limits,
    decisive: Sequence[str] = (),
    meters: Sequence[Meter] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Repeats a round that times several things, so that all of them see the same moments of the machine.

    Args:
        measured_round: does everything once; seconds by name.
        limits: when to stop.
        decisive: names whose variation decides; all of them if empty.
        meters, clock: see `measure`.

    Returns:
        The timing of every name, each with its own verdict on stability.
    """
    for _ in range(limits.warmup):
        measured_round()
    rounds: list[Mapping[str, float]] = []
    before = [meter.joules() for meter in meters]
    begin = clock()
    while True:
        rounds.append(measured_round())
        enough = len(rounds) >= limits.least
        names = decisive or tuple(rounds[0])
        spent = clock() - begin >= limits.budget and len(rounds) >= FEWEST
        settled = enough and all(is_stable(rounds, name, limits) for name in names)
        if settled or spent or len(rounds) >= limits.most:
            break
    joules = {
        meter.name: (meter.joules() - start) / len(rounds)
        for meter, start in zip(meters, before, strict=True)
    }
    return {
        name: Timing(tuple(each[name] for each in rounds), is_stable(rounds, name, limits), joules)
        for name in rounds[0]
    }


def is_stable(rounds: Sequence[Mapping[str, float]], name: str, limits: Limits) -> bool:
    """Whether one name's seconds vary no more than the limit, over enough rounds to tell."""
    seconds = tuple(each[name] for each in rounds)
    return len(seconds) >= max(2, limits.least) and Timing(seconds, False).variation <= limits.variation
