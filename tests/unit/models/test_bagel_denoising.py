"""Noised pictures without a mask, against the masked pass that reads any layout, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.models.bagel import latents
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.attention import backends
from srum_ds.models.bagel.cache import Cache
from srum_ds.models.bagel.denoising import Branch
from srum_ds.models.bagel.layout import Segment
from srum_ds.models.bagel.model import Bagel, Inputs
from srum_ds.models.bagel.pictures import arrange
from srum_ds.models.bagel.vision import grid_ids
from srum_ds.models.flow import FlowSampling, initial_noise
from srum_ds.types import Prompt, TrainView
from tests.support.tiny_models import random_picture, write_tiny_bagel

GRID = (2, 3)
TOKENS = 6
TEXTS = ("a red cat", "no", "a red cat", "a big blue dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("bagel"))


@pytest.fixture
def model(folder: Path) -> BagelAdapter:
    return load_bagel(folder)


def prompts() -> list[Prompt]:
    return [Prompt(str(number), text) for number, text in enumerate(TEXTS)]


def masked(model: BagelAdapter, x_NTC: Tensor, t_N: Tensor, past: Cache) -> Tensor:
    """Velocities [N, T, C] through the pass that reads, under a dense mask and at absolute positions."""
    module = model.module
    n, tokens, channels = x_NTC.shape
    layout = module.layout_after([[Segment("noised", tokens)]] * n, past)
    inputs = Inputs(
        text_N=torch.tensor([module.special.image_start, module.special.image_end]).repeat(n),
        latents_GC=x_NTC.reshape(-1, channels),
        latent_place_G=grid_ids(*GRID, model.reader.config.max_latent_size).repeat(n),
        time_I=t_N,
        time_index_G=torch.arange(n).repeat_interleave(tokens),
    )
    _, gen = module.run_last(inputs, layout, past)
    velocity_NTC: Tensor = module.llm2vae(gen).float().view(n, tokens, channels)
    return velocity_NTC


def views() -> TrainView:
    """Three copies of four images; some copies, and all of the last image's, do not see their prompts."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(TEXTS), 3, TOKENS)
    dropped = torch.rand(shape[:2], generator=generator) < 0.3
    dropped[-1] = True
    inputs = {
        "x_NMTC": torch.randn(*shape, 16, generator=generator),
        "time_NM": torch.rand(shape[:2], generator=generator),
        "dropped_NM": dropped,
    }
    return TrainView(inputs, torch.randn(*shape, 16, generator=generator), torch.ones(shape, dtype=torch.bool))


# ---- arrangement


def test_pictures_with_equally_long_contexts_are_neighbours() -> None:
    found = arrange([3, 0, 5, 3, 0], [7, 1, 2, 9, 4], torch.device("cpu"))
    assert found.order_B.tolist() == [1, 4, 0, 3, 2]
    assert found.back_B.tolist() == [2, 0, 4, 3, 1]
    assert [(g.pictures, g.length, g.row_B.tolist()) for g in found.groups] == [
        (2, 0, [1, 4]),
        (2, 3, [7, 9]),
        (1, 5, [2]),
    ]


# ---- numbers


@torch.no_grad()
@pytest.mark.parametrize("kind", ["texts", "nothing", "pictures of several sizes, and texts"])
def test_velocities_are_those_of_the_masked_pass(model: BagelAdapter, kind: str) -> None:
    ids = model.generator.prompt_ids(prompts())
    past = model.reader.empty(len(ids))
    if kind != "nothing":
        if kind != "texts":
            sizes = [(32, 48), (64, 40), (16, 16), (32, 48)]
            past = model.reader.read_edits([random_picture(*size, n) for n, size in enumerate(sizes)])
        past = model.module.read_text(ids, past)
        # The shorter ones have padding, behind a picture also in between.
        assert not past.valid_BP.all()
    generator = torch.Generator().manual_seed(0)
    x_NTC, t_N = torch.randn(len(ids), TOKENS, 16, generator=generator), torch.rand(len(ids), generator=generator)
    found = model.module.velocity(x_NTC, t_N, GRID, past)
    torch.testing.assert_close(found, masked(model, x_NTC, t_N, past), atol=5e-6, rtol=0)


