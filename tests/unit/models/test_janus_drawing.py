"""What Janus draws, and what it says of codes: the same in any batch, as its settings say, and as its logits say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.janus.adapter import JanusAdapter, load_janus
from srum_ds.models.janus.generator import levels, padded
from srum_ds.models.janus.sampling import CodeSampling, choose, guide, uniforms
from srum_ds.models.protocol import ViewSettings
from srum_ds.types import Prompt, Samples, TrainView
from tests.support.tiny_janus import TinyJanus, write_tiny_janus

TEXTS = ("a red circle above a blue square", "a", "a red circle above a blue square", "two dogs, yes", "no star", "a")
PROMPTS = tuple(Prompt(str(number), text) for number, text in enumerate(TEXTS))
KEYS: tuple[Key, ...] = tuple(("drawing", number) for number in range(len(TEXTS)))
GRID = (4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_janus(tmp_path_factory.mktemp("janus"))


@pytest.fixture(scope="module")
def model(folder: Path) -> JanusAdapter:
    return load_janus(folder)


# ---- the sampler, by hand


@pytest.mark.parametrize(("u", "code"), [(0.0, 0), (0.19, 0), (0.21, 1), (0.49, 1), (0.51, 2), (0.999999, 2)])
def test_a_code_is_how_many_sums_of_probabilities_lie_below_its_number(u: float, code: int) -> None:
    logits = torch.tensor([[0.2, 0.3, 0.5]]).log() + 4.0
    assert choose(logits, torch.tensor([u]), 1.0).tolist() == [code]
    # At temperature 1/2 the probabilities are as their squares: 4/38, 9/38, 25/38.
    assert choose(logits, torch.tensor([0.12]), 0.5).tolist() == [1]
    assert choose(logits, torch.tensor([0.35]), 0.5).tolist() == [2]
    assert choose(logits, torch.tensor([u]), 0.0).tolist() == [2]


def test_guidance_moves_away_from_the_logits_without_the_prompt() -> None:
    assert guide(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0]), 3.0).tolist() == [-1.0, 8.0]
    assert guide(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0]), 1.0).tolist() == [1.0, 4.0]


def test_pixels_are_truncated_to_levels() -> None:
    assert levels(torch.tensor([-1.2, -1.0, 0.0, 0.9999, 1.0, 3.0])).tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize("settings", [{"guidance": -1.0}, {"temperature": float("nan")}, {"guidance": float("inf")}])
def test_settings_out_of_range_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        CodeSampling(**settings)


# ---- drawing


@pytest.mark.parametrize("sampling", [CodeSampling(1.0), CodeSampling(3.0, 0.9), CodeSampling(5.0, 0.0)])
def test_the_same_prompt_and_key_give_the_same_picture_in_any_batch(
    model: JanusAdapter, sampling: CodeSampling
) -> None:
    codes, images = model.generate(PROMPTS, KEYS, GRID, sampling)
    for some in (slice(0, 1), slice(1, 3), slice(3, 6)):
        alone, image = model.generate(PROMPTS[some], KEYS[some], GRID, sampling)
        assert torch.equal(alone, codes[some]) and torch.equal(image, images[some])
    if sampling.temperature:
        # Picture 0 and 2 have the same prompt, and another key.
        assert not torch.equal(codes[0], codes[2])
        assert len({tuple(row) for row in codes.tolist()}) == len(TEXTS)
    else:
        assert torch.equal(codes[0], codes[2]) and not torch.equal(codes[0], codes[3])


def test_an_untrained_prompt_still_moves_the_picture(model: JanusAdapter) -> None:
    plain, guided = (model.generate(PROMPTS, KEYS, GRID, CodeSampling(scale))[0] for scale in (1.0, 5.0))
    assert not torch.equal(plain, guided)
    same, other = (model.generate([prompt], KEYS[:1], GRID, CodeSampling(1.0))[0] for prompt in PROMPTS[:2])
    assert not torch.equal(same, other)


def test_guidance_of_one_reads_no_empty_prompt(model: JanusAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    inner = model.module.read_texts

    def counting(texts: Any) -> Any:
        read.append(len(texts))
        return inner(texts)

    monkeypatch.setattr(model.module, "read_texts", counting)
    for scale in (1.0, 2.0):
        model.generate(PROMPTS, KEYS, GRID, CodeSampling(scale))
    # Six pictures of four texts; two of those have one length, and so one empty prompt.
    assert read[0] == 4 and read[1] in (7, 8)


def test_what_it_cannot_do_is_refused(model: JanusAdapter, folder: Path) -> None:
    with pytest.raises(UserError, match="draws 16 x 16 pixels alone"):
        model.grid(16, 8)
    with pytest.raises(UserError, match="edits no images"):
        model.default_size(torch.zeros(3, 8, 8))
    with pytest.raises(UserError, match="writes no plans"):
        model.generate(PROMPTS[:1], KEYS[:1], GRID, CodeSampling(), plans=["first a circle"])
    with pytest.raises(UserError, match="writes no plans"):
        model.plan(PROMPTS, 8)
    with pytest.raises(UserError, match="prompt 'none' is empty"):
        model.check_prompts([Prompt("none", " \n")])
    with pytest.raises(ValueError, match="as many keys"):
        model.generate(PROMPTS, KEYS[:1], GRID, CodeSampling())
    with pytest.raises(UserError, match="4 a side"):
        model.generate(PROMPTS[:1], KEYS[:1], (2, 8), CodeSampling())
    assert model.trainable("generation")
    with pytest.raises(UserError, match="Janus knows 'generation', 'transformer' and 'lora'"):
        model.trainable("vision")


def test_a_prompt_that_leaves_no_room_for_its_picture_is_named(tmp_path: Path) -> None:
    small = load_janus(write_tiny_janus(tmp_path, 0, TinyJanus(longest=60)))
    fitting = "x" * (60 - 15 - len(small.reader.texts.prompt("")))
    small.check_prompts([Prompt("fits", fitting)])
    small.generate([Prompt("fits", fitting)], [("key",)], GRID, CodeSampling())
    with pytest.raises(UserError, match="prompt 'long' is too long: .*max_position_embeddings in config.json is 60"):
        small.check_prompts([Prompt("long", fitting + "x")])


def test_in_half_precision_it_draws_answers_and_predicts(folder: Path) -> None:
    half = load_janus(folder, torch.bfloat16)
    codes, images = half.generate(PROMPTS, KEYS, GRID, CodeSampling(3.0))
    assert half.token_spec.fits(codes) and images.dtype == torch.float32
    said = half.answer_logprobs(list(images[:2]), ["Is it red?", "Is it?"], ("yes", "no"), [1, 1])
    assert said.dtype == torch.float32 and half.answer(list(images[:1]), ["Is it?"], 3)
    prediction = half.predict(half.module, PROMPTS, view_of(half, 0.3), GRID)
    assert prediction.dtype == torch.float32 and bool((prediction <= 0).all())


# ---- what is trained


def view_of(model: JanusAdapter, dropout: float, copies: int = 3) -> TrainView:
    count = len(TEXTS)
    codes = torch.randint(0, 40, (count, 16), generator=torch.Generator().manual_seed(4))
    samples = Samples(PROMPTS, torch.arange(count), torch.zeros(count).long(), torch.zeros(count, 3, 1, 1), codes, GRID)
    names = tuple((prompt.id, 0) for prompt in PROMPTS)
    return model.views(samples, ViewSettings(copies, "uniform", 1.0, dropout), SampleKeys(7, 0, names))


def logprobs(model: JanusAdapter, ids: list[tuple[int, ...]], codes: Tensor) -> Tensor:
    logits = model.module.logits(*padded(ids), codes)
    return logits.log_softmax(-1).gather(2, codes[..., None])[..., 0]


def test_predictions_are_log_probabilities_with_and_without_the_prompt(model: JanusAdapter) -> None:
    view = view_of(model, 0.5)
    dropped = view.inputs["dropped_NM"]
    assert 0 < int(dropped.sum()) < dropped.numel() and view.counts_NMT.all() and view.time_NM is None
    rows: list[int] = []

    def forward(*tensors: Tensor) -> Tensor:
        rows.append(len(tensors[0]))
        return model.module(*tensors)

    found = model.predict(forward, PROMPTS, view, GRID)
    assert found.shape == (6, 3, 16) and found.dtype == torch.float32
    codes, ids = view.target[:, 0], model.generator.prompt_ids(PROMPTS)
    kept = logprobs(model, ids, codes)
    special = model.reader.texts.special
    empty = [(own[0], *[special.pad] * (len(own) - 2), own[-1]) for own in ids]
    assert {own[0] for own in ids} == {special.bos} and {own[-1] for own in ids} == {special.image_start}
    without = logprobs(model, empty, codes)
    expected = torch.where(dropped[..., None], without[:, None], kept[:, None])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert not torch.allclose(kept, without, atol=0.1)
    # Copies that do not differ are computed once.
    distinct = {(n, bool(drop)) for n, own in enumerate(dropped) for drop in own}
    assert rows == [len(distinct)] and len(distinct) < dropped.numel()


def test_without_dropout_all_copies_are_one(model: JanusAdapter) -> None:
    view = view_of(model, 0.0)
    assert not view.inputs["dropped_NM"].any() and torch.equal(view.target[:, 0], view.target[:, 2])
    found = model.predict(model.module, PROMPTS, view, GRID)
    assert torch.equal(found[:, 0], found[:, 2])


def test_the_training_pass_says_of_codes_what_drawing_them_did(model: JanusAdapter) -> None:
    ids, trace = model.generator.prompt_ids(PROMPTS), []  # type: ignore[var-annotated]
    codes = model.generator.sample(ids, uniforms(KEYS, 16), CodeSampling(1.0), trace)
    drawn = torch.stack([logits for (logits,) in trace], dim=1)
    assert drawn.shape == (6, 16, 40)
    drawn_logprobs = drawn.log_softmax(-1).gather(2, codes[..., None])[..., 0]
    torch.testing.assert_close(model.module(*padded(ids), codes), drawn_logprobs, rtol=0, atol=1e-5)


def gradients(model: JanusAdapter, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad()
    return found


def test_gradients_are_those_of_the_whole_logits_checkpointed_or_not(folder: Path) -> None:
    model = load_janus(folder)
    model.module.requires_grad_(True)
    view = view_of(model, 0.0, 1)
    ids, codes = model.generator.prompt_ids(PROMPTS), view.target[:, 0]
    weights = torch.randn(codes.shape, generator=torch.Generator().manual_seed(5))
    whole = gradients(model, (weights * logprobs(model, ids, codes)).sum())
    for checkpointing in (False, True):
        model.enable_checkpointing(checkpointing)
        prediction = model.predict(model.module, PROMPTS, view, GRID)[:, 0]
        found = gradients(model, (weights * prediction).sum())
        assert found.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    untouched = {name for name, _ in model.module.named_parameters()} - whole.keys()
    assert {name.split(".")[1] for name in untouched} == {"vision_model", "aligner", "weight"}
    assert set(model.trainable("transformer")) == whole.keys()
