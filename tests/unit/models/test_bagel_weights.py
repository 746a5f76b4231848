"""Checkpoint folders: strict loading with errors that say what to do, and exports in the same layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srum_ds.common.errors import UserError
from srum_ds.models import load_model
from srum_ds.models.bagel.latents import Autoencoder
from srum_ds.models.bagel.weights import load_autoencoder, save_autoencoder
from srum_ds.models.protocol import UnifiedModel
from tests.support.tiny_models import TINY, random_picture, randomise, write_tiny_bagel


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("bagel"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- loading


def save(model: UnifiedModel, folder: Path) -> None:
    """Exports all the module's present weights."""
    named = dict(model.module.named_parameters())
    model.export(folder, list(named), named.items())


def test_loading_restores_every_tensor(whole: Path) -> None:
    model = load_model(whole)
    stored = load_file(whole / "ema.safetensors")
    assert {name for name, _ in model.module.named_parameters()} == stored.keys()
    for name, parameter in model.module.named_parameters():
        assert torch.equal(parameter, stored[name]), name
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_a_sharded_folder_is_the_same_model(folder: Path, whole: Path) -> None:
    tensors = load_file(folder / "ema.safetensors")
    (folder / "ema.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    picture, question = [random_picture(30, 50)], ["what is it?"]
    expected = load_model(whole).answer_logprobs(picture, question, ["yes", "no"])
    assert torch.equal(load_model(folder).answer_logprobs(picture, question, ["yes", "no"]), expected)
    # A shard that lacks a key the index promises must not leave that weight unset.
    rewrite(folder / "model-1.safetensors", lambda t: t.pop("llm2vae.bias", None))
    rewrite(folder / "model-2.safetensors", lambda t: t.pop("llm2vae.bias", None))
    with pytest.raises(UserError, match=r"missing: llm2vae\.bias"):
        load_model(folder)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="model-2.safetensors"):
        load_model(folder)


