"""What Show-o's work costs by formula, against torch's own counter of FLOPs on the same passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from srum_ds.common.seeds import SampleKeys
from srum_ds.models import costs_of
from srum_ds.models.costs import Device
from srum_ds.models.protocol import ViewSettings
from srum_ds.models.showo.adapter import ShowoAdapter, load_showo
from srum_ds.models.showo.costs import ShowoCosts, costs_of_folder
from srum_ds.models.showo.inspect import inspect_folder
from srum_ds.models.showo.products import Shape
from srum_ds.models.showo.sampling import MaskedSampling
from srum_ds.types import Prompt, Samples
from tests.support.tiny_models import random_picture
from tests.support.tiny_showo import write_tiny_showo

SIZE = (8, 8)
PROMPT = Prompt("a", "a red circle above a blue square")
QUESTIONS = ("is there a red circle?", "is there a blue square in it?")
CLOSE = 0.02
OTHER = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_key_value_heads": 4}


@pytest.fixture(scope="module", params=["tiny", "other"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_showo(tmp_path_factory.mktemp("costs"), phi=OTHER if request.param == "other" else None)


@pytest.fixture
def model(folder: Path) -> ShowoAdapter:
    return load_showo(folder)


@pytest.fixture
def costs(folder: Path) -> ShowoCosts:
    return costs_of_folder(folder)


def counted(work: Callable[[], Any]) -> float:
    """FLOPs by torch's counter, which knows attention as products alone on a CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_drawing(model: ShowoAdapter, costs: ShowoCosts, guidance: float) -> None:
    sampling = MaskedSampling(steps=4, guidance=guidance)
    found = counted(lambda: model.generate([PROMPT] * 2, [("k", 0), ("k", 1)], (4, 4), sampling))
    assert costs.draw_flops(PROMPT.text, 2, SIZE, sampling) == pytest.approx(found, rel=CLOSE)
    assert costs.draw_passes(sampling) == 5


def test_judging(model: ShowoAdapter, costs: ShowoCosts) -> None:
    image, texts = random_picture(8, 8), ["a red circle", "green"]
    found = counted(lambda: model.answer_logprobs([image], QUESTIONS, ("yes", "no"), [0, 0]))
    assert costs.answer_flops(SIZE, QUESTIONS) == pytest.approx(found, rel=CLOSE)
    found = counted(lambda: model.text_logprob([image], texts, None, [0, 0]))
    assert costs.text_flops(SIZE, ["", ""], texts) == pytest.approx(found, rel=CLOSE)
    found = counted(lambda: model.text_logprob([image], texts, QUESTIONS, [0, 0]))
    assert costs.text_flops(SIZE, QUESTIONS, texts) == pytest.approx(found, rel=CLOSE)
    assert costs.answer_flops(SIZE, []) == 0.0


def test_writing(model: ShowoAdapter, costs: ShowoCosts) -> None:
    image = random_picture(8, 8)
    found = counted(lambda: model.answer([image], QUESTIONS[:1], 1))
    first = costs.write_flops(SIZE, QUESTIONS[0], 1)
    assert first == pytest.approx(found, rel=CLOSE)
    # Each further token goes through every layer, sees all before it and itself, and has its logits.
    shape, before = costs.shape, 19 + len(model.answerer.question_ids(QUESTIONS[0]))
    added = sum(shape.blocks(1, before + new) + shape.head(1, shape.vocabulary) for new in (1, 2, 3))
    assert costs.write_flops(SIZE, QUESTIONS[0], 4) - first == pytest.approx(added)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mode", ["transformer", "lora"])
