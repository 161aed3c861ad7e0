"""The published comparator's full size, exported on this machine: time, memory, bytes.

The weights are random: none can be had where this was built, and their values change neither time nor memory.

python -m compare2score.benchmarks.full_size checkpoint FOLDER
python -m compare2score.benchmarks.full_size export FOLDER --photos PHOTOS --work WORK
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.benchmarks.speed import markdown

SHARD_BYTES = 2 << 30
app = typer.Typer(help=__doc__)


@dataclass(frozen=True)
class Run:
    """One command, run to its end.

    Attributes:
        seconds: it took.
        peak_gib: the most memory that it had resident (VmHWM): pages of mapped files count.
        load: the machine's load average (15 minutes) at its end; above 1, others took part of the time.
        output: what it printed.
    """

    seconds: float
    peak_gib: float
    load: float
    output: str


def published_config(layers: int, vision_layers: int) -> dict[str, Any]:
    """`config.json` of the published layout at full width; the published layers are 32 and 24."""
    return {
        "architectures": ["MPLUGOwl2LlamaForCausalLM"],
        "model_type": "mplug_owl2",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": layers,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32000,
        "torch_dtype": "float16",
        "visual_config": {
            "visual_model": {
                "hidden_size": 1024,
                "image_size": 448,
                "intermediate_size": 4096,
                "layer_norm_eps": 1e-6,
                "num_attention_heads": 16,
                "num_hidden_layers": vision_layers,
                "patch_size": 14,
            },
            "visual_abstractor": {
                "hidden_size": 1024,
                "intermediate_size": 2816,
                "layer_norm_eps": 1e-6,
                "num_attention_heads": 16,
                "num_hidden_layers": min(6, vision_layers),
                "num_learnable_queries": 64,
            },
        },
    }


def write_checkpoint(folder: Path, layers: int = 32, vision_layers: int = 24, seed: int = 0) -> int:
    """Writes a checkpoint of random float16 weights in shards, with a tokenizer of the prompt's words.

    Returns its weights' bytes. No more than one shard is in memory.
    """
    import torch
    from safetensors.torch import save_file

    from compare2score.comparator.mplug_owl2 import MplugOwl2Comparator, MplugOwl2Config

    folder.mkdir(parents=True, exist_ok=True)
    config = published_config(layers, vision_layers)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    write_tokenizer(folder)
    with torch.device("meta"):
        model = MplugOwl2Comparator(MplugOwl2Config.from_json(config))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    files: dict[str, str] = {}
    total = 0
    for place, names in enumerate(shards(shapes)):
        name = f"model-{place + 1:05}.safetensors"
        tensors = {}
        for key in names:
            noise = torch.randn(shapes[key], generator=generator)
            scale = 0.02 if len(shapes[key]) < 2 else shapes[key][-1] ** -0.5
            tensors[key] = (noise * scale + (1.0 if is_scale(key) else 0.0)).half()
        save_file(tensors, folder / name, metadata={"format": "pt"})
        files |= dict.fromkeys(names, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Names in order, as many at a time as fit a shard in float16."""
    held: list[str] = []
    size = 0
    for name, shape in shapes.items():
        count = 2
        for side in shape:
            count *= side
        if held and size + count > SHARD_BYTES:
            yield held
            held, size = [], 0
        held.append(name)
        size += count
    yield held


def is_scale(name: str) -> bool:
    """Whether a weight is a norm's scale, about one."""
    return name.endswith(".ffn_ln.weight") or (name.endswith("weight") and "norm" in name)


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer that knows the prompt's words and the levels, each a token of its own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    from compare2score.comparator.prompt import LEVELS, text_chunks

    words = dict.fromkeys(" ".join([*text_chunks(), *LEVELS]).split(" "))
    vocabulary = ["<unk>", "<s>", "</s>", "▁", *(f"▁{word}" for word in words if word)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(vocabulary)}, "<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.save(str(folder / "tokenizer.json"))


