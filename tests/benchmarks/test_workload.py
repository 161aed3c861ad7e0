"""Work counted from sizes is what torch counts while the comparators run, and their parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from compare2score import open_bundle  # noqa: E402
from compare2score.benchmarks.architectures import (  # noqa: E402
    LITE2,
    NANO_DECODER,
    nano,
)
from compare2score.benchmarks.cost import count_bundle  # noqa: E402
from compare2score.benchmarks.gpu_full_size import PROMPT, work_of  # noqa: E402
from compare2score.benchmarks.weights import read_comparator  # noqa: E402
from compare2score.comparator.mplug_owl2 import MplugOwl2Comparator, MplugOwl2Config  # noqa: E402
from compare2score.comparator.mplug_owl2_vision import AbstractorConfig, VisionConfig  # noqa: E402
from compare2score.comparator.multiway_llama import MultiwayLlamaConfig  # noqa: E402

SMALL = MplugOwl2Config(
    VisionConfig(image=56, layers=3, width=64, heads=4, hidden=128),
    AbstractorConfig(queries=8, layers=2, width=64, heads=4, hidden=96),
    MultiwayLlamaConfig(layers=3, width=96, heads=6, kv_heads=6, hidden=176, vocabulary=32000),
)


def shapes_only(config):
    with torch.device("meta"):
        comparator = MplugOwl2Comparator(config, PROMPT)
    return comparator.requires_grad_(False)


def flops(call):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


@pytest.mark.parametrize("config", [MplugOwl2Config(), SMALL], ids=["full width", "small"])
def test_operations_and_weights_of_mplug_owl2_are_those_of_the_module(config):
    comparator = shapes_only(config)
    work = work_of(comparator)
    length, width = config.visual_tokens, config.decoder.width
    side = config.vision.image
    encoded, tokens = flops(lambda: comparator.encode(torch.empty(1, 3, side, side, device="meta")))
    keys, values = comparator.prefix(torch.empty(5, length, width, device="meta"))
    compared, _ = flops(lambda: comparator.compare(tokens, keys, values))
    assert (encoded, compared) == (work.vision.flops, work.decoder.flops)
    assert keys.numel() + values.numel() == work.prefix

    ids = torch.tensor([[*PROMPT.texts[0], -200, *PROMPT.texts[1], -200, *PROMPT.texts[2]]])
    pair = torch.empty(2, length, width, device="meta")
    prompted, _ = flops(lambda: comparator.logits(ids, pair))
    assert work.reference_flops == 5 * (2 * encoded + prompted)

    counted = {name: parameter.numel() for name, parameter in comparator.named_parameters()}
    eyes = sum(n for name, n in counted.items() if ".vision_model." in name or ".visual_abstractor." in name)
    embeddings = counted["model.embed_tokens.weight"]
    assert work.vision.weights == eyes
    assert work.reference_weights == 5 * (sum(counted.values()) - embeddings)
    # All of the decoder but the visual tokens' last norm; five rows of the head; the embedded texts.
    texts = sum(map(len, PROMPT.texts[1:]))
    rest = sum(counted.values()) - eyes - embeddings - counted["lm_head.weight"]
    assert work.decoder.weights == rest - width + (5 + texts) * width


def test_operations_of_the_embedded_comparator_are_those_of_its_graphs():
    counted, work = count_bundle(open_bundle()), nano()
    assert (counted["vision"].flops, counted["decoder"].flops) == (work.vision.flops, work.decoder.flops)


def test_weights_of_the_embedded_comparator_are_those_of_its_module():
    comparator, work = read_comparator(open_bundle()), nano()
    config = comparator.config
    stages = [(s.repeats, s.kernel, s.stride, s.expansion, s.channels) for s in config.stages]
    assert stages == list(LITE2)
    assert NANO_DECODER.texts == tuple(len(ids) for ids in config.prompt_ids)
    stored = {name: tensor.numel() for name, tensor in comparator.state_dict().items()}
    decoder = sum(count for name, count in stored.items() if name.startswith("decoder."))
    first_text = stored["decoder.first_text"]
    assert work.decoder.weights == decoder - first_text
    assert work.vision.weights == sum(stored.values()) - decoder
    assert 2 * comparator.prefix(torch.zeros(5, 5, 576))[0].numel() == work.prefix


def test_the_image_is_read_once_for_all_anchors_where_comparison_is_late():
    late = nano().decoder.flops
    causal = nano(decoder=replace(NANO_DECODER, late=False)).decoder.flops
    assert late < causal
