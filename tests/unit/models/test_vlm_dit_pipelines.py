"""Further pipelines by the same adapter: it keeps its promises, and draws what the library's own pipeline draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from srum_ds.models.contract import check_adapter
from srum_ds.models.vlm_dit import FAMILY
from srum_ds.models.vlm_dit.adapter import load_vlm_dit
from srum_ds.models.vlm_dit.config import read_folder
from srum_ds.models.vlm_dit.sampling import PipelineSampling
from srum_ds.models.vlm_dit.stand_ins import TextProcessor
from tests.support.tiny_pipelines import TINY_PIPELINES

TEXTS = ("a red circle", "two blue squares and a green triangle")

# Which sign, guidance and empty prompt each of them has, from its code.
FACTS: dict[str, tuple[float, str, str, dict[str, Any]]] = {
    "NucleusMoEImagePipeline": (-1.0, "rescaled", "guidance_scale", {}),
    "QwenImage21Pipeline": (1.0, "plain", "true_cfg_scale", {"negative_prompt": " "}),
    "LongCatImagePipeline": (1.0, "shortened", "guidance_scale", {"enable_prompt_rewrite": False}),
}


@pytest.fixture(scope="module", params=TINY_PIPELINES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY_PIPELINES[request.param](tmp_path_factory.mktemp(request.param) / "model")


def library_pipeline(folder: Path) -> Any:
    """The library's pipeline of the components that its own classes load; its processor would need torchvision."""
    found = read_folder(folder)
    parts: dict[str, Any] = {
        part: found.loaded_class(part).from_pretrained(str(folder / part), dtype=torch.float32)
        for part in ("transformer", "vae", "text_encoder")
    }
    tokenizer = load_vlm_dit(folder).generator.tokenizer
    texts = {"tokenizer": tokenizer, "processor": TextProcessor(tokenizer), "text_processor": None}
    parts |= {name: text for name, text in texts.items() if name in found.components}
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(str(folder / "scheduler"))
    pipeline = found.pipeline_class()(scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
def test_it_keeps_every_promise(folder: Path) -> None:
    checks = check_adapter("auto", folder, PipelineSampling(3, 3.0))
    assert [(check.name, check.detail) for check in checks if not check.ok] == []
    assert len(checks) == 11 + 4 * len(FAMILY.modes)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_its_pipeline_draws_the_same_from_the_same_noise(folder: Path, scale: float) -> None:
    model = load_vlm_dit(folder)
    dry = model.generator.dry
    sign, guide, setting, options = FACTS[dry.folder.name]
    assert (dry.sign, dry.guide, dry.time_scale) == (sign, guide, 1.0)
    grid = (2, 4)
    noise = torch.randn(len(TEXTS), 8, model.token_spec.size, generator=torch.Generator().manual_seed(1))
    found = model.generator.sample(noise, grid, PipelineSampling(5, scale), TEXTS)
    pipeline = library_pipeline(folder)
    for text, start, tokens in zip(TEXTS, noise, found, strict=True):
        given: dict[str, Any] = {setting: scale, "height": 32, "width": 64, "num_inference_steps": 4, **options}
        latents = pipeline(text, latents=start[None], output_type="latent", **given).images
        torch.testing.assert_close(tokens[None], latents, rtol=1e-5, atol=1e-5)
        picture = pipeline(text, latents=start[None], output_type="pt", **given).images
        expected = picture[:, :3] * picture[:, 3:] + 1 - picture[:, 3:] if picture.shape[1] == 4 else picture
        assert float((model.generator.decode(tokens[None], grid) - expected).abs().max()) < 0.51 / 255
