"""Qwen-Image behind the protocols: its pipeline draws and conditions the same, and what cannot be is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from safetensors import safe_open
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models import family_of, load_model
from srum_ds.models.contract import check_adapter
from srum_ds.models.flow import initial_noise
from srum_ds.models.vlm_dit import FAMILY
from srum_ds.models.vlm_dit.adapter import VlmDitAdapter, load_vlm_dit
from srum_ds.models.vlm_dit.inspect import inspect_folder
from srum_ds.models.vlm_dit.sampling import PipelineSampling
from srum_ds.types import Prompt, TrainView
from tests.support.tiny_qwen_image import TinyQwenImage, pipeline_redraws, write_tiny_qwen_image

SAMPLING = PipelineSampling(4, 3.0)
TEXTS = ("a red circle", "two blue squares and a green triangle", "a")
VARIANTS = {
    "grouped": TinyQwenImage(),
    "tied": TinyQwenImage(kv_heads=1, tied=True, blocks=1, block_heads=3, axes=(2, 4, 6), base=8, tokens=36),
    "half": TinyQwenImage(blocks=3, dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_qwen_image(tmp_path_factory.mktemp("qwen_image") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> VlmDitAdapter:
    return load_vlm_dit(folder)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    found: Any = QwenImagePipeline.from_pretrained(str(folder), dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


def test_it_keeps_every_promise(folder: Path) -> None:
    checks = check_adapter("auto", folder, SAMPLING)
    assert [(check.name, check.detail) for check in checks if not check.ok] == []
    assert len(checks) == 11 + 4 * len(FAMILY.modes)


# ---- as the pipeline does it


@pytest.mark.parametrize("variant", VARIANTS)
def test_its_pipeline_draws_the_same_from_the_same_noise(variant: str, tmp_path: Path) -> None:
    assert pipeline_redraws(write_tiny_qwen_image(tmp_path / "model", 3, VARIANTS[variant])) < 1e-5


@pytest.mark.parametrize(("grid", "scale"), [((2, 5), 1.0), ((6, 1), 2.5)])
def test_its_pipeline_draws_other_sizes_and_scales_the_same(
    model: VlmDitAdapter, pipeline: Any, grid: tuple[int, int], scale: float
) -> None:
    noise = torch.randn(len(TEXTS), grid[0] * grid[1], 16, generator=torch.Generator().manual_seed(1))
    height, width = 16 * grid[0], 16 * grid[1]
    assert model.grid(height, width) == grid
    found = model.generator.sample(noise, grid, PipelineSampling(6, scale), TEXTS)
    expected = pipeline(
        list(TEXTS),
        negative_prompt=[" "] * len(TEXTS),
        true_cfg_scale=scale,
        height=height,
        width=width,
        num_inference_steps=5,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    decoded = pipeline(TEXTS[0], height=height, width=width, latents=found[:1], num_inference_steps=2, output_type="pt")
    assert decoded.images.shape == model.generator.decode(found[:1], grid).shape


def view_of(tokens: Tensor, time: Tensor, dropped: Tensor) -> TrainView:
    counts = torch.ones(tokens.shape[:3], dtype=torch.bool)
    return TrainView({"x_NMTC": tokens, "time_NM": time, "dropped_NM": dropped}, tokens, counts, time)


def test_a_training_pass_is_the_librarys_with_dropped_prompts_as_its_empty_one(
    model: VlmDitAdapter, pipeline: Any
) -> None:
    generator = torch.Generator().manual_seed(2)
    x_NMTC = torch.randn(3, 2, 6, 16, generator=generator)
    time_NM = torch.rand(3, 2, generator=generator)
    dropped_NM = torch.tensor([[False, True], [False, False], [True, False]])
    prompts = [Prompt(str(number), text) for number, text in enumerate(TEXTS)]
    with torch.no_grad():
        found = model.predict(model.module, prompts, view_of(x_NMTC, time_NM, dropped_NM), (3, 2))
        for n, m in ((0, 0), (0, 1), (1, 1), (2, 0)):
            embedded, mask = pipeline.encode_prompt([" " if dropped_NM[n, m] else TEXTS[n]])
            assert mask is None
            expected = pipeline.transformer(
                hidden_states=x_NMTC[n, m][None],
                timestep=time_NM[n, m][None],
                encoder_hidden_states=embedded,
                img_shapes=[[(1, 3, 2)]],
                return_dict=False,
            )[0]
            torch.testing.assert_close(found[n, m], expected[0], rtol=1e-5, atol=1e-5)
    assert float((found[0, 0] - found[0, 1]).abs().max()) > 1e-2


def test_drawing_and_training_take_no_numbers_from_torchs_own_generator(model: VlmDitAdapter) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    prompts = [Prompt("0", "a red circle")]
    tokens, _ = model.generate(prompts, [("a", 0)], (2, 2), SAMPLING)
    view = view_of(tokens[:, None], torch.full((1, 1), 0.5), torch.zeros(1, 1, dtype=torch.bool))
    with torch.no_grad():
        model.predict(model.module, prompts, view, (2, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_trains_is_what_a_loss_reaches(folder: Path) -> None:
    model = load_vlm_dit(folder)
    model.module.requires_grad_(True)
    tokens = torch.randn(2, 1, 4, 16, generator=torch.Generator().manual_seed(3))
    view = view_of(tokens, torch.tensor([[0.2], [0.7]]), torch.zeros(2, 1, dtype=torch.bool))
    prompts = [Prompt("0", "a red circle"), Prompt("1", "a")]
    model.predict(model.module, prompts, view, (2, 2)).square().mean().backward()
    reached = {
        name
        for name, parameter in model.module.named_parameters()
        if parameter.grad is not None and bool((parameter.grad != 0).any())
    }
    assert set(model.trainable("generation")) == reached
    idle = {name for name, _ in model.module.transformer.named_parameters()} - {
        name.removeprefix("transformer.") for name in reached
    }
    assert len(idle) == 9 and all(name.startswith("transformer_blocks.1.") for name in idle)


def test_checkpointed_blocks_have_the_same_gradient(folder: Path) -> None:
    tokens = torch.randn(1, 2, 4, 16, generator=torch.Generator().manual_seed(3))
    view = view_of(tokens, torch.tensor([[0.2, 0.7]]), torch.tensor([[False, True]]))
    found = []
    for enabled in (False, True):
        model = load_vlm_dit(folder)
        model.module.transformer.requires_grad_(True)
        model.enable_checkpointing(enabled)
        model.predict(model.module, [Prompt("0", "a")], view, (2, 2)).square().mean().backward()
        found.append(model.module.transformer.img_in.weight.grad)
    torch.testing.assert_close(found[0], found[1])


# ---- folders


def keys_of(path: Path) -> set[str]:
    with safe_open(str(path), framework="pt") as handle:
        return set(handle.keys())


def test_all_tensors_of_the_text_encoder_have_their_place_and_their_names_again(folder: Path, tmp_path: Path) -> None:
    model = load_vlm_dit(folder)
    stored = dict(model.stored())
    names = {name for name, _ in model.module.named_parameters()}
    assert stored.keys() == names
    file = Path("text_encoder") / "model.safetensors"
    assert any(key.startswith("visual.") for key in keys_of(folder / file)), "the release's names"
    assert any(name.startswith("text_encoder.model.visual.") for name in names), "the library's names"
    changed = "transformer.proj_out.bias"
    model.export(tmp_path / "new", [changed], [(changed, torch.zeros_like(stored[changed]))])
    for part in ("text_encoder/model", "transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        assert keys_of(tmp_path / "new" / f"{part}.safetensors") == keys_of(folder / f"{part}.safetensors")
    again: Any = QwenImagePipeline.from_pretrained(str(tmp_path / "new"), dtype=torch.float32)
    assert float(again.transformer.proj_out.bias.detach().abs().max()) == 0
    for name, parameter in again.text_encoder.named_parameters():
        assert torch.equal(parameter, stored[f"text_encoder.{name}"])


def test_an_adapter_is_exported_as_the_librarys_transformer_names_it(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model = load_vlm_dit(folder)
    binding = model.add_lora(2, 4.0, (), 0)
    assert all(name.startswith("transformer.transformer_blocks.") and ".attn." in name for name in binding.modules)
    assert "transformer.transformer_blocks.1.attn.to_add_out" not in binding.modules
    names = model.trainable("lora")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in names:
            parameter = model.module.get_parameter(name)
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.export(tmp_path / "new", names, ((name, model.module.get_parameter(name)) for name in names))
    base: Any = QwenImageTransformer2DModel.from_pretrained(str(folder / "transformer"), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "new" / "lora"))
    merged: Any = QwenImageTransformer2DModel.from_pretrained(
        str(tmp_path / "new" / "transformer"), dtype=torch.float32
    )
    given = {
        "hidden_states": torch.randn(1, 4, 16, generator=generator),
        "encoder_hidden_states": torch.randn(1, 3, 32, generator=generator),
        "timestep": torch.tensor([0.4]),
        "img_shapes": [[(1, 2, 2)]],
        "return_dict": False,
    }
    with torch.no_grad():
        expected = model.module.transformer(**given)[0]
        torch.testing.assert_close(adapted(**given)[0], expected)
        torch.testing.assert_close(merged(**given)[0], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, load_vlm_dit(folder).module.transformer(**given)[0], atol=1e-3)
    with pytest.raises(UserError, match="names no module"):
        load_vlm_dit(folder).add_lora(2, 4.0, ("q_proj",), 0)


def test_a_judge_alone_has_no_transformer_and_says_the_same(folder: Path, model: VlmDitAdapter) -> None:
    judge = load_model(folder, only_judges=True)
    image = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))]
    asked = (image, ["Is it red?"], ("yes", "no"))
    assert torch.equal(judge.answer_logprobs(*asked), model.answer_logprobs(*asked))
    assert {name.partition(".")[0] for name, _ in judge.module.named_parameters()} == {"text_encoder"}


def test_inspect_counts_without_weights(folder: Path, tmp_path: Path, model: VlmDitAdapter) -> None:
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    facts = inspect_folder(tmp_path / "bare")
    counts = {name: parameter.numel() for name, parameter in model.module.named_parameters()}
    assert facts["keys"] == len(counts) and facts["parameters"] == sum(counts.values())
    assert facts["parts"]["transformer"] == sum(p.numel() for p in model.module.transformer.parameters())
    assert facts["trainable"]["generation"] == sum(counts[name] for name in model.trainable("generation"))
    assert "QwenImagePipeline" in FAMILY.inspect(tmp_path / "bare")[1]


# ---- what is refused


def edited(folder: Path, target: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a folder with one JSON file changed."""
    shutil.copytree(folder, target)
    values = json.loads((target / file).read_text())
    change(values)
    (target / file).write_text(json.dumps(values))
    return target


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, r"_class_name is FluxPipeline; .* QwenImagePipeline"),
        ("model_index.json", {"scheduler": ["diffusers", "UniPCMultistepScheduler"]}, "expected FlowMatchEuler"),
        ("model_index.json", {"vae": [None, None]}, "lacks vae"),
        ("model_index.json", {"transformer": ["mine", "Dit"]}, r"transformer is mine\.Dit"),
        ("model_index.json", {"transformer": ["diffusers", "NoSuchModel"]}, "does not have"),
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, "stochastic_sampling"),
        ("text_encoder/config.json", {"image_token_id": 3}, "image_token_id"),
        ("transformer/config.json", {"num_layers": 3}, "missing: transformer.transformer_blocks.2"),
        ("transformer/config.json", {"axes_dims_rope": "wide"}, r"transformer/config\.json: no model"),
        ("vae/config.json", {"z_dim": 8}, "vae/config.json belongs"),
    ],
)
def test_a_folder_that_does_not_fit_is_the_users_mistake(
    folder: Path, tmp_path: Path, file: str, change: dict[str, Any], words: str
) -> None:
    broken = edited(folder, tmp_path / "broken", file, lambda values: values.update(change))
    with pytest.raises(UserError, match=words):
        load_vlm_dit(broken)


