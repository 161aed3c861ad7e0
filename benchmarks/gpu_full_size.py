"""The full-size comparator on one NVIDIA GPU, in torch: fused five-way scoring against the published loop.

    python -m compare2score.benchmarks.gpu_full_size --out benchmarks/results

makes mPLUG-Owl2 with LLaMA-2-7B at its published sizes, with random weights (time does not depend on them),
and writes gpu_full_size.json: how far the two ways' answers differ, what a score takes in each, how much
memory, and which part of the GPU's own matrix rate is reached. Both start from pixels on the GPU; nothing is
decoded or resized. On a GPU the fused way runs as one CUDA graph, the loop as published, call by call.

Not yet run on a GPU: the machine that this was written on has none. Its logic is tested on the CPU with a
small comparator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from compare2score.benchmarks.architectures import VisionSize, mplug_owl2
from compare2score.benchmarks.latency import timing_values
from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.benchmarks.timing import Limits, Timing, measure_rounds, timed
from compare2score.benchmarks.workload import DecoderSize, Workload
from compare2score.comparator.mplug_owl2 import MplugOwl2Comparator, MplugOwl2Config
from compare2score.comparator.prompt import IMAGE_MARK, PromptTokens

Stopwatch = Callable[[Callable[[], object]], float]
"""Seconds that a call takes, its work on the GPU included."""
Dtype = Literal["bfloat16", "float16"]

ANCHORS = 5
CLOSING = """
29871 3831 1965 411 278 937 1967 29892 825 338 596 11029 21700 363 1473 1967 29973 29871 13 22933 9047 13566
29901 450 11029 310 278 1473 1967 338
"""
PROMPT = PromptTokens(
    ((1, 3148, 1001, 29901, 29871), (259,), tuple(map(int, CLOSING.split()))),
    (20773, 15029, 2788, 2253, 11558),
)
"""LLaMA-2's token ids of the published prompt and of its levels."""
MATRIX = 8192
"""Side of the matrices whose product tells the GPU's rate."""


def random_comparator(
    config: MplugOwl2Config, prompt: PromptTokens, device: str, dtype: torch.dtype, seed: int = 0
) -> MplugOwl2Comparator:
    """A comparator whose weights are made on the device: norms of 1, the rest normal, deviation 0.02."""
    with torch.device("meta"):
        comparator = MplugOwl2Comparator(config, prompt)
    comparator = comparator.to(dtype).to_empty(device=device).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in comparator.named_parameters():
        if "norm" in name or "ffn_ln" in name:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
    return comparator.eval()


class Fused:
    """Scoring as here: the anchors' prefix is computed once; an image takes one vision pass and one call."""

    def __init__(self, comparator: MplugOwl2Comparator, anchors: Tensor) -> None:
        self.comparator = comparator
        self.keys, self.values = comparator.prefix(comparator.encode(anchors))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Level logits [N, A, 5] of images [N, 3, S, S]."""
        return self.comparator.compare(self.comparator.encode(pixels), self.keys, self.values)


def published_loop(comparator: MplugOwl2Comparator, anchors: Tensor, image: Tensor) -> Tensor:
    """Level logits [A, 5] as published: for every anchor two vision passes and one full prompt.

    The whole `lm_head` is applied to all positions, of which the last one's five level words are read.
    """
    prompt = comparator.prompt_tokens
    first, second, closing = prompt.texts
    ids = torch.tensor([[*first, IMAGE_MARK, *second, IMAGE_MARK, *closing]])
    answers = []
    for anchor in anchors:
        tokens = comparator.encode(torch.stack([anchor, image]))
        answers.append(comparator.logits(ids, tokens)[0, -1, list(prompt.level_ids)])
    return torch.stack(answers)


class KeptConstants(TorchFunctionMode):
    """Keeps what is copied from the CPU in one call, and gives the same again, in order, in every later one.

    A comparator makes its rotations and masks on the CPU; the capture of a CUDA graph may hold no such copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []
        self.next: Iterator[Tensor] | None = None

    def again(self) -> KeptConstants:
        """Begins a later call."""
        self.next = iter(self.kept)
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        moves = func is Tensor.to and args[0].device.type == "cpu"
        makes = func is torch.tensor and torch.device((kwargs or {}).get("device") or "cpu").type != "cpu"
        if not moves and not makes:
            return func(*args, **(kwargs or {}))
        if self.next is not None:
            return next(self.next)
        self.kept.append(func(*args, **(kwargs or {})))
        return self.kept[-1]


