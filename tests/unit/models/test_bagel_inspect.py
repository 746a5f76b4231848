"""Counting a folder's parameters from its configuration files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.models.bagel.adapter import load_bagel
from srum_ds.models.bagel.inspect import inspect_folder, inspection_text
from tests.support.tiny_models import TINY, write_configs, write_tiny_bagel

RELEASED_LLM = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
RELEASED_VIT = {
    "hidden_size": 1152,
    "image_size": 980,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}


def test_the_released_model_has_its_released_size(tmp_path: Path) -> None:
    (tmp_path / "llm_config.json").write_text(json.dumps(RELEASED_LLM))
    (tmp_path / "vit_config.json").write_text(json.dumps(RELEASED_VIT))
    facts = inspect_folder(tmp_path)
    assert facts["keys"] == 1223
    assert facts["parameters"] == 14_607_260_128
    assert facts["parameters_moe_gen"] == 6_525_628_928
    assert facts["trainable"]["generation"] == 6_539_861_056
    # Rank 16 on q, k, v, o and gate, up, down of 28 generation experts.
    sides = [3584 + 3584, 3584 + 512, 3584 + 512, 3584 + 3584, *[3584 + 18944] * 3]
    assert facts["trainable"]["lora"] == 28 * 16 * sum(sides)
    parts = facts["parts"]
    assert parts["understanding"] + parts["generation"] + parts["vision"] == facts["parameters"]
    assert parts["vae"] == 83_819_683
    # Qwen2.5-7B itself has 7.616 B parameters; BAGEL adds the norms of queries and keys.
    assert parts["understanding"] == 7_615_616_512 + 28 * 2 * 128
    # The released recipe leaves out the vision part and the fixed table of latent positions. No loss reaches the text
    # head, the last norm of text, and the last block's queries, attention output and MLP of text.
    queries = 3584 * 3584 + 3584 + 128
    unreached = 152064 * 3584 + 3584 + queries + 3584 * 3584 + 3 * 3584 * 18944 + 3584
    assert facts["trainable"]["transformer"] == facts["parameters"] - parts["vision"] - 4096 * 3584 - unreached
    text = inspection_text(facts)
    assert "1,223" in text and "6,525,628,928" in text


def test_the_command_prints_the_same_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llm_config.json").write_text(json.dumps(RELEASED_LLM))
    (tmp_path / "vit_config.json").write_text(json.dumps(RELEASED_VIT))
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == inspect_folder(tmp_path)
    assert (facts["keys"], facts["parameters_moe_gen"]) == (1223, 6_525_628_928)
    assert round(facts["parameters"] / 1e9, 3) == 14.607
    assert round(facts["trainable"]["generation"] / 1e9, 3) == 6.540
    assert main(["inspect", str(tmp_path)]) == 0
    assert capsys.readouterr().out == inspection_text(facts) + "\n"


def test_the_counts_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    model = load_bagel(write_tiny_bagel(tmp_path))
    facts = inspect_folder(tmp_path)
    counts = {name: parameter.numel() for name, parameter in model.module.named_parameters()}
    assert facts["keys"] == len(counts)
    assert facts["parameters"] == sum(counts.values())
    assert facts["parts"]["vae"] == sum(p.numel() for p in model.reader.autoencoder.parameters())
    for mode in ("generation", "transformer"):
        assert facts["trainable"][mode] == sum(counts[name] for name in model.trainable(mode))


def test_no_weights_are_needed_but_configurations_are(tmp_path: Path) -> None:
    write_configs(tmp_path, TINY)
    assert inspect_folder(tmp_path)["keys"] > 0
    (tmp_path / "vit_config.json").unlink()
    with pytest.raises(UserError, match=r"vit_config\.json"):
        inspect_folder(tmp_path)
