"""Folders of chat models: what is read of their processors, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from chat_checkpoint import FAMILIES, TEXT, VISION, WORDS, Family, save_chat_checkpoint, tiny_tokenizer

from compare2score.comparator.chat import FREE_SIDE, Chat, square_side
from compare2score.comparator.huggingface import load_huggingface
from compare2score.comparator.prompt import LEVELS
from compare2score.errors import CheckpointError


@pytest.mark.parametrize(
    ("processor", "sizes", "side"),
    [
        ("Idefics3", {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}}, 364),
        ("Idefics2", {"size": {"shortest_edge": 378, "longest_edge": 980}}, FREE_SIDE),
        ("LlavaNext", {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}, 336),
        ("LlavaOnevision", {"size": {"height": 384, "width": 384}}, 384),
        ("Qwen2VL", {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "patch_size": 14}, FREE_SIDE),
        ("Qwen2VL", {"size": {"shortest_edge": 3136, "longest_edge": 90000}, "patch_size": 14}, 280),
        ("GotOcr2", {"size": {"height": 448, "width": 448}}, 448),
    ],
)
def test_the_square_is_what_the_image_processor_keeps(processor, sizes, side):
    images = getattr(transformers, f"{processor}ImageProcessorPil")(**sizes)
    assert square_side(images) == side


class BlankTokenizer:
    """Puts a blank before a text and cuts it before every blank, as LLaMA's does."""

    def __call__(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        words = f" {text}".replace(" ", "| ").split("|")[1:]
        return SimpleNamespace(input_ids=[sum(map(ord, word)) for word in words])


def test_a_levels_token_is_the_one_that_follows_the_answer():
    tokenizer = BlankTokenizer()
    chat = Chat(SimpleNamespace(tokenizer=tokenizer), 32, {}, 0)
    naive = [tokenizer(f" {level}", add_special_tokens=False).input_ids[0] for level in LEVELS]
    assert len(set(naive)) == 1
    assert chat.level_ids() == tuple(sum(map(ord, f" {level}")) for level in LEVELS)


def is_one_sentence(text: str) -> bool:
    return text.endswith(".") and len(text) < 500 and not re.search(r"\n|[.!?]\s+[A-Z]", text)


def edited(name: str, **values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return damage


def without(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def cut(name: str, part: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * part)])

    return damage


def retemplated(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def resaved(change: Callable[[dict[str, torch.Tensor]], object], **options: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        change(weights)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, state_dict=weights, **options)

    return damage


def sharded(damage: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        resaved(lambda weights: None, max_shard_size="50KB")(folder)
        assert len(list(folder.glob("model-0*.safetensors"))) > 2
        damage(folder)

    return change


def second_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-0*.safetensors"))[1]


def with_code(name: str, key: str) -> Callable[[Path], None]:
    """Names code in the folder that a reader should run; it would leave a file `ran`."""

    def damage(folder: Path) -> None:
        (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
        edited(name, model_type="evil", auto_map={key: "evil.Evil"})(folder)

    return damage


def pickled(folder: Path) -> None:
    class Evil:
        def __reduce__(self):
            return open, (str(folder / "ran"), "w")

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def wordless(folder: Path) -> None:
    """Gives the folder a tokenizer that does not know two of the level words."""
    known = [f"{word}st" if word in ("inferior", "worse") else word for word in WORDS]
    tiny_tokenizer(FAMILIES["idefics3"], known).save_pretrained(folder)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (without("config.json"), "config.json"),
    "cut config": (cut("config.json", 0.5), "config.json"),
    "an unknown architecture": (edited("config.json", model_type="xyz_vl"), "'xyz_vl'"),
    "a text-only model": (
        lambda folder: transformers.LlamaConfig(**TEXT).save_pretrained(folder),
        "'llama' model, which does not read images",
    ),
    "an image-only model": (
        lambda folder: transformers.CLIPVisionConfig().save_pretrained(folder),
        "does not read images and text together",
    ),
    "a config that its family refuses": (edited("config.json", vision_config="none"), "idefics3"),
    "no weights": (without("model.safetensors"), "whole idefics3 weights"),
    "weights cut in the header": (cut("model.safetensors", 0.01), "whole idefics3 weights"),
    "weights cut in the data": (cut("model.safetensors", 0.9), "whole idefics3 weights"),
    "weights of zeros": (
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(5000)),
        "whole idefics3 weights",
    ),
    "a missing weight": (
        resaved(lambda weights: weights.pop("model.text_model.norm.weight")),
        "model.text_model.norm.weight",
    ),
    "a weight of another shape": (
        resaved(lambda weights: weights.update({"model.text_model.norm.weight": torch.ones(31)})),
        "whole idefics3 weights",
    ),
    "a missing shard": (sharded(lambda folder: second_shard(folder).unlink()), "whole idefics3 weights"),
    "a shard cut short": (
        sharded(lambda folder: cut(second_shard(folder).name, 0.5)(folder)),
        "whole idefics3 weights",
    ),
    "no image processor": (without("preprocessor_config.json"), "processor and tokenizer"),
    "an image processor without a size": (
        edited("preprocessor_config.json", max_image_size={}),
        "processor and tokenizer",
    ),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "processor and tokenizer"),
    "cut tokenizer": (cut("tokenizer.json", 0.5), "processor and tokenizer"),
    "no chat template": (without("chat_template.jinja"), "chat template"),
    "a chat template that does not parse": (retemplated("{% for"), "chat template fails"),
    "a chat template that fails": (retemplated("{{ raise_exception('One image only.') }}"), "One image only"),
    "a chat template for one image": (retemplated("User: <image>"), "places 1 of two"),
    "a chat template for text": (retemplated("User: hello"), "places 0 of two"),
    "another number of tokens": (edited("processor_config.json", image_seq_len=5), "vision tower makes 4"),
    "colliding level words": (wordless, "'inferior' and 'worse' begin with the same token"),
    "a config with code": (with_code("config.json", "AutoConfig"), "'evil'"),
    "pickled code": (pickled, "whole idefics3 weights"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path, damage):
    change, named = DAMAGES[damage]
    folder = save_chat_checkpoint("idefics3", tmp_path / "checkpoint")
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        load_huggingface(folder)
    assert named in str(caught.value)
    assert str(folder) in str(caught.value)
    assert is_one_sentence(str(caught.value)), caught.value
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("file", "key"),
    [("preprocessor_config.json", "AutoImageProcessor"), ("tokenizer_config.json", "AutoTokenizer")],
)
def test_code_beside_a_known_family_is_not_run(tmp_path, file, key):
    folder = save_chat_checkpoint("idefics3", tmp_path / "checkpoint")
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    edited(file, auto_map={key: "evil.Evil"})(folder)
    assert load_huggingface(folder).spec.model == "idefics3"
    assert not (folder / "ran").exists()


def test_a_family_that_reads_images_by_cross_attention_is_refused(tmp_path, monkeypatch):
    crossing = Family(
        image="<|image|>",
        vision={
            **VISION,
            "attention_heads": 4,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
            "max_num_tiles": 4,
        },
        image_processor="MllamaImageProcessor",
        sizes={"size": {"height": 32, "width": 32}},
        text={"cross_attention_layers": [1]},
        tokens={"image_token_index": "<|image|>"},
    )
    monkeypatch.setitem(FAMILIES, "mllama", crossing)
    folder = save_chat_checkpoint("mllama", tmp_path)
    with pytest.raises(CheckpointError, match="mllama family does not read images as tokens") as caught:
        load_huggingface(folder)
    assert is_one_sentence(str(caught.value))
