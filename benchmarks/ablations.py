"""What each part of the nano comparator brings: the same features, several seeds.

    python -m compare2score.benchmarks.ablations --data DIR --data DIR --expert TABLE --cache FOLDER

Every row is trained anew from its own seed, on the rated images alone and on the encoder as it comes from
ImageNet, and scored on the test rows in torch, as the runtime scores. What tuning the encoder brings is not
among the rows, for it takes an hour a seed: a training run's learning curves show it.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.comparator.decoder import Comparison
from compare2score.comparator.nano import NanoComparator, NanoConfig
from compare2score.pipelines.correlation import srcc
from compare2score.training.corpus import Corpus, read_corpus
from compare2score.training.features import FrozenFeatures, cached_features
from compare2score.training.finetune import Finetuner, estimate_against
from compare2score.training.nano import calibrate_abstractor, keep_freed_memory
from compare2score.training.pretrained import pretrained_nano
from compare2score.training.recipe import Recipe

Array = NDArray[np.float64]
DECODER_EPOCHS = 1


@dataclass(frozen=True)
class Row:
    """One way to train the decoder.

    Attributes:
        name: what the table calls it.
        layers, comparison: of the decoder.
        pretrained: whether the layers begin as SmolLM2's, or at random.
        distil: whether the probe teaches, or the labels do.
    """

    name: str
    layers: int = 2
    comparison: Comparison = "late"
    pretrained: bool = True
    distil: bool = True


ROWS = (
    Row("as shipped: 2 layers, pretrained, late, taught by the probe"),
    Row("labels teach the decoder", distil=False),
    Row("random layers", pretrained=False),
    Row("causal comparison", comparison="causal"),
    Row("1 layer", layers=1),
    Row("4 layers", layers=4),
)
NO_DECODER = "no decoder: the probe's quality, the gate weighs the abstractors"
GIVEN = "no decoder, each image's abstractor given"
SHARED = "no decoder, one abstractor for all"
ALONE = "no decoder, a model for each table alone"
PROBED = (ALONE, SHARED, GIVEN, NO_DECODER)


@dataclass(frozen=True)
class Data:
    """The corpus to train on and the rows to report on, each with what the encoder makes of them."""

    corpus: Corpus
    features: FrozenFeatures
    test: Corpus
    test_features: FrozenFeatures

    @property
    def shared(self) -> Data:
        """The same without experts."""
        return replace(self, corpus=of_one_kind(self.corpus), test=of_one_kind(self.test))

    def test_tokens(self, model: NanoComparator, items: NDArray[np.intp]) -> torch.Tensor:
        """Visual tokens [N, T, D] of test images."""
        return tokens(model, self.test_features, items)


def of_one_kind(corpus: Corpus) -> Corpus:
    """A corpus whose images are all the common abstractor's."""
    return replace(corpus, parts=tuple(replace(part, kind=0) for part in corpus.parts))


pretrained = functools.cache(pretrained_nano)
"""Reading the decoder's weights takes longer than some rows; what it returns is not to be changed."""


def tokens(model: NanoComparator, features: FrozenFeatures, items: NDArray[np.intp]) -> torch.Tensor:
    """Visual tokens [N, T, D] from completed features."""
    with torch.inference_mode():
        return model.tokens_from(torch.from_numpy(features.statistics[0, items]))


def probe_phase(data: Data, config: NanoConfig, seed: int, folder: Path) -> Finetuner:
    """Abstractors and a probe trained from a seed."""
    torch.manual_seed(seed)
    # Features are completed and no decoder is asked: nothing pretrained is needed.
    model = NanoComparator(replace(config, experts=max(part.kind for part in data.corpus.parts)))
    calibrate_abstractor(model, data.features)
    recipe = Recipe(encoder_epochs=0, decoder_epochs=0, seed=seed)
    finetuner = Finetuner(model, data.corpus, data.features, recipe, folder)
    finetuner.resume()
    finetuner.run()
    model.eval()
    finetuner.probe.eval()
    return finetuner


def probe_srcc(data: Data, trained: Finetuner, given: bool = True) -> dict[str, float]:
    """SRCC of the probe's quality by test table; images' kinds are given, or told by the gate."""
    found = {}
    for part in data.test.parts:
        statistics = torch.from_numpy(data.test_features.statistics[0, part.items])
        model = trained.model
        with torch.inference_mode():
            read = model.abstractors[part.kind](statistics) if given else model.tokens_from(statistics)
            quality = trained.probe(read)
        found[part.name] = srcc(quality.double().numpy(), part.mos)
    return found


def alone_srcc(data: Data, config: NanoConfig, seed: int, folder: Path) -> dict[str, float]:
    """SRCC of a probe that has seen no other table, by test table."""
    found = {}
    data = data.shared
    for name in [part.name for part in data.test.parts]:
        parts = tuple(part for part in data.corpus.parts if part.name == name)
        only = replace(data, corpus=replace(data.corpus, parts=parts))
        found[name] = probe_srcc(data, probe_phase(only, config, seed, folder / name))[name]
    return found