def peak_gib(process: int) -> float:
    """The most memory that a process has had resident, in GiB; 0 when it is gone, or not on Linux."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return found[0] / (1 << 20) if found else 0.0


def run(*arguments: str) -> Run:
    """Runs a `c2s` command in a process of its own, watched to its end.

    Raises RuntimeError if it fails.
    """
    start, peak = time.perf_counter(), 0.0
    command = [sys.executable, "-m", "compare2score.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, peak_gib(process.pid))
            time.sleep(0.05)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"c2s {arguments[0]} ended with status {process.returncode}.")
    return Run(round(time.perf_counter() - start, 1), round(peak, 2), round(os.getloadavg()[2], 1), output)


def full_size_table(results: dict[str, Any]) -> str:
    """A row a precision: bytes, and time and peak memory of the export and of scoring one photograph."""
    header = ["precision", "bundle", "export", "peak memory", "one photograph, fresh process", "peak memory"]
    rows = []
    for name, found in results["precisions"].items():
        cells = [name, f"{sum(found['files'].values()) / 1e9:.1f} GB"]
        for step in ("export", "score"):
            cells += [f"{found[step]['seconds'] / 60:.0f} min", f"{found[step]['peak_gib']:.1f} GiB"]
        rows.append(cells)
    stored = f"Checkpoint: {results['checkpoint_bytes'] / 1e9:.1f} GB of float16 in shards"
    loads = [found[step]["load"] for found in results["precisions"].values() for step in ("export", "score")]
    shared = f"load average up to {max(loads):.0f}: other work shared the cores" if max(loads) > 2 else "idle"
    return f"{markdown(header, rows)}\n\n{stored}; machine of {results['memory_gib']:.0f} GiB, {shared}."


def recorded(folder: Path, checkpoint_bytes: int) -> dict[str, Any] | None:
    """What was measured before with a checkpoint of this size; None if nothing was."""
    try:
        results = json.loads((folder / "full_size.json").read_text(encoding="utf-8"))["results"]
    except OSError:
        return None
    return results if results["checkpoint_bytes"] == checkpoint_bytes else None


@app.command()
def checkpoint(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    layers: Annotated[int, typer.Option(help="Of the decoder.")] = 32,
    vision_layers: Annotated[int, typer.Option(help="Of the vision encoder.")] = 24,
) -> None:
    """Writes a checkpoint of random weights: 16 GB at full size."""
    print(f"{write_checkpoint(folder, layers, vision_layers):,} bytes")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The checkpoint.")],
    photos: Annotated[Path, typer.Option(help="Folder of anchor images.")],
    work: Annotated[Path, typer.Option(help="Where the bundles go; they stay there.")],
    precision: Annotated[list[str], typer.Option(help="One or more.")] = ["fp16", "int4"],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Exports the checkpoint, scores a photograph with the bundle, and writes full_size.json."""
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # Precisions may be measured one by one.
    results = recorded(out, stored) or {"checkpoint_bytes": stored, "precisions": {}}
    for kind in precision:
        bundle = work / kind
        exported = run(
            *(
                "export",
                str(folder),
                "--out",
                str(bundle),
                "--precision",
                kind,
                "--anchors",
                str(photos),
                "--json",
            )
        )
        photo = next(path for path in sorted(photos.iterdir()) if path.is_file())
        scored = run("score", "--bundle", str(bundle), "--json", str(photo))
        results["precisions"][kind] = {
            "export": {key: value for key, value in asdict(exported).items() if key != "output"},
            "score": {key: value for key, value in asdict(scored).items() if key != "output"},
            "value": json.loads(scored.output.splitlines()[0])["value"],
            "files": {path.name: path.stat().st_size for path in sorted(bundle.iterdir())},
        }
        # After every precision, for the next one may take hours or fail.
        results["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1)
        print(write_record("full_size", results, out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    app()
