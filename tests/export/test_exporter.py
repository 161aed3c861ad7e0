"""An exported comparator computes what torch computes, and its bundle scores photographs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from scipy.stats import norm, spearmanr

from compare2score import BundleError, Scorer
from compare2score.anchors.precompute import replace_anchors
from compare2score.errors import ExportError
from compare2score.export.drift import Drift, LabelledImages, measure_drift
from compare2score.export.exporter import export_bundle
from compare2score.export.graphs import check_parity
from compare2score.image import preprocess

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def photos(texture, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        Image.fromarray(texture(i, 80)).save(path)
    return paths


@pytest.fixture(scope="module")
def comparator(tiny_comparator):
    return tiny_comparator()


@pytest.fixture(scope="module")
def reports(comparator, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    labelled = LabelledImages("textures", tuple(photos), np.arange(len(photos), dtype=np.float64))
    fp32 = export_bundle(comparator, folder / "fp32", "fp32", photos[:5])
    int8 = export_bundle(comparator, folder / "int8", "int8", photos[:5], (labelled,), {"data": "textures"})
    return {"fp32": fp32, "int8": int8}


def run(path: Path, **given) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in given.items()})


@pytest.mark.parametrize("images", [1, 3, 7])
@pytest.mark.parametrize("anchors", [1, 2, 6])
@torch.inference_mode()
def test_graphs_equal_torch_at_any_batch_size(comparator, reports, images, anchors):
    bundle = reports["fp32"].bundle
    pixels = torch.randn(images, 3, 64, 64)
    tokens = comparator.encode(pixels)
    keys, values = comparator.prefix(comparator.encode(torch.randn(anchors, 3, 64, 64)))
    expected = comparator.compare(tokens, keys, values)
    np.testing.assert_allclose(run(bundle.graph("vision"), pixels=pixels)[0], tokens, atol=1e-4)
    given = {"visual_tokens": tokens, "prefix_keys": keys, "prefix_values": values}
    np.testing.assert_allclose(run(bundle.graph("decoder"), **given)[0], expected, atol=1e-4)
    for output, reference in zip(
        run(bundle.graph("prefix"), visual_tokens=tokens), comparator.prefix(tokens), strict=True
    ):
        np.testing.assert_allclose(output, reference, atol=1e-4)


@torch.inference_mode()
def test_a_score_is_the_maximum_of_torchs_own_posterior(comparator, reports, photos):
    config = comparator.config
    pixels = [torch.from_numpy(preprocess(path, config.image)[None]) for path in photos[:6]]
    tokens = [comparator.encode(pixel) for pixel in pixels]
    preferred = np.full((6, 6), 0.5)
    for i in range(6):
        for j in range(6):
            logits = comparator.compare(tokens[i], *comparator.prefix(tokens[j]))[0, 0]
            levels = torch.softmax(logits.double() / config.temperature, dim=0).numpy()
            preferred[i, j] = levels @ config.level_weights
    matrix = (preferred + 1 - preferred.T) / 2
    matrix[5, :5], matrix[:5, 5] = preferred[5, :5], 1 - preferred[5, :5]

    def loss(q):
        differences = q[:, None] - q[None, :]
        return 0.5 * q @ q - (matrix * norm.logcdf(differences))[~np.eye(6, dtype=bool)].sum()

    best = minimize(loss, np.zeros(6), tol=1e-12).x[5]
    assert Scorer(reports["fp32"].bundle.path).score(photos[5]).q == pytest.approx(best, abs=1e-5)


@torch.inference_mode()
def test_eight_bits_answer_closely(comparator, reports):
    tokens = comparator.encode(torch.randn(6, 3, 64, 64))
    keys, values = comparator.prefix(comparator.encode(torch.randn(5, 3, 64, 64)))
    given = {"visual_tokens": tokens, "prefix_keys": keys, "prefix_values": values}
    exact, small = (run(reports[name].bundle.graph("decoder"), **given)[0] for name in ("fp32", "int8"))
    error = np.abs(small - exact).max()
    assert 0 < error < 0.05 * np.abs(exact).max()


def test_eight_bits_say_what_they_cost(reports):
    (drift,) = reports["int8"].drifts
    assert drift.images == 12
    assert 0 < drift.mean_q_change < 0.05
    assert reports["int8"].bundle.manifest.notes["data"] == "textures"
    assert reports["int8"].bundle.manifest.notes["drift"][0]["srcc"] == drift.srcc
    sizes = {
        name: sum(file.stat().st_size for file in report.bundle.path.glob("decoder.*"))
        for name, report in reports.items()
    }
    assert sizes["int8"] < sizes["fp32"]


def test_a_score_does_not_depend_on_the_batch(reports, photos):
    scorer = Scorer(reports["int8"].bundle.path)
    together = [score.q for score in scorer.score_many(photos, batch=12)]
    alone = [scorer.score(path).q for path in photos]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_drift_is_accepted_up_to_five_thousandths_of_srcc():
    drift = Drift("set", 10, srcc_fp32=0.8, srcc=0.7951, rank_correlation=1.0, mean_q_change=0.0)
    assert drift.accepted
    assert not replace(drift, srcc=0.7949).accepted


def test_drift_of_a_bundle_from_itself_is_none(reports, photos):
    path = reports["fp32"].bundle.path
    mos = np.random.default_rng(0).permutation(12).astype(np.float64)
    drift = measure_drift(path, path, LabelledImages("set", tuple(photos), mos))
    scores = [Scorer(path).score(photo).q for photo in photos]
    assert (drift.rank_correlation, drift.mean_q_change) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert drift.srcc == pytest.approx(spearmanr(scores, mos).statistic)


def test_a_graph_of_other_weights_is_refused(tiny_comparator, reports):
    with pytest.raises(ExportError, match=r"differs from torch"):
        check_parity(tiny_comparator(seed=1), reports["fp32"].bundle.path)


@torch.inference_mode()
def test_experts_and_their_gate_are_exported(tiny_comparator, photos, tmp_path):
    comparator = tiny_comparator(experts=1)
    bundle = export_bundle(comparator, tmp_path / "experts", "fp32", photos[:5]).bundle
    pixels = torch.from_numpy(np.stack([preprocess(path, comparator.config.image) for path in photos]))
    tokens = comparator.encode(pixels)
    np.testing.assert_allclose(run(bundle.graph("vision"), pixels=pixels)[0], tokens, atol=1e-4)
    common = comparator.abstractor(comparator.run_frozen(pixels, 4)[1])
    assert (common - tokens).abs().max() > 1e-2


def test_no_weight_is_left_to_transpose_at_run_time(reports):
    for name in ("vision", "prefix", "decoder"):
        graph = onnx.load(reports["fp32"].bundle.graph(name)).graph
        weights = {tensor.name for tensor in graph.initializer}
        assert not [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]


def test_new_anchors_on_the_exported_graphs(reports, photos, tmp_path):
    bundle = replace_anchors(reports["int8"].bundle, photos[5:9], tmp_path / "new")
    assert bundle.anchors.names == ("5.png", "6.png", "7.png", "8.png")
    matrix = bundle.anchors.matrix
    np.testing.assert_allclose(matrix + matrix.T, 1, atol=1e-12)
    assert len(Scorer(bundle.path).score(photos[0]).probabilities) == 4
    with pytest.raises(BundleError, match=r"too few"):
        replace_anchors(bundle, photos[:1], tmp_path / "one")
    shutil.rmtree(bundle.path)


def test_an_existing_folder_is_not_overwritten(comparator, photos, tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(BundleError, match=r"exists already"):
        export_bundle(comparator, tmp_path / "kept", "fp32", photos[:5])


def test_half_precision_keeps_the_order_and_a_known_matrix_is_taken_over(comparator, photos, tmp_path):
    labelled = LabelledImages("textures", tuple(photos), np.arange(len(photos), dtype=np.float64))
    known = np.where(
        np.eye(5, dtype=bool), 0.5, np.triu(np.full((5, 5), 0.1)) + np.tril(np.full((5, 5), 0.9))
    )
    report = export_bundle(
        comparator, tmp_path / "fp16", "fp16", photos[:5], (labelled,), anchor_matrix=known
    )
    anchors = report.bundle.anchors
    np.testing.assert_array_equal(anchors.matrix, known)
    assert anchors.prefix.keys.dtype == np.float16
    assert anchors.visual_tokens.dtype == np.float32
    assert report.drifts[0].rank_correlation > 0.99
    assert {path.name for path in tmp_path.iterdir()} == {"fp16"}


def test_a_matrix_of_other_anchors_is_refused_before_the_work(comparator, photos, tmp_path):
    with pytest.raises(ExportError, match="is of 5 anchors, not 3; give the published anchors"):
        export_bundle(comparator, tmp_path / "new", "fp32", photos[:3], anchor_matrix=np.full((5, 5), 0.5))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_sentence(comparator, photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        ExportError, match=r"cannot be written \(.+\); make room there or choose another place\."
    ):
        export_bundle(comparator, tmp_path / "file" / "bundle", "fp32", photos[:5])


def test_an_order_that_changes_is_not_accepted_even_if_it_fits_people_better():
    drift = Drift("set", 10, srcc_fp32=0.5, srcc=0.6, rank_correlation=0.989, mean_q_change=0.0)
    assert not drift.accepted
    assert replace(drift, rank_correlation=0.99).accepted
