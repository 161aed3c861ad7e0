"""A dry run of a deployment: what a comparator needs on a board, by precision, computed and not measured.

    python -m compare2score.benchmarks.deployment

prints the plan of the published 7B comparator for every board known as a Markdown table.

The rules. Weights of products are stored in the precision (int4: those of matrices, not of convolutions),
with a scale of half precision for each output channel (int8, fp8) or for each block of 64 (int4); all other
numbers are halves. Products of such weights run at the precision's dense rate, int4 at that of fp16, into
which its weights are unpacked; all others, attention's among them, at that of fp16. A part takes the longer
of its operations at those rates and of its bytes at the memory's bandwidth (the roofline; Williams, Waterman
and Patterson, CACM 2009); its bytes are the least: all weights, the anchors' keys and values, what goes in
and comes out, each once. No engine reaches that: it says what cannot be, and which limit is the nearer.
Kernels, the library's own memory and the building of an engine come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compare2score.benchmarks.architectures import MODELS
from compare2score.benchmarks.boards import BOARDS, FP8_SINCE, Board, Rate
from compare2score.benchmarks.speed import markdown
from compare2score.benchmarks.workload import Kind, Part, Product, Workload
from compare2score.engine import Precision

HALF = 2
INT4_BLOCKS = (64, 32, 16)
"""Weights that share a scale, as `export.int4` has them: the first that divides a product's depth."""
PLANNED: tuple[Precision, ...] = ("fp16", "int8", "int4", "fp8")
RATES: Mapping[Precision, Rate] = {"fp16": "fp16", "int8": "int8", "int4": "fp16", "fp8": "fp8"}
REDUCED: Mapping[Precision, tuple[Kind, ...]] = {
    "fp16": (),
    "int8": ("matrix", "convolution"),
    "int4": ("matrix",),
    "fp8": ("matrix", "convolution"),
}
"""The products whose weights a precision makes smaller than halves."""
DOES_NOT_FIT = "does not fit"
NOT_MEASURED = "Computed from published figures, not measured."


@dataclass(frozen=True)
class Deployment:
    """A comparator on a board in one precision, batch 1; sizes in bytes, times in seconds.

    Attributes:
        model, board, precision: what is planned.
        weights: of both parts, scales included.
        prefix: the anchors' keys and values, in half precision.
        activations: the widest moment of either part, if no kernel fuses any.
        engine: the three together.
        memory, reserved: of the board.
        fits: whether the engine fits beside what is reserved.
        flops, traffic: operations and least bytes of a score.
        vision_seconds, decoder_seconds: the roofline times of the parts.
        bound: what limits each part, "compute" or "memory".
    """

    model: str
    board: str
    precision: Precision
    weights: float
    prefix: float
    activations: float
    engine: float
    memory: float
    reserved: float
    fits: bool
    flops: int
    traffic: float
    vision_seconds: float
    decoder_seconds: float
    bound: Mapping[str, str]

    @property
    def seconds(self) -> float:
        """The roofline time of a score."""
        return self.vision_seconds + self.decoder_seconds

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "seconds": self.seconds}


def precisions(board: Board) -> tuple[Precision, ...]:
    """The precisions that a board's tensor cores know."""
    return tuple(each for each in PLANNED if each != "fp8" or board.compute_capability >= FP8_SINCE)


def weight_bytes(part: Part, precision: Precision) -> float:
    """Bytes of a part's weights, scales included."""
    stored = sum(product_bytes(product, precision) for product in part.products)
    return stored + HALF * part.other_weights


def product_bytes(product: Product, precision: Precision) -> float:
    """Bytes of a product's weights, scales included; 0 without any."""
    if product.kind not in REDUCED[precision]:
        return HALF * product.weights
    if precision == "int4":
        block = next((size for size in INT4_BLOCKS if product.depth % size == 0), None)
        return HALF * product.weights if block is None else product.weights * (0.5 + HALF / block)
    return product.weights + HALF * product.scales


