"""Show-o draws, and is trained, as transformers' own class computes; and it keeps every promise of the contract."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PhiForCausalLM

from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.contract import check_adapter
from srum_ds.models.protocol import ViewSettings
from srum_ds.models.showo.adapter import ShowoAdapter, load_showo
from srum_ds.models.showo.layout import AROUND, drawing_mask
from srum_ds.models.showo.sampling import MASKED, MaskedSampling, guide, masked_in_training, noise, unmask
from srum_ds.types import Prompt, Samples
from tests.support.tiny_showo import library_model, write_tiny_showo

SAMPLING = MaskedSampling(steps=5, guidance=2.0)
PROMPTS = tuple(Prompt(f"p{number}", text) for number, text in enumerate(("a red circle", "a star", "two dogs")))
KEYS: tuple[Key, ...] = tuple(("test", number) for number in range(len(PROMPTS)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_showo(tmp_path_factory.mktemp("showo"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ShowoAdapter:
    return load_showo(folder)


@pytest.fixture(scope="module")
def library(folder: Path) -> PhiForCausalLM:
    return library_model(folder)


@torch.no_grad()
def library_logits(model: ShowoAdapter, library: PhiForCausalLM, texts: list[str], codes_NT: Tensor) -> Tensor:
    """Logits [N, T, vocabulary] of the library's class for whole sequences, without a cache."""
    ids = model.generator.sequence_ids(texts, codes_NT)
    seen = drawing_mask(ids == model.module.vocabulary.pad, codes_NT.shape[1] + AROUND)
    logits: Tensor = library(input_ids=ids, attention_mask=seen[:, None], use_cache=False).logits
    return logits[:, -codes_NT.shape[1] - 1 : -1]


def samples(model: ShowoAdapter) -> Samples:
    tokens, images = model.generate(PROMPTS, KEYS, model.reader.grid, SAMPLING)
    number = torch.arange(len(PROMPTS))
    return Samples(PROMPTS, number, torch.zeros_like(number), images, tokens, model.reader.grid)


def sample_keys() -> SampleKeys:
    return SampleKeys(0, 0, tuple((prompt.name, 0) for prompt in PROMPTS))


# ---- the contract


def test_showo_keeps_every_promise(folder: Path) -> None:
    checks = check_adapter("auto", folder, SAMPLING)
    assert [(check.name, check.detail) for check in checks if not check.ok] == []
    assert len(checks) == 11 + 4 * 2


