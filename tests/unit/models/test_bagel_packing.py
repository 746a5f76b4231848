"""The packed training forward: its numbers, its masks, its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from srum_ds.common.errors import UserError
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.cache import Cache
from srum_ds.models.bagel.transformer import MoTLayer
from tests.support.bagel_packing import Latents, Packed, Part, Picture, Text, losses, pack, packed_layout
from tests.support.tiny_models import random_picture, write_tiny_bagel


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> BagelAdapter:
    return load_bagel(write_tiny_bagel(tmp_path_factory.mktemp("bagel")))


@pytest.fixture
def model(loaded: BagelAdapter) -> Iterator[BagelAdapter]:
    loaded.module.requires_grad_(True)
    yield loaded
    loaded.enable_checkpointing(False)
    loaded.module.requires_grad_(False)


def text(model: BagelAdapter, words: str, loss: bool = False) -> Text:
    return Text(tuple(model.reader.tokenizer.encode(words)), loss)


def latents(rows: int, columns: int, seed: int, noised: bool = True) -> Latents:
    generator = torch.Generator().manual_seed(seed)
    return Latents(torch.randn(rows * columns, 16, generator=generator), (rows, columns), noised)


def shown(model: BagelAdapter, height: int, width: int, seed: int) -> Picture:
    return Picture(*model.reader.patches([random_picture(height, width, seed)])[0])


def mixed_samples(model: BagelAdapter) -> list[list[Part]]:
    """Text to image, no prompt, question and answer, editing; all of different sizes."""
    return [
        [text(model, "a red cat"), latents(2, 3, 1)],
        [latents(1, 2, 2)],
        [shown(model, 30, 50, 3), text(model, "what is it?"), text(model, "no", loss=True)],
        [latents(2, 2, 4, noised=False), shown(model, 40, 40, 5), text(model, "bluer"), latents(2, 2, 6)],
    ]


def noise_and_time(packed: Packed) -> tuple[Tensor, Tensor]:
    """Noise and times that depend on the latents alone, so that packing cannot change them."""
    clean = packed["latents_GC"]
    return torch.sin(1000 * clean), (clean[:, 0].sigmoid() * 0.8 + 0.1)


def run(model: BagelAdapter, samples: list[list[Part]]) -> dict[str, Tensor]:
    packed = pack(samples, model)
    return losses(model.module, packed, *noise_and_time(packed))


def text_context(model: BagelAdapter, ids: list[int], past: Cache | None = None) -> Cache:
    """The context of one text after ``past``."""
    return model.module.read_text([model.reader.tokenizer.wrap(ids)], past)


@torch.no_grad()
def cached_velocity(model: BagelAdapter, x_TC: Tensor, time: float, grid: tuple[int, int], past: Cache) -> Tensor:
    """Velocity [1, T, C] of one noised image along the path that sampling and training take."""
    return model.module.velocity(x_TC[None], torch.tensor([time]), grid, past)


def total(out: dict[str, Tensor]) -> Tensor:
    return out["squared_error_M"].sum() + out["cross_entropy_L"].sum()


def gradients(model: BagelAdapter, loss: Tensor) -> dict[str, Tensor]:
    named = {n: p for n, p in model.module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: g if g is not None else torch.zeros_like(named[n]) for n, g in zip(named, found, strict=True)}


def test_packed_equals_single_samples(model: BagelAdapter) -> None:
    samples = mixed_samples(model)
    together = run(model, samples)
    alone = [run(model, [sample]) for sample in samples]
    assert together["velocity_MC"].shape == (6 + 2 + 4, 16)
    for key in ("velocity_MC", "squared_error_M", "cross_entropy_L", "logits_LV", "time_G", "noisy_GC"):
        torch.testing.assert_close(together[key], torch.cat([out[key] for out in alone]), atol=1e-5, rtol=0)
    ours = gradients(model, total(together))
    parts = [gradients(model, total(out)) for out in alone]
    for name, gradient in ours.items():
        summed = sum((part[name] for part in parts), torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, summed, atol=1e-4, rtol=1e-4)
    touched = [name for name, gradient in ours.items() if gradient.abs().max() > 1e-6]
    assert {"llm2vae.bias", "connector.fc1.weight", "language_model.lm_head.weight"} <= set(touched)


def test_order_of_samples_does_not_matter(model: BagelAdapter) -> None:
    samples = mixed_samples(model)
    forward = run(model, samples)["squared_error_M"].split([6, 2, 4])
    backward = run(model, samples[::-1])["squared_error_M"].split([4, 2, 6])
    for one, other in zip(forward, backward[::-1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_training_path_equals_cached_path(model: BagelAdapter) -> None:
    """The velocity and the text loss of one packed pass equal those of the cache that sampling uses."""
    ids = model.reader.tokenizer.encode("a red cat")
    drawn = latents(2, 3, 1)
    packed = pack([[Text(tuple(ids)), drawn]], model)
    noise, _ = noise_and_time(packed)
    out = losses(model.module, packed, noise, torch.full((6,), 0.3))
    x = 0.7 * drawn.tokens_TC + 0.3 * noise
    cached = cached_velocity(model, x, 0.3, (2, 3), text_context(model, ids))
    torch.testing.assert_close(out["velocity_MC"], cached[0], atol=1e-5, rtol=0)
    expected = (out["velocity_MC"] - (noise - drawn.tokens_TC)).square().mean(dim=1)
    torch.testing.assert_close(out["squared_error_M"], expected)

    image = random_picture(30, 50, 3)
    question, answer = text(model, "what is it?"), text(model, "no", loss=True)
    out = run(model, [[Picture(*model.reader.patches([image])[0]), question, answer]])
    logprob = model.text_logprob([image], ["no"], ["what is it?"])
    torch.testing.assert_close(-out["cross_entropy_L"].mean(), logprob[0], atol=1e-5, rtol=0)


def test_editing_context_equals_cached_path(model: BagelAdapter) -> None:
    image = random_picture(33, 50, 7)
    resized = model.reader.resized(image)
    grid = model.grid(*model.default_size(image))
    clean = Latents(model.reader.encode(resized[None])[0], grid, noised=False)
    seen = Picture(*model.reader.patches([resized])[0])
    ids = model.reader.tokenizer.encode("bluer")
    drawn = latents(*grid, 8)
    packed = pack([[clean, seen, Text(tuple(ids)), drawn]], model)
    noise, _ = noise_and_time(packed)
    out = losses(model.module, packed, noise, torch.full((len(noise),), 0.5))
    x = 0.5 * drawn.tokens_TC + 0.5 * noise[packed["noised_G"]]
    context = text_context(model, ids, model.reader.read_edits([image]))
    cached = cached_velocity(model, x, 0.5, grid, context)
    torch.testing.assert_close(out["velocity_MC"], cached[0], atol=1e-5, rtol=0)
    assert out["time_G"].tolist() == [0.0] * len(clean.tokens_TC) + [0.5] * len(drawn.tokens_TC)
    torch.testing.assert_close(out["noisy_GC"][: len(clean.tokens_TC)], clean.tokens_TC)


def test_noised_segments_are_invisible_to_later_ones(model: BagelAdapter) -> None:
    words = text(model, "yes", loss=True)

    def loss_after(first: Latents) -> Tensor:
        return run(model, [[text(model, "a"), first, words]])["cross_entropy_L"]

    torch.testing.assert_close(loss_after(latents(2, 2, 1)), loss_after(latents(2, 2, 2)), atol=0, rtol=0)
    clean = (loss_after(latents(2, 2, 1, noised=False)), loss_after(latents(2, 2, 2, noised=False)))
    assert (clean[0] - clean[1]).abs().max() > 1e-3


def test_mask_and_positions_by_hand(model: BagelAdapter) -> None:
    packed = pack([[Text((5,)), latents(1, 1, 1, noised=False), latents(1, 1, 2), Text((6,), loss=True)]], model)
    layout = packed_layout(packed)
    rows = ["100000000000"[: 3 + 3 + 3 + 3]] * 0
    rows += ["100000000000", "110000000000", "111000000000"]
    rows += ["111111000000"] * 3
    rows += ["111111111000"] * 3
    rows += ["111111000100", "111111000110", "111111000111"]
    expected = torch.tensor([[cell == "1" for cell in row] for row in rows])
    assert torch.equal(layout.allowed_BQK[0], expected)
    in_order = torch.empty(12, dtype=torch.int64)
    in_order[layout.slot_N] = layout.position_N
    assert in_order.tolist() == [0, 1, 2, 3, 3, 3, 4, 4, 4, 4, 5, 6]
    assert packed["label_L"].tolist() == [6, model.module.special.eos]
    assert packed["text_N"][packed["predict_L"]].tolist() == [model.module.special.bos, 6]


def test_checkpointing_recomputes_blocks_and_changes_no_gradient(model: BagelAdapter) -> None:
    calls = [0]
    layer = model.module.language_model.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    samples = mixed_samples(model)
    plain = gradients(model, total(run(model, samples)))
    assert calls[0] == 1
    model.enable_checkpointing()
    again = gradients(model, total(run(model, samples)))
    hook.remove()
    assert calls[0] == 3
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], atol=1e-6, rtol=1e-5)


def test_checkpointing_works_with_frozen_blocks(model: BagelAdapter) -> None:
    model.module.requires_grad_(False)
    chosen = dict(model.module.named_parameters())
    for name in model.trainable("generation"):
        chosen[name].requires_grad_(True)
    plain = gradients(model, total(run(model, mixed_samples(model))))
    model.enable_checkpointing()
    again = gradients(model, total(run(model, mixed_samples(model))))
    assert list(plain) == model.trainable("generation")
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], atol=1e-6, rtol=1e-5)


def test_checkpointing_frees_the_activations_of_blocks(model: BagelAdapter) -> None:
    samples: list[list[Part]] = [[text(model, "a red cat"), latents(4, 4, n)] for n in range(8)]
    packed = pack(samples, model)
    numbers = noise_and_time(packed)

    def kept() -> int:
        """Bytes that a forward pass leaves allocated."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            loss = total(losses(model.module, packed, *numbers))
        model.module.zero_grad()
        assert loss.requires_grad
        return sum(int(event.self_cpu_memory_usage) for event in seen.events())

    plain = kept()
    model.enable_checkpointing()
    # What remains: embeddings, logits, and the hidden states between the blocks.
    assert kept() < 0.4 * plain