def roofline(part: Part, precision: Precision, traffic: float, board: Board) -> tuple[float, str]:
    """Seconds that a part takes at least, and what limits it: "compute" or "memory"."""
    compute = sum(
        product.flops / board.rates[RATES[precision] if product.kind in REDUCED[precision] else "fp16"]
        for product in part.products
    )
    memory = traffic / board.bandwidth
    return (compute, "compute") if compute >= memory else (memory, "memory")


def deploy(work: Workload, board: Board, precision: Precision) -> Deployment:
    """Plans one precision. Raises KeyError for one whose rate the board does not state."""
    weights = weight_bytes(work.vision, precision), weight_bytes(work.decoder, precision)
    prefix = HALF * work.prefix
    traffic = (
        weights[0] + HALF * work.vision.boundary,
        weights[1] + prefix + HALF * work.decoder.boundary,
    )
    vision_seconds, vision_bound = roofline(work.vision, precision, traffic[0], board)
    decoder_seconds, decoder_bound = roofline(work.decoder, precision, traffic[1], board)
    activations = HALF * max(work.vision.live, work.decoder.live)
    engine = sum(weights) + prefix + activations
    return Deployment(
        model=work.name,
        board=board.name,
        precision=precision,
        weights=sum(weights),
        prefix=prefix,
        activations=activations,
        engine=engine,
        memory=board.memory,
        reserved=board.reserved,
        fits=engine + board.reserved <= board.memory,
        flops=work.flops,
        traffic=sum(traffic),
        vision_seconds=vision_seconds,
        decoder_seconds=decoder_seconds,
        bound={"vision": vision_bound, "decoder": decoder_bound},
    )


def plan(work: Workload, board: Board) -> list[Deployment]:
    """All precisions that a board's tensor cores know."""
    return [deploy(work, board, precision) for precision in precisions(board)]


@dataclass(frozen=True)
class Published:
    """The published way to the same score on a board, in fp16 as published: see `Workload`.

    Attributes:
        weights: bytes of its weights, which are read once an anchor.
        fits: whether they fit beside what is reserved.
        flops: operations of a score.
        seconds: the roofline time of a score.
    """

    weights: float
    fits: bool
    flops: int
    seconds: float


def published(work: Workload, board: Board) -> Published:
    """Plans the published way."""
    read = HALF * work.reference_weights
    weights = read / work.anchors
    seconds = max(work.reference_flops / board.rates["fp16"], read / board.bandwidth)
    return Published(weights, weights + board.reserved <= board.memory, work.reference_flops, seconds)


def least(planned: Deployment | Published) -> str:
    """The roofline time of what fits, in three digits: it is a bound and no more."""
    if not planned.fits:
        return DOES_NOT_FIT
    unit, scale = next(
        (unit, scale)
        for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
        if planned.seconds * scale >= 1
    )
    return f"{planned.seconds * scale:.3g} {unit}"


def gigabytes(size: float) -> str:
    return f"{1e-9 * size:.1f} GB" if size >= 1e8 else f"{1e-6 * size:.1f} MB"


def boards_table(work: Workload) -> str:
    """Engine memory and least time of a score, a row a board, a column a precision.

    Of the published loop, the weights and the least time in fp16.
    """
    header = ["board", "memory", "bandwidth", *PLANNED, "published loop, fp16"]
    rows = []
    for board in BOARDS.values():
        planned = {each.precision: f"{gigabytes(each.engine)}, {least(each)}" for each in plan(work, board)}
        loop = published(work, board)
        rows.append(
            [
                board.name,
                f"{1e-9 * board.memory:.0f} GB",
                f"{1e-9 * board.bandwidth:,.0f} GB/s",
                *(planned.get(name, f"no {name}") for name in PLANNED),
                f"{gigabytes(loop.weights)}, {least(loop)}",
            ]
        )
    return markdown(header, rows)


def main() -> None:
    """Prints the table."""
    print(f"{boards_table(MODELS['7b']())}\n\n{NOT_MEASURED}")


if __name__ == "__main__":
    main()
