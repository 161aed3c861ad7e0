"""The checkpoint that stands in for the published one is read as that is; its runs are watched."""

from __future__ import annotations

import json

import pytest

from compare2score.benchmarks.full_size import (
    full_size_table,
    published_config,
    run,
    shards,
    write_checkpoint,
)


def test_the_published_sizes_make_eight_billion_weights():
    torch = pytest.importorskip("torch", reason="counts a torch module's parameters")
    from compare2score.comparator.mplug_owl2 import MplugOwl2Comparator, MplugOwl2Config

    with torch.device("meta"):
        model = MplugOwl2Comparator(MplugOwl2Config.from_json(published_config(32, 24)))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 8.1e9 < count < 8.3e9


def test_shards_hold_every_name_once_and_no_more_than_their_size(monkeypatch):
    monkeypatch.setattr("compare2score.benchmarks.full_size.SHARD_BYTES", 100)
    shapes = {f"w{place}": (5, place + 1) for place in range(6)}
    found = list(shards(shapes))
    assert [name for names in found for name in names] == list(shapes)
    assert all(sum(10 * shapes[name][1] for name in names) <= 100 for names in found)


def test_a_small_one_is_opened_as_a_published_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="writes a checkpoint")
    from compare2score.comparator.checkpoint import load_comparator

    def small(layers, vision_layers):
        config = published_config(layers, vision_layers)
        config |= {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 50}
        config["num_key_value_heads"] = 2
        config["visual_config"]["visual_model"] |= {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "image_size": 28,
        }
        config["visual_config"]["visual_abstractor"] |= {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "num_learnable_queries": 4,
        }
        return config

    monkeypatch.setattr("compare2score.benchmarks.full_size.published_config", small)
    monkeypatch.setattr("compare2score.benchmarks.full_size.SHARD_BYTES", 20_000)
    total = write_checkpoint(tmp_path / "checkpoint", layers=1, vision_layers=1)
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) > 1
    comparator = load_comparator(tmp_path / "checkpoint")
    assert sum(parameter.numel() for parameter in comparator.parameters()) * 2 == total
    assert len(set(comparator.prompt_tokens.level_ids)) == 5


def test_a_command_is_watched_to_its_end_and_its_failure_is_not_hidden():
    done = run("--version")
    assert done.output.strip()
    assert done.seconds > 0
    with pytest.raises(RuntimeError, match="c2s gone ended with status 2"):
        run("gone")


def test_the_table_names_bytes_minutes_and_memory():
    step = {"seconds": 600.0, "peak_gib": 15.52, "load": 8.1}
    results = {
        "checkpoint_bytes": 16.4e9,
        "memory_gib": 23.5,
        "precisions": {
            "fp16": {"export": step, "score": step | {"seconds": 90}, "files": {"a": 10**10, "b": 1}}
        },
    }
    text = full_size_table(json.loads(json.dumps(results)))
    assert "| fp16 | 10.0 GB | 10 min | 15.5 GiB | 2 min | 15.5 GiB |" in text
    assert "16.4 GB" in text
    assert "other work shared the cores" in text