def in_two_shards(folder: Path, twice: str, index_names_it: bool = True) -> dict[str, torch.Tensor]:
    """Splits the weights; the second shard holds another copy, of zeros, of a key of the first. Returns the weights."""
    stored = load_file(folder / "ema.safetensors")
    (folder / "ema.safetensors").unlink()
    keys = sorted(stored)
    first = [key for key in keys[: len(keys) // 2] if key != twice]
    second = [key for key in keys if key not in first and key != twice]
    save_file({key: stored[key] for key in (*first, twice)}, folder / "a.safetensors")
    zeros = torch.zeros_like(stored[twice])
    save_file({twice: zeros, **{key: stored[key] for key in second}}, folder / "b.safetensors")
    placed = {**dict.fromkeys(first, "a.safetensors"), **dict.fromkeys(second, "b.safetensors")}
    placed |= {twice: "a.safetensors"} if index_names_it else {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return stored


def test_the_index_says_which_of_two_copies_counts(folder: Path, tmp_path: Path) -> None:
    twice = "connector.fc1.bias"
    stored = in_two_shards(folder, twice)
    model = load_model(folder)
    assert torch.equal(dict(model.module.named_parameters())[twice], stored[twice])
    save(model, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out/ema.safetensors")[twice], stored[twice])


def test_two_copies_that_the_index_does_not_place_are_refused(folder: Path) -> None:
    in_two_shards(folder, "connector.fc1.bias", index_names_it=False)
    with pytest.raises(UserError, match="connector.fc1.bias is in a.safetensors and in b.safetensors"):
        load_model(folder)


def test_a_type_that_export_cannot_write_is_refused_at_load(folder: Path) -> None:
    rewrite(folder / "ema.safetensors", lambda t: t.update(scale=torch.zeros(2, dtype=torch.float8_e4m3fn)))
    with pytest.raises(UserError, match="scale is of type F8_E4M3, expected one of"):
        load_model(folder)


def test_weights_without_the_vision_tower_say_what_to_copy(folder: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith(("vit_model", "connector", "vit_pos"))]:
            del tensors[key]

    rewrite(folder / "ema.safetensors", drop)
    with pytest.raises(UserError, match="left connector, vit_model.*out, as a fine-tune may.*: copy these tensors"):
        load_model(folder)


def test_bfloat16_weights_load_into_float32(folder: Path, whole: Path) -> None:
    exact = load_file(whole / "ema.safetensors")
    save_file({key: tensor.bfloat16() for key, tensor in exact.items()}, folder / "ema.safetensors")
    parameters = dict(load_model(folder).module.named_parameters())
    assert parameters["llm2vae.weight"].dtype == torch.float32
    assert torch.equal(parameters["llm2vae.weight"], exact["llm2vae.weight"].bfloat16().float())


def test_every_difference_of_the_keys_is_listed(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["time_embedder.mlp.0.bias"]
        tensors["language_model.model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
        tensors["vae2llm.weight"] = torch.zeros(3, 4)

    rewrite(folder / "ema.safetensors", change)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "missing: time_embedder.mlp.0.bias" in message
    assert "unexpected: language_model.model.layers.9.mlp.up_proj.weight" in message
    assert "vae2llm.weight is [3, 4], expected [32, 16]" in message
    assert str(folder) in message and "llm_config.json" in message


@pytest.mark.parametrize("name", ["llm_config.json", "vit_config.json", "ema.safetensors", "ae.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load_model(folder)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_tokenizer_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load_model(folder)


@pytest.mark.parametrize("name", ["ema.safetensors", "ae.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "junk", "empty"])
def test_damaged_weights_are_named(folder: Path, name: str, damage: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes({"cut": data[:-100], "junk": b"\xff" * 64, "empty": b""}[damage])
    with pytest.raises(UserError, match=name):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "llm_config.json", "vit_config.json"])
def test_damaged_configurations_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{ not json")
    with pytest.raises(UserError, match=name):
        load_model(folder)


def test_a_damaged_vocabulary_is_named(folder: Path) -> None:
    (folder / "vocab.json").write_text("{ not json")
    with pytest.raises(UserError, match="tokenizer's files"):
        load_model(folder)


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds nothing\. Known are bagel: llm_config\.json, vit_config\.json"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"llm_config\.json is missing"):
        load_model(tmp_path, kind="bagel")
    with pytest.raises(UserError, match="use one of bagel"):
        load_model(tmp_path, kind="other")


def test_another_architecture_is_refused(folder: Path) -> None:
    edit_json(folder / "llm_config.json", model_type="llama")
    with pytest.raises(UserError, match="'llama'"):
        load_model(folder)


def test_a_foreign_vocabulary_is_refused(folder: Path) -> None:
    edit_json(folder / "llm_config.json", vocab_size=200)
    with pytest.raises(UserError, match="vocab_size 200"):
        load_model(folder)
    edit_json(folder / "llm_config.json", vocab_size=300)
    with pytest.raises(UserError, match=r"embed_tokens\.weight is \[272, 32\], expected \[300, 32\]"):
        load_model(folder)


def test_a_tokenizer_without_picture_tokens_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    kept = {n: t for n, t in config["added_tokens_decoder"].items() if "vision" not in t["content"]}
    edit_json(path, added_tokens_decoder=kept, additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    with pytest.raises(UserError, match=r"<\|vision_start\|>"):
        load_model(folder)


# ---- the autoencoder


@pytest.mark.parametrize("multipliers", [(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 2, 3)])
def test_the_autoencoder_survives_its_released_key_names(tmp_path: Path, multipliers: tuple[int, ...]) -> None:
    config = replace(TINY.vae, ch_mult=multipliers, num_res_blocks=2)
    saved = Autoencoder(config)
    randomise(saved, 3)
    save_autoencoder(saved, tmp_path / "ae.safetensors")
    keys = load_file(tmp_path / "ae.safetensors")
    assert keys["decoder.mid.attn_1.proj_out.weight"].shape == (8 * multipliers[3], 8 * multipliers[3], 1, 1)
    assert "encoder.down.0.downsample.conv.weight" in keys and "encoder.down.3.downsample.conv.weight" not in keys
    assert "decoder.up.3.upsample.conv.weight" in keys and "decoder.up.0.upsample.conv.weight" not in keys
    loaded = Autoencoder(config)
    randomise(loaded, 4)
    load_autoencoder(loaded, tmp_path / "ae.safetensors")
    for name, tensor in saved.kl.state_dict().items():
        assert torch.equal(loaded.kl.state_dict()[name], tensor), name


def test_the_autoencoder_is_loaded_strictly(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.extra"] = tensors.pop("encoder.conv_in.bias")

    path = folder / "ae.safetensors"
    rewrite(path, change)
    with pytest.raises(UserError, match=r"missing: encoder\.conv_in\.bias; unexpected: encoder\.extra"):
        load_model(folder)
    rewrite(path, lambda t: t.update({"encoder.conv_in.bias": t.pop("encoder.extra")[:3].clone()}))
    with pytest.raises(UserError, match="vae_config"):
        load_model(folder)


# ---- export


def test_an_export_changes_the_trained_tensors_alone(whole: Path, tmp_path: Path) -> None:
    model = load_model(whole)
    trained = model.trainable("generation")
    named = dict(model.module.named_parameters())
    with torch.no_grad():
        for name in trained:
            named[name].add_(1.0)
    target = tmp_path / "export"
    model.export(target, trained, ((name, named[name]) for name in trained))
    before, after = load_file(whole / "ema.safetensors"), load_file(target / "ema.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        expected = before[name] + 1.0 if name in trained else before[name]
        assert torch.equal(after[name], expected), name
    for path in whole.iterdir():
        if path.name != "ema.safetensors":
            assert (target / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(p.name for p in target.iterdir()) == sorted(p.name for p in whole.iterdir())
    again = dict(load_model(target).module.named_parameters())
    assert all(torch.equal(again[name], named[name]) for name in named)


def test_trained_tensors_keep_float32_beside_frozen_bfloat16(folder: Path, tmp_path: Path) -> None:
    halves = {key: tensor.bfloat16() for key, tensor in load_file(folder / "ema.safetensors").items()}
    save_file(halves, folder / "ema.safetensors")
    model = load_model(folder)
    names = ["llm2vae.bias"]
    updated = halves["llm2vae.bias"].float() + 1e-5
    model.export(tmp_path / "as_stored", names, [("llm2vae.bias", updated)])
    model.export(tmp_path / "exact", names, [("llm2vae.bias", updated)], torch.float32)
    rounded = load_file(tmp_path / "as_stored" / "ema.safetensors")
    exact = load_file(tmp_path / "exact" / "ema.safetensors")
    assert rounded["llm2vae.bias"].dtype == torch.bfloat16
    assert torch.equal(exact["llm2vae.bias"], updated)
    for key, tensor in halves.items():
        if key not in names:
            assert exact[key].dtype == torch.bfloat16 and torch.equal(exact[key], tensor)
    load_model(tmp_path / "exact")


def test_a_failed_export_leaves_nothing_that_looks_whole(whole: Path, tmp_path: Path) -> None:
    model = load_model(whole)
    with pytest.raises(ValueError, match="expected llm2vae"):
        model.export(tmp_path / "export", ["llm2vae.bias"], [])
    assert not list((tmp_path / "export").glob("ema*"))
    with pytest.raises(UserError, match="own folder"):
        save(model, whole)
    with pytest.raises(ValueError, match="does not have"):
        model.export(tmp_path / "export", ["llm2vae.biass"], [])


def test_saving_writes_the_present_weights(whole: Path, tmp_path: Path) -> None:
    model = load_model(whole)
    with torch.no_grad():
        model.module.get_parameter("llm2vae.bias").fill_(7.0)
    save(model, tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "ema.safetensors")["llm2vae.bias"].eq(7.0).all()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ('{"weight_map": {"llm2vae.bias": "../model.safetensors"}}', "names ../model.safetensors, outside"),
        ('{"weight_map": {"llm2vae.bias": "/a/model.safetensors"}}', "names /a/model.safetensors, outside"),
        ('{"weight_map": {"llm2vae.bias": "ema.safetensors", "llm2vae.bias": "b.safetensors"}}', "each key once"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(folder: Path, index: str, said: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=said):
        load_model(folder)