def decoder_phase(data: Data, row: Row, trained: Finetuner, seed: int, folder: Path) -> NanoComparator:
    """A decoder trained a row's way, on the tokens of trained abstractors, read by their probe."""
    torch.manual_seed(seed)
    config = trained.model.config
    model = copy.deepcopy(pretrained(row.layers, config.image.size, row.comparison, config.experts))
    if not row.pretrained:
        for module in model.decoder.layers.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.RMSNorm):
                module.reset_parameters()
    trained_weights = trained.model.state_dict().items()
    read = {name: value for name, value in trained_weights if not name.startswith("decoder.")}
    model.load_state_dict({**model.state_dict(), **read})
    recipe = replace(trained.recipe, decoder_epochs=DECODER_EPOCHS, distil=row.distil)
    finetuner = Finetuner(model, data.corpus, data.features, recipe, folder)
    finetuner.probe.load_state_dict(trained.probe.state_dict())
    finetuner.epoch = recipe.probe_epochs
    finetuner.begin(recipe.phase_of(finetuner.epoch))
    finetuner.resume()
    finetuner.run()
    return model.eval()


def decoder_srcc(data: Data, model: NanoComparator, anchors: torch.Tensor) -> dict[str, float]:
    """SRCC of MAP scores against the same anchors, by test table."""
    found = {}
    for part in data.test.parts:
        q = estimate_against(model, anchors, data.test_tokens(model, part.items)).q[:, -1]
        found[part.name] = srcc(q, part.mos)
    return found


def anchor_sets(data: Data) -> dict[str, NDArray[np.intp]]:
    """Corpus indices of anchors, by how they were chosen."""
    parts = {part.name: part for part in data.corpus.split("train")}
    sets = {}
    for name, part in parts.items():
        for intervals, each in ((3, 1), (5, 1), (5, 2), (5, 3)):
            sets[f"{intervals * each} of {name}"] = part.anchors(intervals, each)
    sets[f"5 of each of {', '.join(parts)}"] = np.concatenate([part.anchors() for part in parts.values()])
    return sets


def interval_cover(q: Array, std: Array, mos: Array) -> float:
    """Share of the images whose q +- 1.96 std holds the q that images of their MOS have on average."""
    expected = np.polynomial.Polynomial.fit(mos, q, 3)(mos)
    return float((np.abs(q - expected) <= 1.96 * std).mean())


def anchor_rows(data: Data, model: NanoComparator) -> list[dict[str, Any]]:
    """One trained comparator against other anchors: SRCC and cover of the posterior's interval."""
    rows = []
    for name, items in anchor_sets(data).items():
        anchors = tokens(model, data.features, items)
        row: dict[str, Any] = {"anchors": name, "srcc": {}, "cover": {}}
        for part in data.test.parts:
            found = estimate_against(model, anchors, data.test_tokens(model, part.items))
            q, std = found.q[:, -1], found.std[:, -1]
            row["srcc"][part.name] = srcc(q, part.mos)
            row["cover"][part.name] = interval_cover(q, std, part.mos)
        rows.append(row)
    return rows


def main(
    data: Annotated[list[Path], typer.Option(help="Labelled folder; repeat for more.")],
    expert: Annotated[list[str], typer.Option(help="As in the recipe.")],
    cache: Annotated[Path, typer.Option(help="Where features and finished rows are kept.")],
    std: Annotated[float, typer.Option(help="As in the recipe.")] = 0.06,
    size: Annotated[int, typer.Option(help="As in the recipe.")] = 512,
    seeds: Annotated[int, typer.Option(help="Of every row.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Trains and scores every row; writes ablations.json anew after every seed."""
    keep_freed_memory()
    corpus, test = (
        read_corpus(data, [], 0, (), std, splits=splits, expert=expert)
        for splits in (("train", "val"), ("test",))
    )
    imagenet = pretrained(1, size)
    features, test_features = (
        cached_features(imagenet, images, len(imagenet.encoder.stages), cache / name)
        for name, images in (("train", corpus), ("test", test))
    )
    rated = Data(corpus, features, test, test_features)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*PROBED, *(row.name for row in ROWS))}
    anchor_table: list[dict[str, Any]] = []
    for seed in range(seeds):
        runs = cache / f"runs/{seed}"
        found[ALONE].append(alone_srcc(rated, imagenet.config, seed, runs / "alone"))
        shared = probe_phase(rated.shared, imagenet.config, seed, runs / "shared")
        found[SHARED].append(probe_srcc(rated.shared, shared))
        trained = probe_phase(rated, imagenet.config, seed, runs / "experts")
        found[GIVEN].append(probe_srcc(rated, trained))
        trained.fit_gate()
        found[NO_DECODER].append(probe_srcc(rated, trained, given=False))
        for r, row in enumerate(ROWS):
            model = decoder_phase(rated, row, trained, seed, runs / f"decoder-{r}")
            anchors = tokens(model, features, corpus.parts[0].anchors())
            found[row.name].append(decoder_srcc(rated, model, anchors))
            if seed == r == 0:  # made as shipped
                anchor_table = anchor_rows(rated, model)
        results = {
            "rows": [{"name": name, "srcc": values} for name, values in found.items()],
            "settings": [asdict(row) for row in ROWS],
            "decoder_epochs": DECODER_EPOCHS,
            "anchors": anchor_table,
        }
        print(write_record("ablations", results, out), flush=True)


if __name__ == "__main__":
    typer.run(main)