def captured(call: Callable[[Tensor], Tensor], pixels: Tensor) -> Callable[[], Tensor]:
    """A call on fixed pixels, as one CUDA graph on a GPU; elsewhere as it is."""
    if pixels.device.type != "cuda":
        return lambda: call(pixels)
    constants = KeptConstants()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        with constants:
            call(pixels)
        with constants.again():
            call(pixels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with constants.again(), torch.cuda.graph(graph):
        answer = call(pixels)

    def replay() -> Tensor:
        graph.replay()
        return answer

    return replay


def stopwatch(device: str) -> Stopwatch:
    """CUDA events around a call on a GPU; elsewhere the clock."""
    if not device.startswith("cuda"):
        return timed

    def elapsed(call: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * float(begin.elapsed_time(end))

    return elapsed


def repeated(call: Callable[[], object], watch: Stopwatch, limits: Limits) -> Timing:
    """Times a call again and again."""
    return measure_rounds(lambda: {"": watch(call)}, limits)[""]


@contextmanager
def peak_memory(device: str, row: dict[str, Any]) -> Iterator[None]:
    """Notes in `row` the most bytes that torch held on the GPU meanwhile; None elsewhere."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    yield
    row["peak_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else None


def matrix_rate(device: str, dtype: torch.dtype, limits: Limits, side: int = MATRIX) -> float:
    """The GPU's own rate: operations a second of a product of square matrices, at its median time."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / repeated(lambda: left @ right, stopwatch(device), limits).median


def work_of(comparator: MplugOwl2Comparator) -> Workload:
    """What a score takes, counted from a comparator's sizes."""
    seen, read, decoder = comparator.config.vision, comparator.config.abstractor, comparator.config.decoder
    first, second, closing = map(len, comparator.prompt_tokens.texts)
    vision = VisionSize(
        seen.image,
        seen.patch,
        seen.layers,
        seen.width,
        seen.heads,
        seen.hidden,
        read.queries,
        read.layers,
        read.width,
        read.heads,
        read.hidden,
    )
    size = DecoderSize(
        decoder.layers,
        decoder.width,
        decoder.heads,
        decoder.kv_heads,
        decoder.head_width,
        decoder.hidden,
        decoder.vocabulary,
        texts=(first, second, closing),
        visual=comparator.config.visual_tokens,
        anchors=ANCHORS,
    )
    return mplug_owl2(vision, size)


@torch.inference_mode()
def measure_full_size(
    comparator: MplugOwl2Comparator, batches: Sequence[int], limits: Limits, side: int = MATRIX
) -> dict[str, Any]:
    """Agreement, time and memory of the two ways, with the same weights and images.

    Returns plain values: `differences` of the level logits, the largest and in the logits' deviations;
    `matrix_rate` in operations a second; `rows`, one for the loop and one for each batch of the fused way,
    with the columns of a timing, `flops`, `of_matrix_rate`, `peak_bytes`, and `ratio`, an image in the loop
    over one in the fused way.
    """
    weight = comparator.lm_head.weight
    device, dtype, size = str(weight.device), weight.dtype, comparator.config.vision.image
    generator = torch.Generator(device).manual_seed(1)
    count = max(batches)
    pixels = torch.randn(ANCHORS + count, 3, size, size, device=device, dtype=dtype, generator=generator)
    anchors, images = pixels[:ANCHORS], pixels[ANCHORS:]
    watch, work = stopwatch(device), work_of(comparator)
    rate = matrix_rate(device, dtype, limits, side)
    fused = Fused(comparator, anchors)
    expected, found = published_loop(comparator, anchors, images[0]), fused(images[:1])[0]
    largest = (found - expected).abs().max().item()

    loop: dict[str, Any] = {"way": "published loop", "batch": 1, "flops": work.reference_flops}
    with peak_memory(device, loop):
        timing = repeated(lambda: published_loop(comparator, anchors, images[0]), watch, limits)
    loop |= timing_values(timing, 1) | {"of_matrix_rate": work.reference_flops / timing.median / rate}
    rows = [loop]
    for batch in batches:
        row: dict[str, Any] = {"way": "fused", "batch": batch, "flops": batch * work.flops}
        with peak_memory(device, row):
            timing = repeated(captured(fused, images[:batch]), watch, limits)
        row |= timing_values(timing, batch)
        row["of_matrix_rate"] = batch * work.flops / timing.median / rate
        row["ratio"] = batch * rows[0]["p50"] / timing.median
        rows.append(row)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "cuda_graphs": device.startswith("cuda"),
        "parameters": sum(parameter.numel() for parameter in comparator.parameters()),
        "differences": {"largest": largest, "relative": largest / expected.std().item()},
        "matrix_rate": rate,
        "rows": rows,
    }


def main(
    dtype: Annotated[Dtype, typer.Option(help="Of weights and activations.")] = "bfloat16",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Images a call of the fused way.")] = "1,16",
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="For each measurement.")] = 20.0,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Measures the full-size comparator on this machine's GPU and writes gpu_full_size.json."""
    if not torch.cuda.is_available():
        print("No NVIDIA GPU can be used from torch here; run this on a machine with one.", file=sys.stderr)
        raise typer.Exit(2)
    batches = [int(each) for each in batch.split(",")]
    comparator = random_comparator(MplugOwl2Config(), PROMPT, "cuda", getattr(torch, dtype))
    results = measure_full_size(comparator, batches, Limits(warmup=3, least=20, budget=budget))
    print(write_record("gpu_full_size", results, out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
