"""BLIP3-o behind the protocols: it keeps every promise, draws as the library's parts do, and refuses what cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models import family_of
from srum_ds.models.blip3o import FAMILY
from srum_ds.models.blip3o.adapter import Blip3oAdapter, load_blip3o
from srum_ds.models.blip3o.inspect import inspect_folder, inspection_text
from srum_ds.models.blip3o.prompts import BEFORE, BEHIND
from srum_ds.models.blip3o.settings import Blip3oSampling
from srum_ds.models.contract import check_adapter
from srum_ds.types import Prompt, TrainView
from tests.support.tiny_blip3o import TinyBlip3o, parts_redraw, write_tiny_blip3o
from tests.support.tiny_models import random_picture
from tests.support.tiny_qwen_image import TinyQwenImage

SAMPLING = Blip3oSampling(4, 3.0, 3, 2.0)
GRID = (4, 4)
TEXTS = ("a red circle", "two blue squares and a green triangle", "a")
PROMPTS = [Prompt(str(number), text) for number, text in enumerate(TEXTS)]
VARIANTS = {
    "flat": TinyBlip3o(),
    "nested": TinyBlip3o(
        vlm=TinyQwenImage(width=48, mrope=(2, 2, 2), kv_heads=1, tied=True),
        queries=3,
        side=3,
        channels=7,
        dim=32,
        layers=1,
        heads=4,
        kv_heads=4,
        nested=True,
    ),
    "half": TinyBlip3o(dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_blip3o(tmp_path_factory.mktemp("blip3o") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Blip3oAdapter:
    return load_blip3o(folder)


def test_it_keeps_every_promise(folder: Path) -> None:
    checks = check_adapter("auto", folder, SAMPLING)
    assert [(check.name, check.detail) for check in checks if not check.ok] == []
    assert len(checks) == 11 + 4 * len(FAMILY.modes)


# ---- as the libraries' parts do it


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_libraries_parts_draw_the_same_from_the_same_noise(variant: str, tmp_path: Path) -> None:
    assert parts_redraw(write_tiny_blip3o(tmp_path / "model", 3, VARIANTS[variant])) < 1e-5


@torch.no_grad()
def test_a_prompts_conditions_are_the_same_among_longer_ones(model: Blip3oAdapter) -> None:
    ids = model.generator.prompts.prompt_ids(PROMPTS)
    assert model.generator.prompts.tokenizer.decode(ids[0][:-1]) == f"{BEFORE}{TEXTS[0]}{BEHIND}"
    together = model.generator.conditions(ids)
    assert together.shape == (3, 5, 32)
    for row, alone in enumerate(ids):
        torch.testing.assert_close(together[row], model.generator.conditions([alone])[0], rtol=1e-5, atol=1e-5)
    assert float((together[0] - together[1]).abs().max()) > 0.1


def test_the_decoders_noise_and_the_features_noise_are_two(model: Blip3oAdapter) -> None:
    keys = [("one", 0), ("one", 1)]
    tokens, images = model.generate(PROMPTS[:1] * 2, keys, GRID, SAMPLING)
    assert not torch.equal(tokens[0], tokens[1])
    other_pixels = model.generator.decode(tokens[:1], [("another", 0)], SAMPLING)
    assert float((other_pixels[0] - images[0]).abs().mean()) > 0.02
    assert torch.equal(model.generator.decode(tokens, keys, SAMPLING), images)


def test_the_decoder_is_guided_against_the_features_of_the_empty_text(model: Blip3oAdapter) -> None:
    """By hand: with features equal to those of the empty text, guidance changes nothing."""
    empty = model.generator.empty_features(SAMPLING)
    strong = Blip3oSampling(4, 3.0, 3, 7.0)
    plain = Blip3oSampling(4, 3.0, 3, 1.0)
    key = [("pixels", 0)]
    found = [model.generator.decode(empty, key, how) for how in (strong, plain)]
    assert float((found[0] - found[1]).abs().max()) < 1.5 / 255
    tokens, _ = model.generate(PROMPTS[:1], key, GRID, SAMPLING)
    guided = [model.generator.decode(tokens, key, how) for how in (strong, plain)]
    assert float((guided[0] - guided[1]).abs().mean()) > 0.01


# ---- training


def view_of(dropped_NM: Tensor) -> TrainView:
    generator = torch.Generator().manual_seed(2)
    x_NMTC = torch.randn(*dropped_NM.shape, 16, 12, generator=generator)
    time_NM = torch.rand(*dropped_NM.shape, generator=generator)
    counts = torch.ones(x_NMTC.shape[:3], dtype=torch.bool)
    return TrainView({"x_NMTC": x_NMTC, "time_NM": time_NM, "dropped_NM": dropped_NM}, x_NMTC, counts, time_NM)


@torch.no_grad()
def test_a_dropped_prompt_is_a_condition_of_zeros(model: Blip3oAdapter) -> None:
    view = view_of(torch.tensor([[False, True], [False, False], [True, False]]))
    found = model.predict(model.module, PROMPTS, view, GRID)
    z_NQD = model.generator.conditions(model.generator.prompts.prompt_ids(PROMPTS))
    for n, m in ((0, 0), (0, 1), (1, 1), (2, 0)):
        z = torch.zeros_like(z_NQD[n]) if view.inputs["dropped_NM"][n, m] else z_NQD[n]
        x_CHW = view.inputs["x_NMTC"][n, m].T.reshape(12, *GRID)
        v = model.module.dit(x_CHW[None], 1000 * view.inputs["time_NM"][n, m][None], z[None])[0]
        torch.testing.assert_close(found[n, m], v.flatten(1).T, rtol=1e-4, atol=1e-5)


def gradients(model: Blip3oAdapter, view: TrainView) -> dict[str, Tensor]:
    """Of a mean of squares, by what mode generation trains."""
    parameters = dict(model.module.named_parameters())
    names = model.trainable("generation")
    for name in names:
        parameters[name].requires_grad_(True)
    model.predict(model.module, PROMPTS, view, GRID).square().mean().backward()
    found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    model.module.zero_grad()
    model.module.requires_grad_(False)
    return found


def test_the_queries_learn_through_the_frozen_language_model(folder: Path) -> None:
    model = load_blip3o(folder)
    view = view_of(torch.tensor([[False], [False], [True]]))
    found = gradients(model, view)
    assert found.keys() == set(model.trainable("generation"))
    assert {name.split(".")[0] for name in found} == {"queries", "dit"}
    assert float(found["queries.latent_queries"].abs().max()) > 0
    # Nothing but zeros conditions dropped views: then the queries have nothing to learn from.
    dropped = gradients(model, view_of(torch.ones(3, 1, dtype=torch.bool)))
    assert float(dropped["queries.latent_queries"].abs().max()) == 0


def test_recomputing_keeps_less_and_changes_nothing(folder: Path) -> None:
    model = load_blip3o(folder)
    view = view_of(torch.tensor([[False], [False], [True]]))

    def counted() -> tuple[dict[str, Tensor], int]:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return gradients(model, view), sum(sizes)

    plain, kept = counted()
    model.enable_checkpointing()
    again, fewer = counted()
    assert fewer < kept / 2
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name
    model.enable_checkpointing(False)
    assert counted()[1] == kept


def test_times_are_scaled_and_not_truncated_in_training(model: Blip3oAdapter) -> None:
    view = view_of(torch.zeros(3, 1, dtype=torch.bool))
    time_NM = torch.full((3, 1), 0.5)
    with torch.no_grad():
        found = []
        for shift in (0.0, 0.0005):
            inputs = {**view.inputs, "time_NM": time_NM + shift}
            found.append(model.predict(model.module, PROMPTS, TrainView(inputs, view.target, view.counts_NMT), GRID))
    assert not torch.equal(found[0], found[1])


# ---- the folder


def test_an_export_has_the_folders_layout_with_all_that_is_not_trained(folder: Path, tmp_path: Path) -> None:
    """Keys and files are those of the source, though it is in shards and holds a vision tower that nothing reads."""
    source, target = tmp_path / "source", tmp_path / "export"
    shutil.copytree(folder, source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.gen_vision_tower.vision_tower.cls_token"] = torch.randn(1, 1, 4).half()
    (source / "model.safetensors").unlink()
    keys = sorted(tensors)
    shards = {f"model-0000{number}-of-00002.safetensors": keys[number - 1 :: 2] for number in (1, 2)}
    for name, held in shards.items():
        save_file({key: tensors[key] for key in held}, source / name)
    index = {"weight_map": {key: name for name, held in shards.items() for key in held}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load_blip3o(source)
    names = model.trainable("generation")
    new = {name: torch.full_like(p, 0.5) for name, p in model.module.named_parameters() if name in names}
    model.export(target, list(new), iter(new.items()), torch.bfloat16)
    found = load_file(target / "model.safetensors")
    assert found.keys() == tensors.keys()
    trained = [key for key in found if key.startswith(("model.dit.", "model.latent_queries"))]
    assert len(trained) == len(names)
    assert all(found[key].dtype == torch.bfloat16 and bool((found[key] == 0.5).all()) for key in trained)
    assert all(torch.equal(found[key], tensors[key]) for key in keys if key not in trained)

    def files(place: Path) -> set[str]:
        return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}

    gone = {*shards, "model.safetensors.index.json"}
    assert files(target) == (files(source) - gone) | {"model.safetensors"}
    load_blip3o(target)


def test_an_adapters_file_names_the_released_transformers_layers(folder: Path, tmp_path: Path) -> None:
    model = load_blip3o(folder)
    binding = model.add_lora(2, 4.0, ["attn2.to_k", "caption_projection.linear_1"], 0)
    assert binding.modules == (
        "dit.caption_projection.linear_1",
        "dit.transformer.layers.0.attn2.to_k",
        "dit.transformer.layers.1.attn2.to_k",
    )
    parameters = dict(model.module.named_parameters())
    names = model.trainable("lora")
    model.export(tmp_path / "export", names, ((name, parameters[name].detach()) for name in names))
    found = load_file(tmp_path / "export/lora/adapter_model.safetensors")
    layers = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in found}
    assert layers == {
        "model.caption_projection.linear_1",
        "model.layers.0.attn2.to_k",
        "model.layers.1.attn2.to_k",
    }
    with pytest.raises(UserError, match="names no module"):
        load_blip3o(folder).add_lora(2, 4.0, ["q_proj"], 0)


def test_a_judge_alone_answers_the_same_and_cannot_draw(folder: Path, model: Blip3oAdapter) -> None:
    judge = load_blip3o(folder, only_judges=True)
    assert all(name.startswith("vlm.") for name, _ in judge.module.named_parameters())
    images = [random_picture(64, 48)]
    expected = model.answer_logprobs(images, ["Is it red?"], ("yes", "no"))
    assert torch.equal(judge.answer_logprobs(images, ["Is it red?"], ("yes", "no")), expected)
    assert {unit.__name__ for unit in judge.shard_units()} == {"Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"}
    with pytest.raises(ValueError, match="to judge alone"):
        judge.default_size()


def test_what_a_folder_holds_is_counted_without_its_weights(folder: Path, tmp_path: Path, model: Blip3oAdapter) -> None:
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    facts = inspect_folder(bare)
    whole = dict(model.module.named_parameters())
    assert facts["keys"] == len(whole) and facts["parameters"] == sum(p.numel() for p in whole.values())
    assert facts["features"] == [4, 4, 12]
    assert facts["parts"]["queries"] == 5 * 32
    trained = sum(whole[name].numel() for name in model.trainable("generation"))
    assert facts["trainable"]["generation"] == trained == facts["parts"]["queries"] + facts["parts"]["transformer"]
    text = inspection_text(facts)
    assert "4 x 4 x 12" in text and f"{facts['parameters']:,}" in text


# ---- what cannot be


def edited(folder: Path, target: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(folder, target)
    values = json.loads((target / file).read_text())
    change(values)
    (target / file).write_text(json.dumps(values))
    return target


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"n_query": None}, "config.json: n_query is missing, expected a whole number from 1"),
        ("config.json", {"n_query": 7}, r"misshapen: model.latent_queries is \[1, 5, 32\], expected \[1, 7, 32\]"),
        ("config.json", {"model_type": "blip3o_other"}, "model_type is 'blip3o_other', expected blip3o_qwen"),
        ("config.json", {"vision_config": None}, "no vision_config: .* successors"),
        ("config.json", {"dit": [1]}, "dit is list, expected an object"),
        ("config.json", {"dit": {"n_layers": 0}}, "config.json, dit: n_layers is 0"),
        ("config.json", {"dit": {"latent_embedding_size": 8}}, "latent_embedding_size is 8, but .* hidden_size is 32"),
        ("config.json", {"hidden_size": "wide"}, "config.json: no Qwen2.5-VL can be made of it"),
        ("config.json", {"num_hidden_layers": 3}, "missing: vlm.model.language_model.layers.2"),
        ("config.json", {"image_start_token_id": 100000}, "token before the queries is 100000"),
        ("config.json", {"image_token_id": 3}, "image_token_id"),
        ("diffusion-decoder/unet/config.json", {"cross_attention_dim": 16}, "cross_attention_dim is 16, expected 12"),
        ("diffusion-decoder/unet/config.json", {"addition_embed_type": None}, "addition_embed_type is None"),
        ("diffusion-decoder/unet/config.json", {"sample_size": None}, "sample_size is None"),
        ("diffusion-decoder/unet/config.json", {"layers_per_block": 2}, "unet/config.json belongs"),
        ("diffusion-decoder/unet/config.json", {"block_out_channels": 3}, r"no UNet2DConditionModel can be made of it"),
        ("diffusion-decoder/vae/config.json", {"latent_channels": 8}, "vae/config.json belongs"),
        (
            "diffusion-decoder/scheduler/scheduler_config.json",
            {"_class_name": "EulerAncestralDiscreteScheduler"},
            "'EulerAncestralDiscreteScheduler', expected one of EulerDiscreteScheduler, DDIMScheduler",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_the_users_mistake(
    folder: Path, tmp_path: Path, file: str, change: dict[str, Any], words: str
) -> None:
    broken = edited(folder, tmp_path / "broken", file, lambda values: values.update(change))
    with pytest.raises(UserError, match=words):
        load_blip3o(broken)


def test_a_missing_decoder_and_a_missing_tensor_are_named(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("diffusion-decoder"))
    assert family_of(bare).kind == "blip3o"
    with pytest.raises(UserError, match="diffusion-decoder is missing: the decoder .* ships with its weights"):
        load_blip3o(bare)
    load_blip3o(bare, only_judges=True)
    tensors = load_file(bare / "model.safetensors")
    tensors["model.image_newline"] = tensors.pop("model.latent_queries")
    save_file(tensors, bare / "model.safetensors")
    with pytest.raises(UserError, match="missing: queries.latent_queries; unexpected: .*image_newline"):
        load_blip3o(bare, only_judges=True)


def test_a_tokenizer_without_the_token_before_the_queries(folder: Path, tmp_path: Path) -> None:
    def forget(values: dict[str, Any]) -> None:
        values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != "[IMG]"]

    broken = edited(folder, tmp_path / "broken", "tokenizer.json", forget)
    with pytest.raises(UserError, match=r"does not know \[IMG\].*151665"):
        load_blip3o(broken)
    named = edited(broken, tmp_path / "named", "config.json", lambda values: values.update(image_start_token_id=7))
    assert load_blip3o(named).generator.prompts.empty == (7,)


def test_other_sizes_prompts_edits_and_modes_are_refused(model: Blip3oAdapter) -> None:
    assert model.default_size() == (16, 16) and model.grid(16, 16) == GRID
    for size in ((32, 32), (16, 8), (0, 0)):
        with pytest.raises(UserError, match="images of 16 x 16 pixels alone"):
            model.grid(*size)
    with pytest.raises(UserError, match="prompt 'none' is empty"):
        model.generate([Prompt("none", " ")], [("a", 0)], GRID, SAMPLING)
    with pytest.raises(UserError, match="prompt 'long' is too long: .* 2043 fit"):
        model.check_prompts([Prompt("long", "x " * 2000)])
    with pytest.raises(UserError, match="image to edit"):
        model.default_size(torch.zeros(3, 16, 16))
    with pytest.raises(UserError, match="language model is frozen"):
        model.trainable("transformer")
