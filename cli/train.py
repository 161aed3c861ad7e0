"""`c2s train`: from opinion scores to comparative instructions, and to a comparator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from compare2score.cli.anchors import SPLIT_HELP, read_table
from compare2score.cli.console import print_json, print_table, redirect_bars, remark
from compare2score.cli.extra import extra
from compare2score.cli.options import Json, ManyValues, examples
from compare2score.cli.recipe_file import RecipeFile
from compare2score.errors import LabelError
from compare2score.training.recipe import LoraRecipe, Recipe

group = typer.Typer(help="Train a comparator on rated images.", no_args_is_help=True)

Mix = Literal["balanced", "natural"]
Comparison = Literal["late", "causal"]
Adapted = Literal["decoder", "all"]
Std = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Deviation of opinions, for tables that state none [default: a share of the range].",
    ),
]
RECIPE, LORA = Recipe(), LoraRecipe()


@group.command(
    cls=ManyValues,
    epilog=examples("c2s train instructions --labels bid.csv spaq.csv --pairs 30000 --out pairs.jsonl"),
)
def instructions(
    labels: Annotated[
        list[Path], typer.Option(metavar="CSV...", help="Label tables: image,mos[,std][,split].")
    ],
    pairs: Annotated[int, typer.Option(metavar="N", min=1, help="Pairs of every table.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines file to write.")],
    mix: Annotated[
        Mix, typer.Option(help="As many pairs of every level, or all pairs alike as published.")
    ] = "balanced",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the draw.")] = 0,
    std: Std = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help=SPLIT_HELP)] = None,
    as_json: Json = False,
) -> None:
    """Draw pairs of rated images, and write them as questions and answers.

    Prints how many pairs of each level every table gave, and how many the table could not give.
    """
    from compare2score.comparator.prompt import LEVELS
    from compare2score.training.instructions import sample_pairs, shortfall, write_instructions

    drawn = sample_pairs([read_table(path, split, std) for path in labels], pairs, seed, mix)
    write_instructions(out, drawn)
    counts = drawn.level_counts().tolist()
    # Of a natural mix no level has a share that it could fall short of.
    missing = shortfall(drawn, pairs).tolist() if mix == "balanced" else [[0] * len(LEVELS)] * len(counts)
    tables = list(zip(drawn.datasets, counts, missing, strict=True))
    if as_json:
        rows = [
            {
                "name": name,
                "levels": dict(zip(LEVELS, count, strict=True)),
                "missing": dict(zip(LEVELS, lack, strict=True)),
            }
            for name, count, lack in tables
        ]
        print_json({"out": str(out), "pairs": len(drawn), "tables": rows})
        return
    print_table(
        ("Table", *LEVELS, "pairs"), [(name, *map(str, count), str(sum(count))) for name, count, _ in tables]
    )
    for name, _, lack in tables:
        if any(lack):
            short = ", ".join(
                f"{number} {level}" for level, number in zip(LEVELS, lack, strict=True) if number
            )
            remark(f"{name} has too few pairs of some levels; short of an equal share are {short}.")
    print(f"{out}: {len(drawn)} pairs")


@group.command(
    cls=ManyValues, epilog=examples("c2s train nano --data koniq/ spaq/ --photos clean/ --out run/")
)
def nano(
    out: Annotated[
        Path, typer.Option(metavar="RUN", help="The run's folder; one that was interrupted goes on.")
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR...", help="Folders with a labels.csv, split train and val."),
    ] = None,
    pairs: Annotated[
        list[Path] | None, typer.Option(metavar="FILE...", help="Files of 'c2s train instructions'.")
    ] = None,
    photos: Annotated[
        list[Path] | None, typer.Option(metavar="DIR...", help="Folders of clean photographs, to distort.")
    ] = None,
    distort_best: Annotated[
        int, typer.Option(metavar="N", min=0, help="Distort the N best images of every table, too.")
    ] = 0,
    expert: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="Tables of another kind of images, generated ones say."),
    ] = None,
    recipe_file: RecipeFile = None,  # noqa: ARG001  (its callback does all)
    probe_epochs: Annotated[
        int, typer.Option(metavar="N", min=0, help="Epochs of the abstractor, read by a probe.")
    ] = RECIPE.probe_epochs,
    encoder_epochs: Annotated[
        int, typer.Option(metavar="N", min=0, help="Epochs of the encoder's last stages, read by the probe.")
    ] = RECIPE.encoder_epochs,
    decoder_epochs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Epochs of the decoder.")
    ] = RECIPE.decoder_epochs,
    batch: Annotated[int, typer.Option(metavar="N", min=2, help="Images a step.")] = RECIPE.batch,
    partners: Annotated[
        int, typer.Option(metavar="N", min=1, help="The decoder's comparisons of each image a step.")
    ] = RECIPE.partners,
    frozen_stages: Annotated[
        int, typer.Option(metavar="N", min=1, help="Encoder stages always left as they are.")
    ] = RECIPE.frozen_stages,
    encoder_rate: Annotated[
        float, typer.Option(metavar="X", help="Learning rate of the encoder.")
    ] = RECIPE.encoder_rate,
    decoder_rate: Annotated[
        float, typer.Option(metavar="X", help="Learning rate of the decoder.")
    ] = RECIPE.decoder_rate,
    distil: Annotated[
        bool, typer.Option(help="Have the probe teach the decoder, and not the labels.")
    ] = RECIPE.distil,
    weight_decay: Annotated[float, typer.Option(metavar="X", min=0)] = RECIPE.weight_decay,
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = RECIPE.seed,
    std: Std = None,
    size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Side of the input square, a multiple of 64.")
    ] = 384,
    layers: Annotated[int, typer.Option(metavar="N", min=1, help="Decoder layers kept.")] = 2,
    comparison: Annotated[Comparison, typer.Option(help="How the decoder sees the two images.")] = "late",
    as_json: Json = False,
) -> None:
    """Train the nano comparator, or go on with a run.

    Prints a JSON line for every epoch, and at the end where the checkpoint is. Each epoch leaves a
    checkpoint, the log and its plot in the run's folder; after an interruption, the same command goes on
    from there.
    """
    if not (data or pairs or photos):
        raise LabelError("There is nothing to train on; give --data, --pairs or --photos.")
    redirect_bars()
    # Nothing is fetched: the weights come from installed packages.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with extra("train", "Training"):
        import matplotlib  # noqa: F401  (the run needs it only after its first epoch)

        from compare2score.training.nano import train_nano

    recipe = Recipe(
        probe_epochs=probe_epochs,
        encoder_epochs=encoder_epochs,
        decoder_epochs=decoder_epochs,
        batch=batch,
        partners=partners,
        frozen_stages=frozen_stages,
        encoder_rate=encoder_rate,
        decoder_rate=decoder_rate,
        distil=distil,
        weight_decay=weight_decay,
        seed=seed,
    )
    try:
        checkpoint = train_nano(
            data or [],
            photos or [],
            out,
            recipe,
            size,
            layers,
            comparison,
            pairs or [],
            std,
            distort_best,
            expert or [],
        )
    except KeyboardInterrupt:
        remark("Interrupted; the same command goes on after the last whole epoch.")
        raise
    print_checkpoint(checkpoint, as_json)


@group.command(
    cls=ManyValues, epilog=examples("c2s train lora --base mplug-owl2/ --pairs pairs.jsonl --out run/")
)
def lora(
    base: Annotated[
        Path, typer.Option(metavar="CHECKPOINT", help="Folder of an mPLUG-Owl2 or of a chat model.")
    ],
    pairs: Annotated[list[Path], typer.Option(metavar="FILE...", help="Files of 'c2s train instructions'.")],
    out: Annotated[
        Path, typer.Option(metavar="RUN", help="The run's folder; one that was interrupted goes on.")
    ],
    val: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE...", help="Such files to validate on after every epoch."),
    ] = None,
    epochs: Annotated[int, typer.Option(metavar="N", min=1)] = LORA.epochs,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Pairs a step.")] = LORA.batch,
    micro_batch: Annotated[
        int, typer.Option(metavar="N", min=1, help="Pairs in memory at once; a step adds up their gradients.")
    ] = LORA.micro_batch,
    rate: Annotated[
        float, typer.Option(metavar="X", min=0, help="Peak learning rate; falls as a cosine.")
    ] = LORA.rate,
    warmup: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="Share of the steps in which the rate rises.")
    ] = LORA.warmup,
    weight_decay: Annotated[float, typer.Option(metavar="X", min=0)] = LORA.weight_decay,
    rank: Annotated[int, typer.Option(metavar="N", min=1, help="Of every adapter.")] = LORA.rank,
    alpha: Annotated[
        int, typer.Option(metavar="N", min=1, help="Adapters are scaled by alpha / rank.")
    ] = LORA.alpha,
    dropout: Annotated[
        float, typer.Option(metavar="X", min=0, max=0.9, help="On what the adapters read.")
    ] = LORA.dropout,
    adapt: Annotated[
        Adapted, typer.Option(help="Adapters in the decoder, or in the vision encoder, too.")
    ] = LORA.adapt,
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = LORA.seed,
    as_json: Json = False,
) -> None:
    """Fine-tune a large comparator with low-rank adapters (LoRA), or go on with a run.

    Learns the levels of pairs of images, then adds the adapters to the weights: RUN/checkpoint is a
    checkpoint like the base, for c2s export. Prints a JSON line for every epoch. Epochs, batch, rate and
    warm-up are those that Compare2Score was trained with.
    """
    redirect_bars()
    with extra("train", "Training"):
        import matplotlib  # noqa: F401  (the run needs it only after its first epoch)

        from compare2score.training.lora import train_lora

    recipe = LoraRecipe(
        epochs=epochs,
        batch=batch,
        micro_batch=micro_batch,
        rate=rate,
        warmup=warmup,
        weight_decay=weight_decay,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        adapt=adapt,
        seed=seed,
    )
    try:
        merged = train_lora(base, pairs, out, recipe, val or [])
    except KeyboardInterrupt:
        remark("Interrupted; the same command goes on where the run was last saved.")
        raise
    if as_json:
        print_json({"checkpoint": str(merged.checkpoint), "merged_difference": merged.difference})
    else:
        remark(f"Merging the adapters changed level logits by {merged.difference:.1g} at most.")
        print(f"checkpoint: {merged.checkpoint}")


def print_checkpoint(folder: Path, as_json: bool) -> None:
    if as_json:
        print_json({"checkpoint": str(folder)})
    else:
        print(f"checkpoint: {folder}")
