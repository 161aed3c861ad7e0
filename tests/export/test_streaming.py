"""The published architecture, exported from shapes and weights read one at a time, answers as torch does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from PIL import Image

import compare2score.export.streaming as streaming
from compare2score import Scorer
from compare2score.bundle import open_bundle
from compare2score.comparator.checkpoint import load_comparator
from compare2score.errors import ExportError
from compare2score.export.exporter import IN_HALVES, export_bundle, lower
from compare2score.export.graphs import check_parity, trace_graphs
from compare2score.export.half import to_half
from compare2score.export.int4 import to_int4
from compare2score.export.sharing import write_graphs
from compare2score.export.streaming import is_large, open_streamed

pytestmark = pytest.mark.filterwarnings("ignore")
HALF_TOLERANCE = 0.01
"""Largest difference of a float16 level logit from float32's; logits are about 1, their temperature 100."""


@pytest.fixture(scope="module")
def comparator(owl_checkpoint):
    return load_comparator(owl_checkpoint)


@pytest.fixture(scope="module")
def reads() -> list[str]:
    """Names of the weights that were read, in order."""
    return []


@pytest.fixture(scope="module")
def folders(owl_checkpoint, reads, tmp_path_factory) -> dict[str, Path]:
    """Graphs of the streamed comparator in three precisions; those below float32 are made from its files."""
    work = tmp_path_factory.mktemp("graphs")
    shapes, read = open_streamed(owl_checkpoint)

    def counted(name: str) -> torch.Tensor:
        reads.append(name)
        return read(name)

    graphs = trace_graphs(shapes, counted)
    reads.append("traced")
    write_graphs(graphs, work / "fp32")
    for precision in ("fp16", "int4"):
        stored = {name: ir.load(work / "fp32" / f"{name}.onnx") for name in graphs}
        lower(stored, precision)
        write_graphs(stored, work / precision)
    return {precision: work / precision for precision in ("fp32", "fp16", "int4")}


@pytest.fixture(scope="module")
def pixels(comparator) -> torch.Tensor:
    size = comparator.spec.image.size
    return torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def expected(comparator, pixels) -> np.ndarray:
    """Level logits [5] of the last image against each of the others: five separate full prompts in torch."""
    prompt = comparator.prompt_tokens
    first, second, closing = prompt.texts
    ids = torch.tensor([[*first, -200, *second, -200, *closing]])
    with torch.inference_mode():
        tokens = comparator.encode(pixels)
        rows = [comparator.logits(ids, tokens[[anchor, 5]])[0, -1] for anchor in range(5)]
    return torch.stack(rows)[:, list(prompt.level_ids)].numpy()


def answers(folder: Path, pixels: torch.Tensor) -> np.ndarray:
    """The same from the graphs: one vision pass, stored prefixes, five comparisons in one call."""

    def run(name: str, **given: np.ndarray) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, given)

    (tokens,) = run("vision", pixels=pixels.numpy())
    keys, values = run("prefix", visual_tokens=tokens[:5])
    given = {"visual_tokens": tokens[5:], "prefix_keys": keys, "prefix_values": values}
    return run("decoder", **given)[0][0]


def test_fused_comparisons_equal_separate_full_prompts_of_torch(folders, pixels, expected):
    np.testing.assert_allclose(answers(folders["fp32"], pixels), expected, atol=1e-4)


def test_in_half_precision_they_are_within_the_stated_tolerance(folders, pixels, expected):
    difference = np.abs(answers(folders["fp16"], pixels) - expected).max()
    assert 0 < difference < HALF_TOLERANCE


@pytest.mark.slow
def test_in_eight_bits_they_are_nearly_torchs(comparator, pixels, expected, tmp_path):
    size = comparator.spec.image.size
    noise = np.random.default_rng(2).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    photos = [tmp_path / f"{place}.png" for place in range(3)]
    for path, picture in zip(photos, noise, strict=True):
        Image.fromarray(picture).save(path)
    bundle = export_bundle(comparator, tmp_path / "bundle", "int8", photos).bundle
    found = answers(bundle.path, pixels)
    assert np.abs(found - expected).max() > 0
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_in_four_bits_they_still_follow(folders, pixels, expected):
    found = answers(folders["int4"], pixels)
    # Random weights of a tiny model have no redundancy to spare.
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.8


def test_the_graphs_equal_torch_at_any_batch_size(folders, comparator):
    assert max(check_parity(comparator, folders["fp32"]).values()) <= 1e-4


