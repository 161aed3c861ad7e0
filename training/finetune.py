"""Fine-tunes a nano comparator on comparisons: cross entropy on the level tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from scipy.stats import spearmanr
from torch import Tensor, nn

from compare2score.comparator.nano import NanoComparator
from compare2score.comparison import (
    comparison_probability,
    extend_preference_matrix,
    symmetric_preference_matrix,
)
from compare2score.errors import LabelError
from compare2score.thurstone import MapEstimate, map_estimate
from compare2score.training.batches import PairBatch, epoch_batches, pair_batch, steps_of
from compare2score.training.corpus import Corpus, InstructedPairs, Part
from compare2score.training.features import FrozenFeatures, random_window
from compare2score.training.gate import train_gate
from compare2score.training.learning_curve import plot_log
from compare2score.training.probe import QualityProbe, levels_of, ordinal_loss
from compare2score.training.recipe import ACCOUNT, Module, Phase, Recipe, warm_cosine
from compare2score.training.run_folder import cut_log, log_row, read_state, write_state


def unlabelled(sources: Sequence[Part | InstructedPairs]) -> Part:
    """All images of all sources as one part, whose labels say nothing."""
    items = np.unique(np.concatenate([source.items for source in sources]))
    return Part("all", "train", items, np.zeros(len(items)), np.ones(len(items)), False)


@torch.inference_mode()
def estimate_against(model: NanoComparator, anchors: Tensor, images: Tensor) -> MapEstimate:
    """MAP estimates [N, A + 1] of images, as the runtime makes them; an image's own is its row's last.

    Args:
        model: the comparator.
        anchors: visual tokens of the anchors, [A, T, D].
        images: visual tokens of the images, [N, T, D].
    """
    config = model.config

    def probabilities(second: Tensor) -> np.ndarray:
        logits = torch.cat([model.compare(chunk, keys, values) for chunk in torch.split(second, 32)])
        return comparison_probability(logits.cpu().numpy(), config.level_weights, config.temperature)

    keys, values = model.prefix(anchors)
    matrix = symmetric_preference_matrix(probabilities(anchors))
    return map_estimate(extend_preference_matrix(matrix, probabilities(images)))


class Finetuner:
    """Trains `model` in `folder`: checkpoint after every epoch, log as JSON lines, learning curve as PNG.

    Raises LabelError if the corpus is too small for one batch, or for anchors of a table that is validated.
    """

    def __init__(
        self, model: NanoComparator, corpus: Corpus, features: FrozenFeatures, recipe: Recipe, folder: Path
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        torch.manual_seed(recipe.seed)
        tokens, width = model.config.grid**2 + 1, model.config.decoder.width
        self.probe = QualityProbe(tokens, width).to(self.device)
        self.corpus, self.cached, self.recipe, self.folder = corpus, features, recipe, folder
        self.train_parts = corpus.split("train")
        self.labelled: tuple[Part | InstructedPairs, ...] = (*self.train_parts, *corpus.pairs)
        if not any(steps_of(source, recipe.batch) for source in self.labelled):
            raise LabelError(
                f"Nothing given fills one batch of {recipe.batch} training images; give more images."
            )
        # Chosen before the first epoch: a table that has none should not be found out after it.
        rated = {part.name: part for part in self.train_parts}
        self.anchors = {part.name: rated[part.name].anchors() for part in corpus.split("val")}
        self.kinds = np.zeros(len(corpus.items), dtype=np.intp)
        for part in corpus.parts:
            self.kinds[part.items] = part.kind
        self.epoch = 0
        self.completed: FrozenFeatures | None = None
        self.begin(recipe.phase_of(0))

    def begin(self, phase: Phase) -> None:
        """Makes ready what the phase trains."""
        self.phase = phase
        self.sources = (unlabelled(self.labelled),) if phase.taught else self.labelled
        self.steps_per_epoch = sum(steps_of(source, self.recipe.batch) for source in self.sources)
        modules: dict[Module, nn.Module] = {
            "encoder": self.model.encoder,
            "abstractor": nn.ModuleList(self.model.abstractors),
            "probe": self.probe,
            "decoder": self.model.decoder,
        }
        self.model.requires_grad_(False)  # the gate, too, which no phase trains
        for name, module in modules.items():
            module.requires_grad_(name in phase.rates)
        for frozen in (self.model.encoder.stem, *self.model.encoder.stages[: self.recipe.frozen_stages]):
            frozen.requires_grad_(False)
        for weight, parameter in self.model.encoder.named_parameters():
            if weight.endswith("depthwise.weight"):
                parameter.requires_grad_(False)
        groups = [
            {"params": [p for p in modules[name].parameters() if p.requires_grad], "lr": rate}
            for name, rate in phase.rates.items()
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.recipe.weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate)
        if "encoder" in phase.rates:
            self.completed = None

    @property
    def features(self) -> FrozenFeatures:
        """What the phase's frozen modules make of the images: the cache, or computed when first asked for."""
        if "encoder" in self.phase.rates:
            return self.cached
        if self.completed is None:
            self.completed = self.cached.completed(self.model, self.device)
        return self.completed

    def rate(self, step: int) -> float:
        """Linear warm-up, then cosine decay to zero over the phase's steps, as a factor."""
        return warm_cosine(step, max(1, self.phase.epochs * self.steps_per_epoch), self.recipe.warmup)

    def tokens(
        self, items: np.ndarray, variants: np.ndarray, crops: np.random.Generator | None = None
    ) -> Tensor:
        """Visual tokens [B, T, D] of corpus items, from cached features, cropped by `crops` if given.

        All of a kind, as far as a probe reads them: the gate is trained after it.
        """
        maps, statistics = self.features.of(items, variants, self.device)
        if crops is not None:
            maps = random_window(maps, self.model.cell_multiple(self.features.stages), crops)
        statistics = self.model.statistics_from(maps.to(torch.bfloat16), statistics, self.features.stages)
        if self.phase.probed:
            return self.model.abstractors[self.kinds[items[0]]](statistics)  # type: ignore[no-any-return]
        return self.model.tokens_from(statistics)

    def loss(
        self, batch: PairBatch, variants: np.ndarray, crops: np.random.Generator | None = None
    ) -> Tensor:
        """How far the answers are from the batch's targets: the decoder's levels, or the probe's order."""
        first, second = (torch.from_numpy(index).to(self.device) for index in (batch.first, batch.second))
        targets = torch.from_numpy(batch.targets).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            tokens = self.tokens(batch.items, variants, crops)
            if self.phase.probed:
                quality = self.probe(tokens)
                return ordinal_loss(quality[first] - quality[second], targets)
            if self.phase.taught:
                with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                    quality = self.probe(tokens.float())
                targets = levels_of(quality[first] - quality[second])
            keys, values = self.model.prefix(tokens)
            logits = self.model.decoder(tokens, keys, values, (first, second))
        return nn.functional.cross_entropy(logits.float() / self.model.config.temperature, targets)

    @property
    def partners(self) -> int:
        """All of a batch for the probe, whose comparisons cost nothing."""
        return self.recipe.batch - 1 if self.phase.probed else self.recipe.partners

    def run(self) -> None:
        """Trains the epochs that are left; each ends with validation, a log line and a checkpoint."""
        while self.epoch < self.recipe.epochs:
            phase = self.recipe.phase_of(self.epoch)
            if phase != self.phase:
                self.begin(phase)
                if not phase.probed:
                    self.fit_gate()
            self.run_epoch()

    def fit_gate(self) -> None:
        """Trains the gate between abstractors, if there are experts, on all images that training sees."""
        if self.model.mixture is None:
            return
        gate = self.model.mixture.gate
        items = unlabelled(self.train_parts).items
        statistics = torch.from_numpy(self.features.statistics[:, items]).to(self.device)
        with torch.inference_mode():
            chosen = [gate.select(self.model.abstractor.standardise(view)) for view in statistics]
        train_gate(gate, torch.stack(chosen).clone(), self.kinds[items], self.recipe.seed)

    def run_epoch(self) -> None:
        """Trains one epoch of the phase that was begun."""
        # Dropout is against learning labels by heart: a probe that teaches should see what is there.
        self.model.train(not self.phase.taught)
        self.probe.train(not self.phase.taught)
        # Both depend on the epoch alone, so that a resumed run equals an uninterrupted one.
        torch.manual_seed(self.recipe.seed * 1_000 + self.epoch)
        generator = np.random.default_rng([self.recipe.seed, self.epoch, 1])
        batches = epoch_batches(self.sources, self.recipe.batch, self.partners, self.recipe.seed, self.epoch)
        losses = []
        label = f"Epoch {self.epoch + 1}, {self.phase.name}"
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for batch in track(batches, description=label, total=self.steps_per_epoch):
            variants = generator.integers(0, self.features.variants, len(batch.items))
            loss = self.loss(batch, variants, generator)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, self.recipe.clip)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item())
        self.epoch += 1
        trained_on = {"epoch": self.epoch, "train_loss": float(np.mean(losses))}
        self.record({"phase": self.phase.name, **trained_on, **self.validate()})
        self.save()

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Validation loss, and SRCC of the probe's qualities or the MAP scores against five anchors."""
        self.model.eval()
        self.probe.eval()
        results: dict[str, float] = {}
        losses = []
        for part in self.corpus.split("val"):
            generator = np.random.default_rng(0)
            members = np.arange(len(part.mos) // 16 * 16).reshape(-1, 16)
            for chunk in members:
                batch = pair_batch(part, chunk, self.partners, generator)
                losses.append(self.loss(batch, np.zeros(len(chunk), dtype=np.intp)).item())
            results[f"val_srcc_{part.name}"] = float(spearmanr(self.qualities(part), part.mos).statistic)
        if losses:
            results["val_loss"] = float(np.mean(losses))
        return results

    def qualities(self, part: Part) -> np.ndarray:
        """What the phase makes of a part's images, [N]: the probe's quality, or the decoder's MAP score."""
        if self.phase.probed:
            return self.probe(self.tokens_of_all(part.items)).cpu().numpy()  # type: ignore[no-any-return]
        return self.scores(part.items, self.anchors[part.name])

    def tokens_of_all(self, items: np.ndarray) -> Tensor:
        """Visual tokens [N, T, D] of any number of corpus items."""
        chunks = [items[i : i + 16] for i in range(0, len(items), 16)]
        with torch.autocast(self.device.type, torch.bfloat16):
            return torch.cat([self.tokens(chunk, np.zeros(len(chunk), dtype=np.intp)) for chunk in chunks])

    def scores(self, items: np.ndarray, anchors: np.ndarray) -> np.ndarray:
        """MAP estimates q [N] of corpus items [N] against anchors, corpus items [A]."""
        estimate = estimate_against(self.model, self.tokens_of_all(anchors), self.tokens_of_all(items))
        return estimate.q[:, -1]

    def record(self, row: Mapping[str, float | str]) -> None:
        """Logs and prints a row, and draws the learning curves anew."""
        log_row(self.folder, row)
        plot_log(self.folder)

    def save(self) -> None:
        """Writes the checkpoint and the state to resume from, aside first: a kill loses an epoch at most."""
        self.model.save(self.folder / "checkpoint")
        account = {"recipe": asdict(self.recipe), "epochs_done": self.epoch, "data": self.data()}
        (self.folder / "checkpoint" / ACCOUNT).write_text(json.dumps(account, indent=1))
        state = {
            "epoch": self.epoch,
            "recipe": asdict(self.recipe),
            "subject": self.subject(),
            "model": self.model.state_dict(),
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        write_state(self.folder, state)

    def subject(self) -> str:
        """The model and what it is trained on, as JSON."""
        return json.dumps([self.model.config.to_json(), self.data()])

    def data(self) -> list[list[str | int]]:
        """Name, split and size of everything the run sees."""
        parts: list[list[str | int]] = [[part.name, part.split, len(part.mos)] for part in self.corpus.parts]
        return parts + [[pairs.name, "pairs", len(pairs.level)] for pairs in self.corpus.pairs]

    def resume(self) -> None:
        """Goes on from the folder's last whole epoch, if it has one; later rows leave the log.

        Raises CheckpointError if that run had another recipe, model or data, or if its state is damaged.
        """
        state = read_state(self.folder, self.device, asdict(self.recipe), self.subject())
        if state is None:
            cut_log(self.folder, 0)
            return
        self.model.load_state_dict(state["model"])
        self.probe.load_state_dict(state["probe"])
        self.epoch = state["epoch"]
        self.begin(self.recipe.phase_of(self.epoch - 1))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        cut_log(self.folder, self.epoch)