# ---- drawing


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_it_draws_what_the_librarys_class_draws(model: ShowoAdapter, library: PhiForCausalLM, guidance: float) -> None:
    """Prompts that are read once, and passes over the picture's part alone, against whole sequences at every step."""
    texts = [prompt.text for prompt in PROMPTS]
    sampling = dataclasses.replace(SAMPLING, guidance=guidance)
    first = model.module.vocabulary.first_code
    codes = slice(first, first + model.token_spec.size)

    def logits_of(codes_NT: Tensor) -> Tensor:
        told = library_logits(model, library, texts, codes_NT)[..., codes]
        if guidance == 0:
            return told
        return guide(told, library_logits(model, library, [""] * len(texts), codes_NT)[..., codes], guidance)

    expected = unmask(logits_of, noise(KEYS, sampling.steps, 16), sampling)
    tokens, images = model.generate(PROMPTS, KEYS, (4, 4), sampling)
    assert torch.equal(tokens, expected)
    assert len(tokens.unique()) > 4 and len({tuple(row) for row in tokens.tolist()}) == 3
    assert images.shape == (3, 3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_the_same_codes_in_any_batch(folder: Path, dtype: torch.dtype, guidance: float) -> None:
    model = load_showo(folder, dtype)
    sampling = dataclasses.replace(SAMPLING, guidance=guidance)
    prompts, keys = PROMPTS * 2, [("many", number) for number in range(6)]
    together, _ = model.generate(prompts, keys, (4, 4), sampling)
    for size in (1, 2):
        for start in range(0, 6, size):
            some = slice(start, start + size)
            assert torch.equal(model.generate(prompts[some], keys[some], (4, 4), sampling)[0], together[some])


def test_what_it_cannot_draw_is_said(model: ShowoAdapter) -> None:
    image = torch.zeros(3, 8, 8)
    with pytest.raises(UserError, match="8 x 8 pixels only, not of 8 x 4"):
        model.grid(8, 4)
    with pytest.raises(UserError, match="cannot edit"):
        model.default_size(image)
    with pytest.raises(UserError, match="cannot edit"):
        model.generate(PROMPTS[:1], KEYS[:1], (4, 4), SAMPLING, edits=[image])
    with pytest.raises(UserError, match="does not plan"):
        model.generate(PROMPTS[:1], KEYS[:1], (4, 4), SAMPLING, plans=["a plan"])
    with pytest.raises(UserError, match="prompt 'long' has 60 tokens; max_text_len of config.json leaves room for 42"):
        model.check_prompts([Prompt("long", "x" * 60)])
    with pytest.raises(UserError, match="No weights of it draw and do not judge"):
        model.trainable("generation")


# ---- training


def test_views_mask_what_counts(model: ShowoAdapter) -> None:
    drawn = samples(model)
    view = model.views(drawn, ViewSettings(6, "logit_normal", 1.0, 0.5), sample_keys())
    assert view.time_NM is not None
    assert torch.equal(view.counts_NMT.sum(dim=2), masked_in_training(view.time_NM, 16))
    assert torch.equal(view.target, drawn.tokens[:, None].expand(-1, 6, -1))
    assert torch.equal(view.inputs["seen_NMT"] == MASKED, view.counts_NMT)
    shown = ~view.counts_NMT
    assert torch.equal(view.inputs["seen_NMT"][shown], view.target[shown])
    assert len({tuple(mask) for mask in view.counts_NMT.flatten(0, 1).int().tolist()}) > 12
    assert bool(view.inputs["dropped_NM"].any()) and not bool(view.inputs["dropped_NM"].all())


def test_times_are_uniform(model: ShowoAdapter) -> None:
    """Also where a recipe has another density for noise levels: masks follow the one that Show-o is trained with."""
    view = model.views(samples(model), ViewSettings(2000, "logit_normal", 3.0, 0.0), sample_keys())
    assert view.time_NM is not None
    quarters = torch.histc(view.time_NM, bins=4, min=0.0, max=1.0) / view.time_NM.numel()
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.02, rtol=0.0)


@torch.no_grad()
def test_predictions_are_log_p_of_the_codes_among_all_codes(model: ShowoAdapter, library: PhiForCausalLM) -> None:
    view = model.views(samples(model), ViewSettings(3, "uniform", 1.0, 0.5), sample_keys())
    dropped = view.inputs["dropped_NM"]
    assert bool(dropped.any()) and not bool(dropped.all())
    texts = ["" if drop else prompt.text for prompt, row in zip(PROMPTS, dropped.tolist(), strict=True) for drop in row]
    logits = library_logits(model, library, texts, view.inputs["seen_NMT"].flatten(0, 1))
    first, count = model.module.vocabulary.first_code, model.token_spec.size
    code_BT = view.target.flatten(0, 1)
    among_codes = logits[..., first : first + count].log_softmax(-1).gather(2, code_BT[..., None])[..., 0]
    found = model.predict(model.module, PROMPTS, view, model.reader.grid)
    assert found.shape == view.counts_NMT.shape and found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(0, 1), among_codes, atol=1e-5, rtol=1e-5)
    # As it was trained, all words of the vocabulary compete.
    ids = model.generator.sequence_ids(texts, view.inputs["seen_NMT"].flatten(0, 1))
    among_all = logits.log_softmax(-1).gather(2, code_BT[..., None] + first)[..., 0]
    torch.testing.assert_close(model.module(ids, code_BT, True), among_all, atol=1e-5, rtol=1e-5)
    nothing = model.module(ids, torch.full_like(code_BT, -1), True)
    assert not bool(nothing.any())


def test_checkpointing_recomputes_and_changes_nothing(folder: Path) -> None:
    model = load_showo(folder)
    view = model.views(samples(model), ViewSettings(1, "uniform", 1.0, 0.0), sample_keys())
    model.module.requires_grad_(True)
    calls: list[int] = []
    model.module.showo.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for enabled in (False, True):
        model.enable_checkpointing(enabled)
        calls.clear()
        (-model.predict(model.module, PROMPTS, view, model.reader.grid)).sum().backward()
        assert len(calls) == 1 + enabled
        gradients.append(
            [parameter.grad.clone() for parameter in model.module.parameters() if parameter.grad is not None]
        )
        model.module.zero_grad()
    assert len(gradients[0]) == len(list(model.module.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
