"""Low-rank fine-tuning of a published comparator, or of a general chat model, on comparative instructions.

The loss is the language model's own, cross entropy over its vocabulary, at one place of the answer: where the
level word begins, the place that scores are read from. The answer's other words are part of the prompt when
scores are asked for, so they need not be learned. The published training tuned every weight of mPLUG-Owl2;
here the decoder's linear layers get adapters and, unless asked, the vision encoder stays as it is.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from compare2score.comparator.weights import CheckpointWeights
from compare2score.errors import CheckpointError
from compare2score.training.adapter import Adapter, open_base, save_merged
from compare2score.training.answers import Answers, level_ids
from compare2score.training.learning_curve import plot_log
from compare2score.training.level_pairs import LevelPairs, read_pairs
from compare2score.training.recipe import ACCOUNT, LoraRecipe, warm_cosine
from compare2score.training.run_folder import cut_log, log_row, read_state, write_state

STEPS_PER_SAVE = 100
SAMPLE_BYTES, SAMPLE_SPACING, MOST_SAMPLES = 4 << 10, 64 << 10, 4096
MERGE_CHECKS = 8
"""Pairs whose answers are compared before and after the adapters are merged."""


@dataclass(frozen=True)
class Merged:
    """A finished fine-tuning.

    Attributes:
        checkpoint: the folder, of the base's layout.
        difference: largest absolute difference that merging made to a level logit, on some training pairs:
            what rounding to the stored precision makes of it.
    """

    checkpoint: Path
    difference: float


class LoraTrainer:
    """Trains a comparator's adapters in `folder`: a log row and its plot an epoch, a state to go on from."""

    def __init__(
        self,
        adapter: Adapter,
        pairs: LevelPairs,
        val: LevelPairs | None,
        recipe: LoraRecipe,
        folder: Path,
        base: str,
    ) -> None:
        self.adapter, self.pairs, self.val, self.recipe, self.folder = adapter, pairs, val, recipe, folder
        self.device = accelerator()
        self.answers = Answers(adapter.comparator.to(self.device), self.device, recipe.adapt == "decoder")
        self.levels = torch.tensor(level_ids(adapter.comparator), device=self.device)
        self.subject = json.dumps([base, pairs.digest(), None if val is None else val.digest()])
        self.epoch_steps = -(-len(pairs) // recipe.batch)
        self.steps = recipe.epochs * self.epoch_steps
        self.trained = list(adapter.weights().values())
        self.optimizer = torch.optim.AdamW(self.trained, lr=recipe.rate, weight_decay=recipe.weight_decay)
        factor = partial(warm_cosine, steps=self.steps, warmup=recipe.warmup)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.step = 0
        self.loss_sum = 0.0

    def logits(self, pairs: LevelPairs, chosen: NDArray[np.int64]) -> Tensor:
        """Answers [P, V] to the chosen pairs, in bfloat16 on a GPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.answers.of(pairs, chosen)

    def loss(self, pairs: LevelPairs, chosen: NDArray[np.int64], logits: Tensor) -> Tensor:
        """Summed cross entropy over the vocabulary of the level words' first tokens."""
        targets = self.levels[torch.from_numpy(pairs.level[chosen]).to(self.device)]
        return nn.functional.cross_entropy(logits, targets, reduction="sum")

    def micro_batches(self, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """What fits in memory at once, one after another."""
        size = self.recipe.micro_batch
        return (chosen[start : start + size] for start in range(0, len(chosen), size))

    def run(self) -> None:
        """Trains the steps that are left; every epoch ends with validation and a log row."""
        while self.step < self.steps:
            epoch = self.step // self.epoch_steps
            done = self.step % self.epoch_steps
            # Order and dropout depend on seed and step alone, so that a resumed run equals a whole one.
            order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.pairs))
            starts = range(done * self.recipe.batch, len(self.pairs), self.recipe.batch)
            for start in track(starts, description=f"Epoch {epoch + 1}", total=len(starts)):
                self.train(order[start : start + self.recipe.batch])
                if self.step % STEPS_PER_SAVE == 0 and self.step % self.epoch_steps:
                    self.save()
            mean = self.loss_sum / len(self.pairs)
            self.record({"epoch": epoch + 1, "step": self.step, "train_loss": mean, **self.validate()})
            self.loss_sum = 0.0
            self.save()

    def train(self, chosen: NDArray[np.int64]) -> None:
        """One step on a batch of pairs."""
        self.adapter.train()
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        self.optimizer.zero_grad(set_to_none=True)
        for part in self.micro_batches(chosen):
            loss = self.loss(self.pairs, part, self.logits(self.pairs, part))
            (loss / len(chosen)).backward()  # type: ignore[no-untyped-call]
            self.loss_sum += loss.item()
        if not math.isfinite(self.loss_sum):
            raise CheckpointError(f"The loss of step {self.step + 1} is not a number; lower --rate.")
        nn.utils.clip_grad_norm_(self.trained, self.recipe.clip)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss of the validation pairs, and how often the likeliest of the five levels is right."""
        if self.val is None:
            return {}
        self.adapter.train(False)
        loss, right = 0.0, 0
        for part in self.micro_batches(np.arange(len(self.val))):
            logits = self.logits(self.val, part)
            loss += self.loss(self.val, part, logits).item()
            likeliest = logits[:, self.levels].argmax(dim=1).cpu().numpy()
            right += int((likeliest == self.val.level[part]).sum())
        return {"val_loss": loss / len(self.val), "val_accuracy": right / len(self.val)}

    def record(self, row: dict[str, float]) -> None:
        """Logs and prints a row, and draws the learning curves anew."""
        log_row(self.folder, row)
        plot_log(self.folder)

    def save(self) -> None:
        """Writes the state to go on from: adapters, optimiser, schedule and place."""
        state = {
            "step": self.step,
            "loss_sum": self.loss_sum,
            "recipe": asdict(self.recipe),
            "subject": self.subject,
            "adapter": {name: p.detach() for name, p in self.adapter.weights().items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        write_state(self.folder, state)

    def resume(self) -> None:
        """Goes on from the folder's state, if it has one; rows of epochs that are not in it leave the log.

        Raises CheckpointError if that run had another recipe, base or pairs, or if its state is damaged.
        """
        state = read_state(self.folder, self.device, asdict(self.recipe), self.subject)
        if state is not None:
            self.step, self.loss_sum = state["step"], state["loss_sum"]
            self.adapter.load(state["adapter"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        cut_log(self.folder, self.step // self.epoch_steps)


def train_lora(
    base: Path, pairs: Sequence[Path], out: Path, recipe: LoraRecipe, val: Sequence[Path] = ()
) -> Merged:
    """Fine-tunes a checkpoint on comparative instructions and merges what was learned, or goes on with a run.

    While it is trained, the base is float32, on a GPU bfloat16; adapters are float32. They are merged into
    the base as it is stored.

    Args:
        base: the checkpoint's folder, mPLUG-Owl2 or a chat model of transformers.
        pairs: files of `training.instructions.write_instructions`.
        out: the run's folder: `log.jsonl`, `log.png`, `state.pt`, and `checkpoint/` at the end.
        recipe: epochs, batch, rate, rank, seed.
        val: files of pairs to validate on after every epoch.

    Raises:
        LabelError, ImageError, CheckpointError, MissingExtraError: in one sentence each.
    """
    checkpoint = out / "checkpoint"
    if checkpoint.resolve() == base.resolve():
        raise CheckpointError(
            f"The result would take the place of its base, {base}; choose another --out folder."
        )
    trained, validated = read_pairs(pairs), read_pairs(val) if val else None
    working = torch.bfloat16 if accelerator().type == "cuda" else torch.float32
    adapter = Adapter(open_base(base, working), recipe)
    out.mkdir(parents=True, exist_ok=True)
    trainer = LoraTrainer(adapter, trained, validated, recipe, out, fingerprint(base))
    trainer.resume()
    if trainer.step == trainer.steps and (checkpoint / ACCOUNT).exists():
        return Merged(checkpoint, json.loads((checkpoint / ACCOUNT).read_text())["merged_difference"])
    try:
        trainer.run()
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"{base} and {recipe.micro_batch} pairs at once do not fit the GPU's memory; "
            "lower --micro-batch or --rank."
        ) from error
    weights = {name: weight.detach().cpu() for name, weight in adapter.weights().items()}
    # Before the base is opened once more: two of them may not fit the memory.
    del adapter, trainer
    gc.collect()
    return merge_into(base, weights, recipe, trained, checkpoint)


@torch.no_grad()
def merge_into(
    base: Path, weights: dict[str, Tensor], recipe: LoraRecipe, pairs: LevelPairs, checkpoint: Path
) -> Merged:
    """Merges adapters into a base as it is stored, and writes the result as a checkpoint of its layout.

    Args:
        base: the base's folder.
        weights: of the trained adapters, by name.
        recipe: what they were trained with.
        pairs: what they were trained on; some are answered before and after.
        checkpoint: the new folder.
    """
    device, checked = accelerator(), np.arange(min(MERGE_CHECKS, len(pairs)))
    adapter = Adapter(open_base(base, None), recipe)
    adapter.load(weights)
    comparator = adapter.comparator.to(device)
    answers = Answers(comparator, device, frozen=False)
    before = answers.of(pairs, checked)
    adapter.merge()
    change = (answers.of(pairs, checked) - before)[:, list(level_ids(comparator))]
    difference = float(change.abs().max())
    account = {
        "recipe": asdict(recipe),
        "base": base.resolve().name,
        "data": [[name, "pairs", count] for name, count in pairs.sources],
        "merged_difference": difference,
    }
    save_merged(comparator, base, checkpoint, account)
    return Merged(checkpoint, difference)


def accelerator() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fingerprint(base: Path) -> str:
    """Hash of a checkpoint's config and of samples, evenly spaced, of its weights' files."""
    digest = hashlib.sha256((base / "config.json").read_bytes())
    for name in sorted(set(CheckpointWeights.open(base).files.values())):
        size = (base / name).stat().st_size
        digest.update(repr((name, size)).encode())
        with (base / name).open("rb") as file:
            for place in range(0, size, max(SAMPLE_SPACING, size // MOST_SAMPLES)):
                file.seek(place)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