def test_training_predicts_and_learns_as_with_prompts_that_are_read_before(model: BagelAdapter) -> None:
    """Both experts train; prompts are read in the same pass as the pictures, each distinct one once."""
    view = views()
    chosen = set(model.trainable("transformer"))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in chosen)

    def reads_before() -> Tensor:
        ids = model.generator.prompt_ids(prompts())
        found = []
        for n, words in enumerate(ids):
            for m in range(3):
                dropped = bool(view.inputs["dropped_NM"][n, m])
                past = model.reader.empty(1) if dropped else model.module.read_text([words])
                time = view.inputs["time_NM"][n, m : m + 1]
                found.append(masked(model, view.inputs["x_NMTC"][n, m][None], time, past))
        return torch.cat(found).view_as(view.target)

    def gradients(velocity: Tensor) -> dict[str, Tensor]:
        model.module.zero_grad()
        (velocity - view.target).square().mean().backward()
        found = {name: p.grad for name, p in model.module.named_parameters()}
        return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}

    apart, together = reads_before(), model.predict(model.module, prompts(), view, GRID)
    torch.testing.assert_close(together, apart, atol=5e-6, rtol=0)
    expected, found = gradients(apart), gradients(together)
    assert set(found) == chosen
    for name in chosen:
        torch.testing.assert_close(found[name], expected[name], atol=1e-7, rtol=1e-4)


def test_prompts_that_no_picture_sees_have_gradients_of_zero(model: BagelAdapter) -> None:
    view = views()
    view.inputs["dropped_NM"][:] = True
    chosen = set(model.trainable("transformer"))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in chosen)
    model.predict(model.module, prompts(), view, GRID).square().mean().backward()
    assert {name for name, p in model.module.named_parameters() if p.grad is not None} == chosen
    embeddings = model.module.language_model.model.embed_tokens.weight.grad
    assert embeddings is not None
    special = model.module.special
    assert embeddings.any(1).nonzero()[:, 0].tolist() == sorted([special.image_start, special.image_end])


# ---- costs


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The mask of each attention that was computed."""
    seen: list[Any] = []
    attention = F.scaled_dot_product_attention

    def watched(*args: Any, **named: Any) -> Tensor:
        seen.append(named.get("attn_mask", args[3] if len(args) > 3 else None))
        return attention(*args, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return seen


def test_training_and_drawing_build_no_mask(model: BagelAdapter, masks: list[Any]) -> None:
    layers = model.reader.config.llm.num_hidden_layers
    model.module.requires_grad_(True)
    model.predict(model.module, prompts(), views(), GRID).sum().backward()
    assert masks and all(mask is None for mask in masks)
    contexts = model.generator.contexts(model.generator.prompt_ids(prompts()))
    masks.clear()
    sampling = FlowSampling(num_timesteps=3, text_scale=2.0, interval=(0.0, 1.0))
    model.generator.sample(initial_noise([("k", n) for n in range(4)], (TOKENS, 16)), GRID, sampling, contexts)
    assert all(mask is None for mask in masks)
    # Two steps; prompts of three lengths and none: latent tokens in every block, start and end in all but the last.
    assert len(masks) == 2 * 4 * (2 * layers - 1)


def test_contexts_are_arranged_once_a_sample(model: BagelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    arranging = model.module.branch

    def watched(_: Bagel, cache: Cache) -> Branch:
        calls.append(cache.batch)
        return arranging(cache)

    monkeypatch.setattr(Bagel, "branch", watched)
    sampling = FlowSampling(num_timesteps=6, text_scale=2.0)
    model.generate(prompts(), [("k", n) for n in range(4)], GRID, sampling)
    assert calls == [4, 4]


def test_a_prompt_is_read_once_for_all_its_images(model: BagelAdapter) -> None:
    rows: list[int] = []
    first = model.module.language_model.model.layers[0]
    first.get_submodule("mlp").register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    model.predict(model.module, prompts(), views(), GRID)
    distinct = {len(ids): None for ids in model.generator.prompt_ids(prompts())}
    # The three distinct prompts, padded to one length; start and end of twelve pictures.
    assert rows == [3 * max(distinct), 2 * 12]


def test_accelerators_do_not_choose_cudnns_attention() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with backends(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    with backends(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled() == before


@torch.no_grad()
def test_the_autoencoder_works_on_few_large_images_at_once(
    model: BagelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder = model.reader.autoencoder
    images = torch.stack([random_picture(32, 48, n) for n in range(5)])
    latent = autoencoder.encode(images)
    decoded = autoencoder.decode(latent)
    monkeypatch.setattr(latents, "PIXELS_AT_ONCE", 2 * 32 * 48 + 1)
    counts: list[int] = []
    for part in (autoencoder.kl.encoder, autoencoder.kl.decoder):
        part.register_forward_pre_hook(lambda _, given: counts.append(len(given[0])))
    torch.testing.assert_close(autoencoder.encode(images), latent, atol=1e-5, rtol=0)
    torch.testing.assert_close(autoencoder.decode(latent), decoded, atol=1e-5, rtol=0)
    assert counts == [2, 2, 1] * 2
    monkeypatch.setattr(latents, "PIXELS_AT_ONCE", 1)
    counts.clear()
    autoencoder.decode(latent)
    assert counts == [1] * 5