def test_a_missing_component_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer", "vae"))
    with pytest.raises(UserError, match="lacks vae, tokenizer"):
        load_vlm_dit(tmp_path / "bare")
    assert family_of(tmp_path / "bare").kind == "vlm_dit"


def test_one_step_is_drawn_where_the_noise_levels_have_it(folder: Path, tmp_path: Path) -> None:
    one = PipelineSampling(2, 3.0)
    with pytest.raises(UserError, match="num_timesteps=3"):
        load_vlm_dit(folder).generate([Prompt("0", "a star")], [("one", 0)], (2, 2), one)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_terminal": None}))
    model = load_vlm_dit(copy)
    tokens, _ = model.generate([Prompt("0", "a star")], [("one", 0)], (2, 2), one)
    pipeline: Any = QwenImagePipeline.from_pretrained(str(copy), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        ["a star"],
        negative_prompt=[" "],
        true_cfg_scale=3.0,
        height=32,
        width=32,
        num_inference_steps=1,
        latents=initial_noise([("one", 0)], (4, model.token_spec.size)),
        output_type="latent",
    ).images
    assert float((drawn - tokens).abs().max()) < 1e-4


def test_sizes_that_the_pipeline_would_cut_are_refused(model: VlmDitAdapter) -> None:
    assert model.default_size() == (64, 64)
    assert model.grid(48, 32) == (3, 2)
    for size in ((40, 64), (64, 8), (0, 16), (64, 65)):
        with pytest.raises(UserError, match="multiples of 16"):
            model.grid(*size)


def test_prompts_that_the_pipeline_would_cut_are_refused(model: VlmDitAdapter) -> None:
    model.check_prompts([Prompt("long", "x" * 500)])
    with pytest.raises(UserError, match="prompt 'longer' is too long: 501 tokens"):
        model.check_prompts([Prompt("longer", "x" * 501)])
    with pytest.raises(UserError, match="prompt 'none' is empty"):
        model.generate([Prompt("none", " ")], [("a", 0)], (2, 2), SAMPLING)
