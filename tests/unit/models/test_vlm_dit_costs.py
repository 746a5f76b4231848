"""What Qwen-Image's work costs by formula, against torch's own counter of FLOPs on the same passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from srum_ds.common.seeds import SampleKeys
from srum_ds.models import costs_of, load_model
from srum_ds.models.costs import Device, ModelCosts
from srum_ds.models.protocol import ViewSettings
from srum_ds.models.vlm_dit.costs import BEHIND_PROMPT, QwenImageCosts, costs_of_folder
from srum_ds.models.vlm_dit.inspect import inspect_folder
from srum_ds.models.vlm_dit.sampling import PipelineSampling
from srum_ds.types import Prompt, Samples
from tests.support.tiny_pipelines import write_tiny_qwen_image_21
from tests.support.tiny_qwen_image import TinyQwenImage, write_tiny_qwen_image

SIZE = (64, 64)
SAMPLING = PipelineSampling(5, 2.0)
PROMPT = Prompt("a", "a red circle above a blue square")
QUESTIONS = ("is there a red circle?", "is there a blue square in it?", "is there a red circle?")
CLOSE = 0.02
OTHER = TinyQwenImage(
    width=48, layers=3, kv_heads=1, mrope=(2, 2, 2), vision_layers=3, window=28, blocks=3, block_heads=4, latent=3
)


@pytest.fixture(scope="module", params=["usual", "other"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = TinyQwenImage() if request.param == "usual" else OTHER
    return write_tiny_qwen_image(tmp_path_factory.mktemp(request.param) / "model", 0, sizes)


def costs(folder: Path) -> QwenImageCosts:
    found = costs_of_folder(folder)
    assert isinstance(found, QwenImageCosts) and isinstance(found, ModelCosts)
    return found


def counted(work: Callable[[], Any]) -> float:
    """FLOPs by torch's counter, which knows attention as products alone on a CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def drawn(model: Any, sampling: PipelineSampling = SAMPLING) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, images = model.generate([PROMPT] * 2, [("a", 0), ("a", 1)], model.grid(*SIZE), sampling)
    return tokens, images


@pytest.mark.parametrize("scale", [2.0, 1.0])
def test_drawing(folder: Path, scale: float) -> None:
    sampling = PipelineSampling(5, scale)
    model = load_model(folder)
    found = counted(lambda: drawn(model, sampling))
    assert costs(folder).draw_flops(PROMPT.text, 2, SIZE, sampling) == pytest.approx(found, rel=CLOSE)
    assert costs(folder).draw_passes(sampling) == (10 if scale > 1 else 5)


@pytest.mark.parametrize("size", [SIZE, (112, 168)])
def test_judging(folder: Path, size: tuple[int, int]) -> None:
    model, found = load_model(folder), costs(folder)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    texts = ["a red circle", "green"]
    asked = counted(lambda: model.answer_logprobs([image], QUESTIONS, ("yes", "no"), [0, 0, 0]))
    assert found.answer_flops(size, QUESTIONS) == pytest.approx(asked, rel=CLOSE)
    scored = counted(lambda: model.text_logprob([image], texts, QUESTIONS[:2], [0, 0]))
    assert found.text_flops(size, QUESTIONS[:2], texts) == pytest.approx(scored, rel=CLOSE)
    written = counted(lambda: model.answer([image], QUESTIONS[:1], 4))
    assert found.write_flops(size, QUESTIONS[0], 4) == pytest.approx(written, rel=CLOSE)
    assert found.answer_flops(size, []) == 0.0


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mode", ["generation", "lora"])
def test_training(folder: Path, mode: str, recompute: bool) -> None:
    model = load_model(folder)
    tokens, images = drawn(model)
    adapter = model.add_lora(4, 8.0, (), 0).parameters if mode == "lora" else 0
    trained = set(model.trainable(mode))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in trained)
    model.enable_checkpointing(recompute)
    number = torch.arange(2)
    samples = Samples((PROMPT, PROMPT), number, torch.zeros_like(number), images, tokens, model.grid(*SIZE))
    view = model.views(samples, ViewSettings(3, "uniform", 1.0, 0.0), SampleKeys(0, 0, (("a", 0), ("a", 1))))

    def step() -> None:
        model.predict(model.module, [PROMPT] * 2, view, samples.grid).square().sum().backward()

    flops = costs(folder).train_flops([PROMPT.text] * 2, 3, SIZE, mode, recompute, adapter)
    assert flops.executed == pytest.approx(counted(step), rel=CLOSE if mode == "generation" else 0.05)
    assert (flops.recomputed > 0) == recompute


def test_parameters_are_those_of_the_module(folder: Path) -> None:
    found, facts = costs(folder), inspect_folder(folder)
    for mode in ("generation", "lora"):
        counts = found.parameters(mode, 16, ())
        assert counts.frozen_outside == facts["parts"]["vae"]
        assert counts.trained == facts["trainable"][mode]
        assert counts.total == facts["parameters"] + (counts.trained if mode == "lora" else 0)
    assert counts.judging == facts["parts"]["text model"] + facts["parts"]["vision tower"]


def test_the_released_model_is_known_without_a_folder() -> None:
    """Counted from its published configurations: a transformer of 20.4 B, a Qwen2.5-VL of 8.3 B parameters."""
    found = costs_of("/nowhere", "vlm_dit")
    assert isinstance(found, QwenImageCosts)
    counts = found.parameters("generation")
    assert counts.total - counts.judging == pytest.approx(20.4e9, rel=0.01)
    assert counts.judging == pytest.approx(8.29e9, rel=0.01)
    assert found.tokens((1024, 1024)) == 4096 and found.token_numbers == 64
    assert found.text_tokens("a" * 160) == 40
    # 28 layers x 2 x 512 numbers of two bytes.
    assert found.cache_bytes(1, Device(2)) == 57_344


def test_another_pipelines_work_is_not_known(tmp_path: Path) -> None:
    assert costs_of(write_tiny_qwen_image_21(tmp_path / "model")) is None


@pytest.mark.parametrize("mode", ["generation", "lora"])
def test_a_training_pass_keeps_about_as_many_bytes_as_are_planned(folder: Path, mode: str) -> None:
    """What autograd saves beside the weights: the plan has a block's gradients on top of it."""
    model = load_model(folder)
    tokens, images = drawn(model)
    if mode == "lora":
        model.add_lora(2, 4.0, (), 0)
    trained = set(model.trainable(mode))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in trained)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    saved: dict[int, int] = {}
    held: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # Held, so that no other one takes its place.
            held.append(tensor.detach())
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    number = torch.arange(2)
    samples = Samples((PROMPT, PROMPT), number, torch.zeros_like(number), images, tokens, model.grid(*SIZE))
    view = model.views(samples, ViewSettings(2, "uniform", 1.0, 0.0), SampleKeys(0, 0, (("a", 0), ("a", 1))))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.predict(model.module, [PROMPT] * 2, view, samples.grid)
    found = costs(folder)
    prompt = found.told(PROMPT.text) - BEHIND_PROMPT
    planned = found.train_bytes(2, 2, SIZE, prompt, mode, False, Device(4, cpu=True))
    assert 0.6 < sum(saved.values()) / planned < 1.1
