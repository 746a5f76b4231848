"""What BAGEL's work costs by formula, against torch's own counter of FLOPs on the same passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from srum_ds.common.seeds import SampleKeys
from srum_ds.config import Config
from srum_ds.models import costs_of, load_model
from srum_ds.models.bagel.costs import BagelCosts, costs_of_folder
from srum_ds.models.bagel.inspect import inspect_folder
from srum_ds.models.bagel.products import Shape
from srum_ds.models.costs import Device, measured_on_meta
from srum_ds.models.flow import FlowSampling
from srum_ds.models.protocol import ViewSettings
from srum_ds.rollouts.collect import roll_out
from srum_ds.types import Prompt, Samples
from tests.support.tiny_models import TINY, write_tiny_bagel

SIZE = (64, 64)
SAMPLING = FlowSampling(num_timesteps=5, timestep_shift=2.0, text_scale=2.0, interval=(0.4, 1.0))
PROMPT = Prompt("a", "a red circle above a blue square")
QUESTIONS = ("is there a red circle?", "is there a blue square in it?", "is there a red circle?")
CLOSE = 0.02

# Deeper, wider, and with a head width of its own; a larger MLP and a larger head.
OTHER = replace(
    TINY,
    llm=replace(
        TINY.llm,
        hidden_size=96,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
    ),
    vit=replace(TINY.vit, hidden_size=48, intermediate_size=96, num_hidden_layers=4),
)


@pytest.fixture(scope="module", params=["embedded", "other"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "embedded":
        return Path(Config().model.path)
    return write_tiny_bagel(tmp_path_factory.mktemp("other") / "model", OTHER)


def counted(work: Callable[[], Any]) -> float:
    """FLOPs by torch's counter, which knows attention as products alone on a CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def drawn(model: Any) -> Samples:
    return roll_out(model, [PROMPT], 2, SIZE, SAMPLING, 0, 0)


def test_drawing(folder: Path) -> None:
    model, costs = load_model(folder), costs_of_folder(folder)
    found = counted(lambda: drawn(model))
    assert costs.draw_flops(PROMPT.text, 2, SIZE, SAMPLING) == pytest.approx(found, rel=CLOSE)
    plain = replace(SAMPLING, text_scale=1.0)
    found = counted(lambda: roll_out(model, [PROMPT], 2, SIZE, plain, 0, 0))
    assert costs.draw_flops(PROMPT.text, 2, SIZE, plain) == pytest.approx(found, rel=CLOSE)


def test_judging(folder: Path) -> None:
    model, costs = load_model(folder), costs_of_folder(folder)
    image = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    found = counted(lambda: model.answer_logprobs([image], QUESTIONS, ("yes", "no"), [0, 0, 0]))
    assert costs.answer_flops(SIZE, QUESTIONS) == pytest.approx(found, rel=CLOSE)
    texts = ["a red circle", "green"]
    found = counted(lambda: model.text_logprob([image], texts, None, [0, 0]))
    assert costs.text_flops(SIZE, ["", ""], texts) == pytest.approx(found, rel=CLOSE)
    found = counted(lambda: model.text_logprob([image], texts, QUESTIONS[:2], [0, 0]))
    assert costs.text_flops(SIZE, QUESTIONS[:2], texts) == pytest.approx(found, rel=CLOSE)
    assert costs.answer_flops(SIZE, []) == 0.0


def test_writing(folder: Path) -> None:
    model, costs = load_model(folder), costs_of_folder(folder)
    image = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    one = counted(lambda: model.answer([image], QUESTIONS[:1], 1))
    first = costs.write_flops(SIZE, QUESTIONS[0], 1)
    assert first == pytest.approx(one, rel=CLOSE)
    # Each further token goes through every layer, sees all before it and itself, and has its logits.
    shape = costs.shape
    keys = costs.patches(SIZE) + 2 + costs.text_tokens(QUESTIONS[0]) + 3
    token = 2 * shape.layers * shape.layer_products + shape.head(1)
    added = sum(token + shape.layers * shape.attention(1, keys + new) for new in (1, 2, 3))
    assert costs.write_flops(SIZE, QUESTIONS[0], 4) - first == pytest.approx(added)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mode", ["generation", "transformer", "lora"])
def test_training(folder: Path, mode: str, recompute: bool) -> None:
    model, costs = load_model(folder), costs_of_folder(folder)
    samples = drawn(model)
    adapter = model.add_lora(4, 8.0, (), 0).parameters if mode == "lora" else 0
    trained = set(model.trainable(mode))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in trained)
    model.enable_checkpointing(recompute)
    keys = SampleKeys(0, 0, (("a", 0), ("a", 1)))
    view = model.views(samples, ViewSettings(3, "uniform", 1.0, 0.0), keys)

    def step() -> None:
        model.predict(model.module, [PROMPT] * 2, view, samples.grid).square().sum().backward()

    flops = costs.train_flops([PROMPT.text] * 2, 3, SIZE, mode, recompute, adapter)
    assert flops.executed == pytest.approx(counted(step), rel=CLOSE)
    assert (flops.recomputed > 0) == recompute
    assert flops.model == flops.forward + flops.backward