def test_training(model: ShowoAdapter, costs: ShowoCosts, mode: str, recompute: bool) -> None:
    adapter = model.add_lora(4, 8.0, (), 0).parameters if mode == "lora" else 0
    trained = set(model.trainable(mode))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in trained)
    model.enable_checkpointing(recompute)
    prompts = (PROMPT, Prompt("b", "a star"))
    codes = torch.zeros(2, 16, dtype=torch.int64)
    samples = Samples(
        prompts, torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 8, 8), codes, (4, 4)
    )
    view = model.views(samples, ViewSettings(3, "uniform", 1.0, 0.0), SampleKeys(0, 0, (("a", 0), ("b", 0))))

    def step() -> None:
        model.predict(model.module, prompts, view, samples.grid).sum().backward()

    flops = costs.train_flops([prompt.text for prompt in prompts], 3, SIZE, mode, recompute, adapter)
    assert flops.executed == pytest.approx(counted(step), rel=CLOSE)
    assert flops.model == flops.forward + flops.backward


def test_what_autograd_keeps(model: ShowoAdapter, costs: ShowoCosts) -> None:
    """Bytes of what a training pass keeps, counted by torch's hooks, against the formula less one layer's gradients."""
    model.module.requires_grad_(True)
    own = {parameter.untyped_storage()._cdata for parameter in model.module.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    ids = model.generator.sequence_ids([PROMPT.text] * 4, torch.full((4, 16), -1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.module(ids, torch.zeros(4, 16, dtype=torch.int64))
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    shape, text = costs.shape, costs.text_tokens(PROMPT.text)
    told = costs.train_bytes(2, 2, SIZE, text, "transformer", False, Device(4, cpu=True))
    told -= 4 * (text + 3 + 18) * (2 * shape.width + 3 * shape.inner) * 4
    assert told == pytest.approx(found, rel=0.15)


def test_parameters_are_those_of_the_module(folder: Path, costs: ShowoCosts) -> None:
    facts = inspect_folder(folder)
    for mode in ("transformer", "lora"):
        counts = costs.parameters(mode, 16, ())
        assert counts.frozen_outside == facts["parts"]["picture_tokenizer"]
        assert counts.trained == facts["trainable"][mode]
        assert counts.total == facts["parameters"] + (counts.trained if mode == "lora" else 0)
        assert counts.judging == facts["parameters"]
    assert costs.judge_unchanged_by("lora") and not costs.judge_unchanged_by("transformer")


def test_the_released_model() -> None:
    """phi-1_5 is 1.42 B with 51,200 words; with Show-o's 58,498 and normed queries and keys it is 1.45 B."""
    costs = costs_of("/nowhere", "showo")
    assert isinstance(costs, ShowoCosts)
    counts = costs.parameters("transformer")
    layer = 4 * (2048 * 2048 + 2048) + 2 * 2048 * 8192 + 8192 + 2048 + 2 * 2048 + 4 * 64
    assert counts.unit == layer and counts.units == 24
    assert counts.total == 24 * layer + 2 * 2048 + 2 * 58498 * 2048 + 58498
    assert costs.tokens((512, 512)) == 1024 and costs.config.pixels == 512
    # 2 x 1.21 G products a token, and the codes' part of the head.
    assert costs.shape.layer_products * 24 == pytest.approx(1.208e9, rel=0.001)
    # Keys and values of a token: 24 layers x 2 x 2048 numbers of two bytes.
    assert costs.cache_bytes(1, Device(2)) == 196_608
    assert costs.text_tokens("a" * 10) == 3


def test_a_layer_by_hand() -> None:
    """d = q = 32, k = 16, f = 48: 32 x (32 + 32 + 48) products of what reads, 32 x (32 + 48) of what writes."""
    shape = Shape(layers=2, width=32, inner=48, queries=32, keys=16, vocabulary=308, codes=32)
    assert (shape.before, shape.after) == (3584, 2560)
    assert shape.blocks(3, 5) == 2 * (2 * 6144 * 3 + 4 * 32 * 3 * 5)
    assert shape.head(2, 32) == 2 * 32 * 32 * 2
    assert shape.kept == 64 + 192 + 16 + 240