def test_a_weight_is_read_when_it_is_written_and_only_then(folders, reads, owl_checkpoint):
    before, after = reads[: reads.index("traced")], reads[reads.index("traced") + 1 :]
    large = {name for name in after if name.endswith("_proj.weight")}
    assert large
    # The optimiser asks for the values of small ones, such as norms' scales and biases.
    assert not large & set(before)
    assert all(after.count(name) == 1 for name in large)


def test_of_words_and_head_only_the_rows_of_the_prompt_are_stored(folders, comparator):
    width = comparator.config.decoder.width
    words = sum(len(text) for text in comparator.prompt_tokens.texts)
    found = {}
    for name in ("prefix", "decoder"):
        for tensor in onnx.load(folders["fp32"] / f"{name}.onnx").graph.initializer:
            if tensor.name.startswith(("model.embed_tokens", "lm_head")):
                found[tensor.name] = list(tensor.dims)
    assert sum(dims[0] for name, dims in found.items() if name.startswith("model")) == words
    assert [dims for name, dims in found.items() if name.startswith("lm_head")] == [[5, width]]


def test_precisions_cost_the_bytes_they_promise(folders):
    sizes = {name: (folder / "decoder.weights").stat().st_size for name, folder in folders.items()}
    assert 0.49 < sizes["fp16"] / sizes["fp32"] < 0.52
    assert sizes["int4"] < 0.2 * sizes["fp32"]


def test_of_the_interface_only_keys_and_values_are_in_half(folders):
    for name in ("vision", "prefix", "decoder"):
        graph = onnx.load(folders["int4"] / f"{name}.onnx", load_external_data=False).graph
        for value in (*graph.input, *graph.output):
            kind = onnx.TensorProto.FLOAT16 if value.name in IN_HALVES else onnx.TensorProto.FLOAT
            assert value.type.tensor_type.elem_type == kind


def test_a_small_checkpoint_is_not_streamed_and_a_large_one_is(owl_checkpoint, monkeypatch):
    assert not is_large(owl_checkpoint)
    monkeypatch.setattr(streaming, "STREAMED_BYTES", 1000)
    assert is_large(owl_checkpoint)


def test_eight_bits_of_streamed_weights_are_refused(owl_checkpoint, tmp_path):
    shapes, read = open_streamed(owl_checkpoint)
    with pytest.raises(ExportError, match="choose fp16 or int4"):
        export_bundle(shapes, tmp_path / "new", "int8", [], read=read)


@pytest.mark.slow
def test_one_command_leads_from_a_checkpoint_to_a_scored_image(owl_checkpoint, texture, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for place in range(3):
        Image.fromarray(texture(place, 80)).save(photos / f"{place}.png")

    def c2s(*arguments: str) -> str:
        command = [sys.executable, "-m", "compare2score.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    bundle = tmp_path / "bundle"
    c2s("export", str(owl_checkpoint), "--anchors", str(photos), "--out", str(bundle), "--precision", "fp16")
    answer = json.loads(c2s("score", "--bundle", str(bundle), "--json", str(photos / "1.png")))
    manifest = open_bundle(bundle).manifest
    assert (manifest.model, manifest.precision, manifest.temperature) == ("mplug_owl2", "fp16", 100)
    assert answer["q"] == pytest.approx(Scorer(bundle).score(photos / "1.png").q)


@pytest.mark.slow
def test_full_width_streams_within_three_gib(tmp_path):
    """Two layers of the published width, in a process of their own, whose memory is measured."""
    code = """
import resource, sys
from pathlib import Path
import torch
from compare2score.benchmarks import full_size
from compare2score.export.exporter import lower
from compare2score.export.graphs import trace_graphs
from compare2score.export.sharing import write_graphs
from compare2score.export.streaming import open_streamed
torch.set_num_threads(1)
work = Path(sys.argv[1])
full_size.SHARD_BYTES = 1 << 28
full_size.write_checkpoint(work / "checkpoint", layers=2, vision_layers=2)
shapes, read = open_streamed(work / "checkpoint")
graphs = trace_graphs(shapes, read)
lower(graphs, "fp16")
write_graphs(graphs, work / "graphs")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < 3 << 20  # in KiB
    weights = (tmp_path / "graphs" / "decoder.weights").stat().st_size
    # Two layers of 6 * 4096^2 and 3 * 4096 * 11008 weights, two bytes each.
    assert 0.9e9 < weights < 1.0e9


def test_the_passes_keep_what_they_are_given(folders):
    model = ir.load(folders["fp32"] / "decoder.onnx")
    assert to_int4(model) is model
    assert to_half(model, IN_HALVES) is model
