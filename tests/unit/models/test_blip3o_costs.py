"""What BLIP3-o's work costs by its configuration, against torch's own counter of FLOPs on the same passes."""

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
from srum_ds.models.blip3o.costs import Blip3oCosts, costs_of_folder
from srum_ds.models.blip3o.inspect import inspect_folder
from srum_ds.models.blip3o.settings import Blip3oSampling
from srum_ds.models.costs import Device, ModelCosts
from srum_ds.models.protocol import ViewSettings
from srum_ds.types import Prompt, Samples
from tests.support.tiny_blip3o import write_tiny_blip3o

SIZE = (16, 16)
SAMPLING = Blip3oSampling(5, 2.0, 4, 2.0)
PROMPT = Prompt("a", "a red circle above a blue square")
QUESTIONS = ("is there a red circle?", "is there a blue square in it?", "is there a red circle?")
CLOSE = 0.02


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_blip3o(tmp_path_factory.mktemp("blip3o") / "model")


@pytest.fixture(scope="module")
def costs(folder: Path) -> Blip3oCosts:
    found = costs_of_folder(folder)
    assert isinstance(found, ModelCosts)
    return found


def counted(work: Callable[[], Any]) -> float:
    """FLOPs by torch's counter, which knows attention as products alone on a CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def drawn(model: Any, sampling: Blip3oSampling = SAMPLING) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, images = model.generate([PROMPT] * 2, [("a", 0), ("a", 1)], model.grid(*SIZE), sampling)
    return tokens, images


@pytest.mark.parametrize("sampling", [SAMPLING, Blip3oSampling(5, 1.0, 4, 1.0)])
def test_drawing(folder: Path, costs: Blip3oCosts, sampling: Blip3oSampling) -> None:
    model = load_model(folder)
    found = counted(lambda: drawn(model, sampling))
    assert costs.draw_flops(PROMPT.text, 2, SIZE, sampling) == pytest.approx(found, rel=CLOSE)
    assert costs.draw_passes(sampling) == (10 if sampling.decoder_scale > 1 else 5)


def test_judging(folder: Path, costs: Blip3oCosts) -> None:
    model, size = load_model(folder), (112, 168)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    texts = ["a red circle", "green"]
    asked = counted(lambda: model.answer_logprobs([image], QUESTIONS, ("yes", "no"), [0, 0, 0]))
    assert costs.answer_flops(size, QUESTIONS) == pytest.approx(asked, rel=CLOSE)
    scored = counted(lambda: model.text_logprob([image], texts, QUESTIONS[:2], [0, 0]))
    assert costs.text_flops(size, QUESTIONS[:2], texts) == pytest.approx(scored, rel=CLOSE)
    written = counted(lambda: model.answer([image], QUESTIONS[:1], 4))
    assert costs.write_flops(size, QUESTIONS[0], 4) == pytest.approx(written, rel=CLOSE)
    assert costs.answer_flops(size, []) == 0.0


def training(folder: Path, mode: str, recompute: bool) -> tuple[Callable[[], None], int, Any]:
    """A training pass of two images of one prompt in three views each, an adapter's elements, and the model."""
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

    return step, adapter, model


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mode", ["generation", "lora"])
def test_training(folder: Path, costs: Blip3oCosts, mode: str, recompute: bool) -> None:
    step, adapter, _ = training(folder, mode, recompute)
    flops = costs.train_flops([PROMPT.text] * 2, 3, SIZE, mode, recompute, adapter)
    assert flops.executed == pytest.approx(counted(step), rel=0.05 if recompute or adapter else CLOSE)
    assert (flops.recomputed > 0) == recompute


@pytest.mark.parametrize("mode", ["generation", "lora"])
def test_a_training_pass_keeps_about_as_many_bytes_as_are_planned(folder: Path, costs: Blip3oCosts, mode: str) -> None:
    """What autograd saves beside the weights: the plan has a block's gradients on top of it, and two prompts."""
    step, _, model = training(folder, mode, False)
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

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    planned = costs.train_bytes(2, 3, SIZE, costs.text_tokens(PROMPT.text), mode, False, Device(4, cpu=True))
    assert 0.4 < sum(saved.values()) / planned < 1.0
    assert costs.train_bytes(2, 3, SIZE, 30, mode, True, Device(4)) < costs.train_bytes(
        2, 3, SIZE, 30, mode, False, Device(4)
    )


def test_parameters_are_those_of_the_module(folder: Path, costs: Blip3oCosts) -> None:
    facts = inspect_folder(folder)
    for mode in ("generation", "lora"):
        counts = costs.parameters(mode, 16, ())
        assert counts.frozen_outside == facts["parts"]["decoder"]
        assert counts.trained == facts["trainable"][mode]
        assert counts.total == facts["parameters"] + (counts.trained if mode == "lora" else 0)
    assert counts.judging == facts["parts"]["text model"] + facts["parts"]["vision tower"]
    assert costs.tokens(SIZE) == 16 and costs.token_numbers == 12


def test_bytes_grow_with_what_is_drawn_at_once(costs: Blip3oCosts) -> None:
    one, two = (costs.draw_bytes(images, SIZE, SAMPLING, 10, Device(2))["activations"] for images in (1, 2))
    assert 0 < one < two
    assert 0 < costs.decode_bytes(1, SIZE, Device(2)) < costs.decode_bytes(4, SIZE, Device(2))
    assert costs.judge_bytes(2, SIZE, 30, 4, Device(2)).keys() == {"KV cache", "activations"}


def test_the_released_model_is_known_without_a_folder() -> None:
    """Counted from published sizes: the paper's 1.4 B of transformer, a Qwen2.5-VL of 8.3 B, a UNet of SDXL's 2.6 B."""
    found = costs_of("/nowhere", "blip3o")
    assert isinstance(found, Blip3oCosts) and "assumed" in found.assumed
    counts = found.parameters("generation")
    assert counts.trained == pytest.approx(1.365e9, rel=0.001)
    assert counts.judging == pytest.approx(8.29e9, rel=0.01)
    assert counts.frozen_outside == pytest.approx(2.61e9, rel=0.01)
    assert found.tokens((1024, 1024)) == 64 and found.decoder.size == (1024, 1024)
    # 28 layers x 2 x 512 numbers of two bytes.
    assert found.cache_bytes(1, Device(2)) == 57_344
