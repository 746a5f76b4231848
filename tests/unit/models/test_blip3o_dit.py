"""BLIP3-o's transformer alone: its sampler's numbers, its folder, and what it does with conditions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from srum_ds.common.errors import UserError
from srum_ds.models.blip3o.denoiser import Denoiser, denoiser_config, denoiser_key, denoiser_name, load_denoiser
from srum_ds.models.blip3o.drawing import DrawingStep, draw_features, velocity
from srum_ds.models.blip3o.sampling import euler, guide, noise_levels, passed_timesteps, to_map, to_tokens
from srum_ds.models.blip3o.settings import Blip3oSampling
from tests.support.tiny_qwen_image import randomise

SIZES = {"input_size": 3, "in_channels": 6, "dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "multiple_of": 8}
WIDTH = 10


def write_denoiser(folder: Path, **changes: Any) -> Path:
    """A folder as ``NextDiTCrossAttn.save_pretrained`` writes it."""
    folder.mkdir(exist_ok=True)
    values = {**SIZES, "latent_embedding_size": WIDTH, "model_type": "nextdit-crossattn", **changes}
    (folder / "config.json").write_text(json.dumps(values))
    denoiser = Denoiser(denoiser_config(values, "here"))
    randomise(denoiser, 0)
    tensors = {denoiser_key(name): tensor.contiguous() for name, tensor in denoiser.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    return load_denoiser(write_denoiser(tmp_path_factory.mktemp("dit")))


# ---- numbers by hand


def test_noise_levels_and_truncated_times_by_hand() -> None:
    sigmas = noise_levels(3)
    torch.testing.assert_close(sigmas, torch.tensor([1.0, 2 / 3, 1 / 3, 0.0]))
    assert passed_timesteps(sigmas).tolist() == [1000, 666, 333]


def test_noise_levels_and_times_are_the_librarys_for_every_number_of_steps() -> None:
    for steps in range(1, 130):
        scheduler: Any = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps))
        assert torch.equal(noise_levels(steps), scheduler.sigmas), steps
        assert torch.equal(passed_timesteps(scheduler.sigmas), scheduler.timesteps.to(torch.long)), steps


def test_guidance_and_euler_by_hand() -> None:
    assert guide(torch.tensor(3.0), torch.tensor(1.0), 3.0).item() == 7.0
    passed: list[int] = []

    def along(x: torch.Tensor, timestep: int) -> torch.Tensor:
        passed.append(timestep)
        return x + timestep

    found = euler(along, torch.tensor([8.0]), torch.tensor([1.0, 0.25, 0.0]))
    # 8 - 0.75 (8 + 1000) = -748; -748 - 0.25 (-748 + 250) = -623.5
    assert found.tolist() == [-623.5] and passed == [1000, 250]


def test_tokens_lie_row_major() -> None:
    maps = torch.arange(12.0).reshape(1, 2, 2, 3)
    tokens = to_tokens(maps)
    assert tokens[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5] and tokens[0, 1].tolist() == [1, 7]
    assert torch.equal(to_map(tokens, (2, 3)), maps)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_timesteps": 1}, "num_timesteps is 1"),
        ({"decoder_timesteps": 0}, "decoder_timesteps is 0"),
        ({"text_scale": -1.0}, "text_scale"),
        ({"decoder_scale": float("inf")}, "decoder_scale"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Blip3oSampling(**settings)
    assert Blip3oSampling().steps == 30 and Blip3oSampling().decoder_steps == 50


# ---- drawing


@torch.no_grad()
def test_drawing_guides_against_zeros_at_the_truncated_times(denoiser: Denoiser) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 9, 6, generator=generator)
    z = torch.randn(2, 4, WIDTH, generator=generator)
    trace: list[DrawingStep] = []
    found = draw_features(denoiser, noise, z, (3, 3), noise_levels(3), 2.5, trace)
    x, times = noise, [1000, 666, 333]
    assert [step.timestep for step in trace] == times
    for step, timestep in zip(trace, times, strict=True):
        passed = torch.full((2,), timestep)
        conditional = velocity(denoiser, x, passed, z, (3, 3))
        empty = velocity(denoiser, x, passed, torch.zeros_like(z), (3, 3))
        assert step.empty_BTC is not None
        torch.testing.assert_close(step.conditional_BTC, conditional, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(step.empty_BTC, empty, rtol=1e-4, atol=1e-5)
        assert float((conditional - empty).abs().max()) > 0.01
        x = x - (empty + 2.5 * (conditional - empty)) / 3
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
    plain = draw_features(denoiser, noise, z, (3, 3), noise_levels(3), 1.0, trace)
    assert trace[-1].empty_BTC is None and not torch.equal(plain, found)


@torch.no_grad()
def test_a_time_is_a_number_and_not_a_step(denoiser: Denoiser) -> None:
    x, z = torch.ones(1, 9, 6), torch.ones(1, 4, WIDTH)
    whole = velocity(denoiser, x, torch.tensor([500]), z, (3, 3))
    assert torch.equal(whole, velocity(denoiser, x, torch.tensor([500.0]), z, (3, 3)))
    assert not torch.equal(whole, velocity(denoiser, x, torch.tensor([500.5]), z, (3, 3)))


# ---- the folder


def test_every_key_has_its_place_and_back(denoiser: Denoiser) -> None:
    for name, _ in denoiser.named_parameters():
        assert denoiser_name(denoiser_key(name)) == name
    assert denoiser_name("model.caption_projection.linear_1.bias") == "caption_projection.linear_1.bias"
    assert denoiser_name("model.layers.0.gate") == "transformer.layers.0.gate"
    assert denoiser_name("model.pad_token") is None
    assert not any("pad_token" in name for name, _ in denoiser.named_parameters())


def test_a_folder_is_loaded_strictly(tmp_path: Path) -> None:
    folder = write_denoiser(tmp_path / "dit")
    tensors = load_file(folder / "model.safetensors")
    gate = tensors.pop("model.layers.1.gate")
    save_file({**tensors, "layers.1.gate": gate}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: transformer.layers.1.gate; unexpected: .*layers.1.gate"):
        load_denoiser(folder)
    save_file({**tensors, "model.layers.1.gate": gate[:1].clone()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"misshapen: model.layers.1.gate is \[1\], expected \[2\]"):
        load_denoiser(folder)
    extra = {"model.layers.1.gate": gate, "model.pad_token": torch.zeros(16)}
    save_file({**tensors, **extra}, folder / "model.safetensors")
    assert torch.equal(load_denoiser(folder).transformer.layers[1].gate, gate)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layers": "two"}, "n_layers is 'two', expected a whole number above 0"),
        ({"n_heads": 3}, "n_heads is 3, of which dim 16 is no multiple"),
        ({"n_heads": 8}, "dim / n_heads is 2, expected a multiple of 4"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads is 3"),
        ({"patch_size": 2}, "patch_size is 2, of which input_size 3"),
        ({"learn_sigma": True}, "learn_sigma"),
        ({"qk_norm": 1}, "qk_norm is 1, expected true or false"),
        ({"norm_eps": -1}, "norm_eps"),
    ],
)
def test_sizes_that_no_transformer_has_are_the_users_mistake(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **changes}))
    with pytest.raises(UserError, match=f"config.json: {words}"):
        load_denoiser(tmp_path)


def test_the_defaults_are_the_releases() -> None:
    config = denoiser_config({"n_kv_heads": None}, "here")
    assert (config.input_size, config.in_channels, config.n_layers, config.head_size) == (8, 1792, 24, 64)
    assert config.n_kv_heads == config.n_heads == 28 and config.latent_embedding_size == 3584


def test_variants_draw(tmp_path: Path) -> None:
    """Positions and norms come from the configuration: another patch, no q/k norm, a wider feed-forward."""
    changes = {"input_size": 4, "patch_size": 2, "qk_norm": False, "ffn_dim_multiplier": 1.5, "n_kv_heads": 2}
    denoiser = load_denoiser(write_denoiser(tmp_path / "dit", **changes))
    with torch.no_grad():
        v = denoiser(torch.randn(2, 6, 4, 4), torch.tensor([3, 900]), torch.randn(2, 5, WIDTH))
    assert v.shape == (2, 6, 4, 4) and v.dtype == torch.float32 and bool(torch.isfinite(v).all())
