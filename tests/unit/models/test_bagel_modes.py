"""Every parameter that a training mode of BAGEL trains is one that its loss moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.types import Prompt, TrainView
from tests.support.tiny_models import write_tiny_bagel

PROMPTS = [Prompt("0", "a red cat"), Prompt("1", "no"), Prompt("2", "a red cat")]


def view(generator: torch.Generator) -> TrainView:
    """Two copies of three images of 2 x 3 tokens; one copy does not see its prompt."""
    shape = (3, 2, 6)
    dropped = torch.zeros(shape[:2], dtype=torch.bool)
    dropped[0, 1] = True
    inputs = {
        "x_NMTC": torch.randn(*shape, 16, generator=generator),
        "time_NM": torch.rand(shape[:2], generator=generator),
        "dropped_NM": dropped,
    }
    return TrainView(inputs, torch.randn(*shape, 16, generator=generator), torch.ones(shape, dtype=torch.bool))


def train(model: BagelAdapter, mode: str) -> set[str]:
    """Names of the parameters that a training pass gives a gradient other than zero."""
    chosen = set(model.trainable(mode))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in chosen)
    given = view(torch.Generator().manual_seed(0))
    velocity = model.predict(model.module, PROMPTS, given, (2, 3))
    (velocity - given.target).square().mean().backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    return {name for name, gradient in gradients.items() if gradient is not None and bool(gradient.any())}


@pytest.mark.parametrize("mode", ["generation", "transformer"])
def test_the_loss_moves_all_that_a_mode_trains(mode: str, tmp_path: Path) -> None:
    model = load_bagel(write_tiny_bagel(tmp_path))
    assert train(model, mode) == set(model.trainable(mode))


def test_the_released_mode_leaves_out_what_no_loss_reaches_and_nothing_else(tmp_path: Path) -> None:
    model = load_bagel(write_tiny_bagel(tmp_path))
    model.module.requires_grad_(True)
    given = view(torch.Generator().manual_seed(0))
    model.predict(model.module, PROMPTS, given, (2, 3)).square().mean().backward()
    moved = {name for name, p in model.module.named_parameters() if p.grad is not None and bool(p.grad.any())}
    # The fixed table of positions is the only one that is reached and not trained.
    assert moved == {*model.trainable("transformer"), "latent_pos_embed.pos_embed"}


def test_the_loss_moves_all_of_an_adapter_on_every_layer_it_may_bind_to(tmp_path: Path) -> None:
    model = load_bagel(write_tiny_bagel(tmp_path))
    model.add_lora(2, 2.0, ["q_proj", "k_proj", "v_proj", "o_proj", "mlp.*_proj", "*_moe_gen", "*_moe_gen.*"], 0)
    generator = torch.Generator().manual_seed(1)
    for name in model.trainable("lora"):
        # Zero as they come, the second factors would leave the first ones without a gradient.
        parameter = model.module.get_parameter(name)
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    assert train(model, "lora") == set(model.trainable("lora"))
