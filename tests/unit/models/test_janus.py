"""Janus: the contract, the library's own class, and what a user would notice of its folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration

from srum_ds.common.errors import UserError
from srum_ds.models import family_of, load_model
from srum_ds.models.contract import check_adapter
from srum_ds.models.janus import FAMILY
from srum_ds.models.janus.adapter import JanusAdapter, load_janus
from srum_ds.models.janus.sampling import CodeSampling
from srum_ds.types import Prompt
from tests.support.tiny_janus import TinyJanus, janus_redraws, library_codes, write_tiny_janus
from tests.support.tiny_models import random_picture

SAMPLING = CodeSampling(guidance=3.0)
OTHER = TinyJanus(
    hidden=24,
    layers=3,
    heads=3,
    kv_heads=3,
    per_side=3,
    upsampled=1,
    codes=23,
    code_width=5,
    vision_heads=3,
    tied=True,
    theta=5000.0,
    system_prompt=True,
)
HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_janus(tmp_path_factory.mktemp("janus"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_janus(tmp_path_factory.mktemp("tied"), 1, OTHER)


def export_changed(model: JanusAdapter, target: Path, mode: str) -> None:
    """Exports the model with all that ``mode`` trains moved a little."""
    parameters = dict(model.module.named_parameters())
    names = model.trainable(mode)
    with torch.no_grad():
        for name in names:
            parameters[name].add_(
                0.02 * torch.randn(parameters[name].shape, generator=torch.Generator().manual_seed(3))
            )
    model.export(target, names, ((name, parameters[name].detach()) for name in names))


# ---- the contract


def test_janus_keeps_every_promise(folder: Path) -> None:
    checks = check_adapter("auto", folder, SAMPLING)
    assert [(check.name, check.detail) for check in checks if not check.ok] == []
    assert len(checks) == 11 + 4 * len(FAMILY.modes)


def test_a_folder_says_that_it_is_janus_and_what_it_holds(folder: Path, tmp_path: Path) -> None:
    assert family_of(folder).kind == "janus"
    facts, text = FAMILY.inspect(folder)
    model = load_janus(folder)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.module.parameters())
    assert facts["parts"]["vq"] == sum(parameter.numel() for parameter in model.reader.vq.parameters())
    assert facts["picture"] == {"pixels": 16, "codes": 4, "codebook": 40} and "16 x 16 pixels, 4 x 4 codes" in text
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match="no known design.*janus: config.json with model_type janus"):
        family_of(tmp_path)


# ---- against the library's own class


@pytest.mark.parametrize("guidance", [1.5, 5.0])
@pytest.mark.parametrize("which", ["folder", "tied"])
def test_greedy_codes_are_the_librarys(which: str, guidance: float, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    texts = ("a red circle above a blue square", "a", "two dogs, yes")
    model = load_janus(path)
    prompts = [Prompt(str(number), text) for number, text in enumerate(texts)]
    grid = model.grid(*model.default_size())
    codes, _ = model.generate(prompts, [("any",)] * 3, grid, CodeSampling(guidance, 0.0))
    assert torch.equal(codes, library_codes(path, texts, guidance))
    assert len(codes.unique()) > 3


@pytest.mark.parametrize("mode", FAMILY.modes)
def test_the_library_draws_from_an_exported_folder_what_the_adapter_draws(
    folder: Path, mode: str, tmp_path: Path
) -> None:
    model = load_janus(folder)
    if mode == "lora":
        model.add_lora(2, 4.0, (), 0)
    export_changed(model, tmp_path / "out", mode)
    assert janus_redraws(tmp_path / "out") == 0
    texts = ("a red circle", "a star")
    assert not torch.equal(library_codes(folder, texts, 3.0), library_codes(tmp_path / "out", texts, 3.0))
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("model.vqmodel."))


def test_an_adapter_stands_beside_the_merged_weights_by_the_librarys_names(folder: Path, tmp_path: Path) -> None:
    model = load_janus(folder)
    binding = model.add_lora(2, 4.0, ("q_proj", "generation_aligner.fc1"), 0)
    export_changed(model, tmp_path, "lora")
    named = {name for name, _ in JanusForConditionalGeneration.from_pretrained(folder).named_modules()}
    assert set(binding.modules) <= named and len(binding.modules) == 3
    assert set(PeftConfig.from_pretrained(str(tmp_path / "lora")).target_modules) == set(binding.modules)


def test_lora_does_not_bind_to_the_layer_of_the_logits(folder: Path) -> None:
    with pytest.raises(UserError, match="'vision_head' names no module"):
        load_janus(folder).add_lora(2, 4.0, ("vision_head",), 0)


# ---- a text head that shares the embeddings' weight


def test_shared_weights_are_trained_and_exported_once(tied: Path, tmp_path: Path) -> None:
    model = load_janus(tied)
    assert model.module.lm_head.weight is model.module.language.embed_tokens.weight
    names = model.trainable("transformer")
    assert EMBEDDINGS in names and HEAD not in names
    export_changed(model, tmp_path / "out", "transformer")
    again = JanusForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(again.lm_head.weight, model.module.lm_head.weight)
    assert HEAD not in load_file(tmp_path / "out" / "model.safetensors")


def test_a_file_with_a_head_of_its_own_wins_over_a_configuration_that_shares_it(tied: Path, tmp_path: Path) -> None:
    shutil.copytree(tied, tmp_path / "model")
    stored = load_file(tied / "model.safetensors")
    stored[HEAD] = stored[EMBEDDINGS] + 1.0
    save_file(stored, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    model = load_janus(tmp_path / "model")
    assert torch.equal(model.module.lm_head.weight, stored[HEAD])
    assert torch.equal(model.module.language.embed_tokens.weight, stored[EMBEDDINGS])


def test_a_head_that_is_not_shared_must_be_stored(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    del stored[HEAD]
    save_file(stored, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="missing: lm_head.weight"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("key", ["model.vqmodel.quantize.embedding.weight", "model.aligner.fc1.bias"])
def test_weights_of_another_shape_are_named(folder: Path, tmp_path: Path, key: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    stored[key] = stored[key][:-1].clone()
    save_file(stored, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"misshapen: {key}"):
        load_model(tmp_path / "model")


# ---- wrong configurations


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_config.num_attention_heads": "four"}, "text_config.num_attention_heads is 'four'"),
        ({"text_config.hidden_size": 0}, "text_config.hidden_size is 0, expected a whole number from 1"),
        ({"text_config.model_type": "gemma"}, "text_config.model_type is 'gemma', expected 'llama'"),
        ({"text_config.num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads"),
        ({"text_config.hidden_act": "sillu"}, "text_config.hidden_act 'sillu' is unknown"),
        ({"text_config.rms_norm_eps": "small"}, "text_config: .*rms_norm_eps"),
        ({"vision_config.image_size": [16, 16]}, r"vision_config.image_size is \[16, 16\]"),
        ({"vision_config.image_size": 18}, "vision_config.image_size 18 is not a multiple of patch_size"),
        ({"vision_config.num_image_tokens": 15}, "vision_config.num_image_tokens is 15, but .* make 16"),
        ({"vision_config.projection_dim": 31}, "vision_config.projection_dim is 31, but text_config.hidden_size is 32"),
        ({"vision_config.num_attention_heads": 5}, "vision_config.hidden_size 24 is not a multiple of num_att"),
        ({"vq_config.image_token_embed_dim": 31}, "vq_config.image_token_embed_dim is 31"),
        ({"vq_config.base_channels": 33}, "vq_config.base_channels 33 is not a multiple of 32"),
        ({"vq_config.channel_multiplier": []}, r"vq_config.channel_multiplier is \[\]"),
        ({"vq_config.latent_channels": 48}, "do not fit its configuration"),
        ({"vq_config": 3}, "vq_config is 3, expected an object"),
        ({"image_token_id": 5}, "image_token_id is 5, but the tokenizer's <image_placeholder> is"),
        ({"image_token_id": 50000}, "image_token_id is 50000, but text_config.vocab_size is"),
        ({"text_config.vocab_size": 200, "image_token_id": 100}, "the tokenizer in .* knows"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(
    folder: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    for name, value in change.items():
        part, _, key = name.rpartition(".")
        (values[part] if part else values)[key] = value
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=words) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "{", "config.json could not|no known design|cannot be read"),
        ("generation_config.json", '{"eos_token_id": "end"}', "eos_token_id is 'end'"),
        ("generation_config.json", '{"pad_token_id": 3}', "says 3 for the token that the tokenizer calls"),
        ("processor_config.json", '{"num_image_tokens": 9}', "num_image_tokens is 9, but .* makes 16"),
        ("processor_config.json", '{"use_default_system_prompt": 1}', "use_default_system_prompt is 1"),
        ("processor_config.json", '{"image_processor": {"size": {"height": 8, "width": 8}}}', "says size .*8"),
        ("tokenizer.json", "{", "tokenizer's files in .* cannot be read"),
        ("chat_template.jinja", "", "no chat template"),
        ("tokenizer_config.json", "{}", "lacks|cannot be read"),
        ("model.safetensors", "x", "not a whole safetensors file"),
    ],
)
def test_a_broken_file_is_named(folder: Path, tmp_path: Path, name: str, text: str, words: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / name).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_model(tmp_path / "model", "janus")
    assert "\n" not in str(caught.value)


def test_an_older_folder_keeps_its_image_processor_in_a_file_of_its_own(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "processor_config.json"
    values = json.loads(path.read_text())
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(values.pop("image_processor")))
    path.write_text(json.dumps(values))
    image = [random_picture(9, 20)]
    pixels = load_janus(tmp_path / "model").reader.pixel_values(image)
    assert torch.equal(pixels, load_janus(folder).reader.pixel_values(image))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(UserError, match=str(tmp_path / "model")):
        load_model(tmp_path / "model", "janus")
    with pytest.raises(UserError, match="is not a folder"):
        load_model(tmp_path / "nowhere", "janus")