def test_parameters_are_those_of_the_module(folder: Path) -> None:
    costs, facts = costs_of_folder(folder), inspect_folder(folder)
    for mode in ("generation", "transformer", "lora"):
        counts = costs.parameters(mode, 16, ())
        assert counts.frozen_outside == facts["parts"]["vae"]
        assert counts.trained == facts["trainable"][mode]
        assert counts.total == facts["parameters"] + (counts.trained if mode == "lora" else 0)
    assert 0 < counts.judging < facts["parameters"]


def test_the_released_model_costs_what_the_paper_says() -> None:
    """Worked out in the study of full size: 14.607 B parameters, 60.4 TFLOP a pass at 1024 px, 5.43 PFLOP an image."""
    costs = costs_of("/nowhere", "bagel")
    assert isinstance(costs, BagelCosts)
    counts = costs.parameters("generation")
    assert counts.total == 14_607_260_128
    assert counts.unit == pytest.approx(0.466e9, rel=0.01) and counts.units == 28
    assert costs.shape.velocity(costs.tokens((1024, 1024)), 40) == pytest.approx(60.4e12, rel=0.01)
    assert costs.shape.velocity(costs.tokens((512, 512)), 40) == pytest.approx(13.9e12, rel=0.01)
    assert costs.passes(FlowSampling()) == (41, 8)
    # A quarter of the characters, where there is no tokenizer.
    assert costs.text_tokens("a" * 160) == 40
    assert costs.draw_flops("a" * 160, 1, (1024, 1024), FlowSampling()) == pytest.approx(5.43e15, rel=0.01)
    # Keys and values of a token: 28 layers x 2 x 512 numbers of two bytes.
    assert costs.cache_bytes(1, Device(2)) == 57_344


def test_bytes_are_those_that_an_h100_held() -> None:
    """Measured with random weights (benchmarks/gpu.md): an image's decoding, and guided sampler steps at 1024 px."""
    costs = costs_of("/nowhere", "bagel")
    assert costs is not None
    for side, element, held in ((1024, 2, 2.552e9), (512, 2, 0.639e9), (1024, 4, 5.119e9), (512, 4, 1.277e9)):
        assert costs.decode_bytes(1, (side, side), Device(element)) == pytest.approx(held, rel=0.01)
    # Two images of 512 x 512 are decoded together, and no more; cuDNN takes other convolutions for two.
    two = costs.decode_bytes(2, (512, 512), Device(2))
    assert 1.074e9 < two < 1.2 * 1.074e9
    assert costs.decode_bytes(9, (512, 512), Device(2)) == two
    sampling = FlowSampling(num_timesteps=5, text_scale=4.0, interval=(0.0, 1.0))
    for images, held in ((1, 0.923e9), (2, 1.787e9)):
        planned = costs.draw_bytes(images, (1024, 1024), sampling, 14, Device(2))
        assert sum(planned.values()) == pytest.approx(held, rel=0.02)


def test_a_layer_by_hand() -> None:
    """TINY: d = 32, q = 32, k = 16, f = 48: 2 x 32 x 16 + 32 x 32 + (32 x 32 + 3 x 32 x 48) products a token."""
    shape = Shape(TINY)
    assert (shape.key_products, shape.query_products, shape.output_products) == (1024, 1024, 5632)
    assert shape.attention(3, 5) == 4 * 32 * 3 * 5
    assert shape.blocks_for(3, 5, 3) == 2 * (2 * 7680 * 3 + 4 * 32 * 3 * 5)
    # Of the last layer's tokens none is wanted: their keys and values alone.
    assert shape.blocks_for(3, 5, 0) == 2 * 7680 * 3 + 4 * 32 * 3 * 5 + 2 * 1024 * 3
    assert shape.head(2) == 2 * 32 * 272 * 2


def test_work_on_the_meta_device_is_measured() -> None:
    layer = torch.nn.Linear(8, 4, bias=False, device="meta").requires_grad_(False)
    x = torch.empty(16, 8, device="meta")
    flops, peak = measured_on_meta(lambda: layer(layer(x) @ layer.weight))
    assert flops == 2 * 16 * 8 * 4 * 3
    # The second product (16 x 8) beside the first (16 x 4), or beside the third; neither the input nor the weight.
    assert peak == (16 * 4 + 16 * 8) * 4