def test_checkpointing_is_the_same_on_the_loops_path(model: BagelAdapter) -> None:
    """The pass that trains: understanding frozen, prompts read once for several noised copies, one of them dropped."""
    model.module.requires_grad_(False)
    chosen = dict(model.module.named_parameters())
    for name in model.trainable("generation"):
        chosen[name].requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    ids = [model.reader.tokenizer.segment(words) for words in ("a red cat", "no")]
    x, back = (torch.randn(2, 3, 6, 16, generator=generator) for _ in range(2))
    dropped = torch.tensor([[False, True, False], [False, False, False]])
    t = torch.rand(2, 3, generator=generator)
    lengths = torch.tensor([len(i) for i in ids])
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)

    def velocities() -> Tensor:
        out = model.module(padded, lengths, dropped, x, t, torch.tensor([2, 3]))
        assert isinstance(out, Tensor)
        return out

    kept = velocities()
    plain = gradients(model, (kept * back).sum())
    model.enable_checkpointing()
    again = velocities()
    torch.testing.assert_close(again, kept, atol=1e-6, rtol=0)
    for name, gradient in gradients(model, (again * back).sum()).items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-5)


def test_text_only_and_picture_only_batches_call_both_experts(model: BagelAdapter) -> None:
    calls: list[tuple[str, int]] = []
    layer = model.module.language_model.model.layers[0]
    assert isinstance(layer, MoTLayer)
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: calls.append((name, len(args[0]))))
        for name, module in (("mlp", layer.mlp), ("mlp_moe_gen", layer.mlp_moe_gen))
    ]
    run(model, [[text(model, "a"), text(model, "yes", loss=True)]])
    run(model, [[latents(2, 2, 1)]])
    for hook in hooks:
        hook.remove()
    # bos, ids, eos of both texts; then the start and end of one image around its four latent tokens.
    words = len(model.reader.tokenizer.encode("a")) + len(model.reader.tokenizer.encode("yes")) + 4
    assert calls == [("mlp", words), ("mlp_moe_gen", 0), ("mlp", 2), ("mlp_moe_gen", 4)]


def test_what_does_not_fit_is_refused(model: BagelAdapter) -> None:
    with pytest.raises(UserError, match="max_latent_size"):
        pack([[latents(1, 5, 1)]], model)
    with pytest.raises(UserError, match="vit_max_num_patch_per_side"):
        pack([[Picture(torch.zeros(5, 588), (5, 1))]], model)
    with pytest.raises(ValueError, match="grid"):
        pack([[Latents(torch.zeros(5, 16), (2, 3))]], model)
    with pytest.raises(ValueError, match="sample 1"):
        pack([[Text((1,))], []], model)


def test_a_folder_is_written_twice_alike(tmp_path: Path) -> None:
    one = write_tiny_bagel(tmp_path / "one")
    two = write_tiny_bagel(tmp_path / "two")
    for name in ("ema.safetensors", "ae.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
