"""Looking: answers in any batch, their probabilities, and that training the generator never touches them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.model import Inputs
from srum_ds.models.bagel.vision import grid_ids
from srum_ds.models.flow import FlowSampling
from srum_ds.types import Prompt
from tests.support.tiny_models import random_picture, write_tiny_bagel

PICTURES = [random_picture(30, 50, 1), random_picture(56, 56, 2), random_picture(20, 20, 3)]
QUESTIONS = ["what is it?", "a", "is there a red cat in the picture?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("bagel"))


@pytest.fixture(scope="module")
def model(folder: Path) -> BagelAdapter:
    return load_bagel(folder)


def test_answers_do_not_depend_on_their_batch(model: BagelAdapter) -> None:
    answers = model.answer(PICTURES, QUESTIONS, 6)
    probabilities = model.answer_logprobs(PICTURES, QUESTIONS, ["yes", "no"])
    likely = model.text_logprob(PICTURES, ["yes", "a red cat", "no"], QUESTIONS)
    for row in range(3):
        picture, question = [PICTURES[row]], [QUESTIONS[row]]
        assert model.answer(picture, question, 6) == [answers[row]]
        alone = model.answer_logprobs(picture, question, ["yes", "no"])
        torch.testing.assert_close(alone[0], probabilities[row], atol=1e-5, rtol=0)
        text = ["yes", "a red cat", "no"][row]
        torch.testing.assert_close(model.text_logprob(picture, [text], question)[0], likely[row], atol=1e-5, rtol=0)


def test_questions_can_share_pictures(model: BagelAdapter) -> None:
    index = [2, 0, 2]
    shared = model.answer_logprobs(PICTURES, QUESTIONS, ["yes", "no"], index)
    spread = model.answer_logprobs([PICTURES[i] for i in index], QUESTIONS, ["yes", "no"])
    torch.testing.assert_close(shared, spread, atol=1e-5, rtol=0)
    assert model.answer(PICTURES, QUESTIONS, 4, index) == model.answer([PICTURES[i] for i in index], QUESTIONS, 4)
    texts = ["yes", "a red cat", "no"]
    torch.testing.assert_close(
        model.text_logprob(PICTURES, texts, image_index=index),
        model.text_logprob([PICTURES[i] for i in index], texts),
        atol=1e-5,
        rtol=0,
    )
    with pytest.raises(ValueError, match="image_index"):
        model.answer(PICTURES[:2], QUESTIONS, 4)


def test_what_all_questions_begin_with_is_read_once_a_picture(
    model: BagelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["is this a red cat?", "is this a dog?", "is this a blue cat?", "is this a dog?"]
    index = [0, 0, 1, 1]
    expected = [
        model.answer_logprobs([PICTURES[i]], [q], ["yes", "no"])[0] for i, q in zip(index, questions, strict=True)
    ]
    rows: list[int] = []
    embed = model.module.embed

    def counted(inputs: Inputs) -> tuple[Tensor, Tensor]:
        und, gen = embed(inputs)
        rows.append(len(und))
        return und, gen

    monkeypatch.setattr(model.module, "embed", counted)
    found = model.answer_logprobs(PICTURES[:2], questions, ["yes", "no"], index)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    # One pass: behind each picture what its questions begin with, then the rest, [eos] and the answer's [bos] of each.
    special = model.module.special
    ids = [[special.bos, *model.reader.tokenizer.encode(q), special.eos, special.bos] for q in questions]
    shared = [len(os.path.commonprefix(ids[start : start + 2])) for start in (0, 2)]
    assert min(shared) > 2
    patches = sum(len(model.reader.patches([picture])[0][0]) + 2 for picture in PICTURES[:2])
    assert rows == [patches + sum(len(of_question) for of_question in ids) - sum(shared)]


def test_the_last_block_runs_its_mlp_for_the_answers_rows_alone(model: BagelAdapter) -> None:
    rows: list[int] = []
    layers = model.module.language_model.model.layers
    hooks = [
        layer.get_submodule("mlp").register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        for layer in layers
    ]
    model.answer_logprobs(PICTURES[:1], ["is this a red cat?", "is this a dog?"], ["yes", "no"], [0, 0])
    for hook in hooks:
        hook.remove()
    assert rows[-1] == 2 and min(rows[:-1]) > 16


def test_many_texts_about_a_picture_share_what_they_begin_with(model: BagelAdapter) -> None:
    """Equal texts, texts that begin others, and questions before them, against each text alone."""
    texts = ["a red cat", "a red", "a red cat", "dog", "a red"]
    index = [0, 0, 0, 1, 1]
    for questions in (None, ["what is it?", "what is it?", "what?", "a", "what?"]):
        found = model.text_logprob(PICTURES, texts, questions, index)
        alone = [
            model.text_logprob([PICTURES[i]], [text], None if questions is None else [questions[n]])[0]
            for n, (i, text) in enumerate(zip(index, texts, strict=True))
        ]
        torch.testing.assert_close(found, torch.stack(alone), atol=1e-5, rtol=0)


def test_equal_questions_are_asked_once_and_answered_to_each(
    model: BagelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[int] = []
    embed = model.module.embed

    def counted(inputs: Inputs) -> tuple[Tensor, Tensor]:
        texts.append(len(inputs.text_N))
        return embed(inputs)

    monkeypatch.setattr(model.module, "embed", counted)
    twice = model.answer_logprobs(PICTURES[:1], ["a", "a"], ["yes", "no"], [0, 0])
    once = model.answer_logprobs(PICTURES[:1], ["a"], ["yes", "no"])
    assert texts[0] == texts[1]
    torch.testing.assert_close(twice, once.expand(2, 2), atol=1e-5, rtol=0)


def test_a_read_keeps_the_same_context_however_little_of_its_last_block_is_computed(model: BagelAdapter) -> None:
    """Keys and values of a read against a pass that computes every row to the end."""
    ids = [model.reader.tokenizer.segment(q) for q in QUESTIONS]
    hidden, whole = model.module.text_hidden(ids)
    kept = model.module.read_text(ids)
    assert all(torch.equal(a, b) for a, b in zip(whole.keys_L, kept.keys_L, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.values_L, kept.values_L, strict=True))
    rows = torch.tensor([0, len(ids[0]) + 1])
    some, _ = model.module.text_hidden(ids, None, rows)
    torch.testing.assert_close(some, hidden[rows], atol=1e-6, rtol=0)


def test_place_tables_that_are_shared_fit_every_caller() -> None:
    """The first caller of a grid decides nothing for the others: numbers on the CPU, usable under a gradient."""
    with torch.inference_mode(), torch.device("meta"):
        shared = grid_ids(3, 5, 11)
    table = torch.nn.Embedding(121, 2)
    table(shared).sum().backward()
    assert grid_ids(3, 5, 11) is shared and shared.tolist() == [r * 11 + c for r in range(3) for c in range(5)]


def test_probabilities_are_those_of_the_first_token(model: BagelAdapter) -> None:
    ids = [model.reader.tokenizer.segment(question) for question in QUESTIONS]
    context = model.module.read_text(ids, model.reader.read_images(PICTURES))
    first, _ = model.answerer.decoder.start(context)
    expected = first.log_softmax(-1)[:, [model.reader.tokenizer.encode(a)[0] for a in ("yes", "no")]]
    found = model.answer_logprobs(PICTURES, QUESTIONS, ["yes", "no"])
    assert found.dtype == torch.float32 and bool((found < 0).all())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert model.answer_logprobs([], [], ["yes", "no"]).shape == (0, 2)
    with pytest.raises(UserError, match="first tokens"):
        model.answer_logprobs(PICTURES, QUESTIONS, ["yes", "yes!"])


def test_a_texts_probability_is_the_product_of_its_tokens(model: BagelAdapter) -> None:
    """Token by token through the cache, against the one pass of ``text_logprob``."""
    ids = [*model.reader.tokenizer.encode("a red cat"), model.module.special.eos]
    logits, cache = model.answerer.decoder.start(model.reader.read_images(PICTURES[:1]))
    total = torch.zeros(())
    for token in ids:
        total = total + logits[0].log_softmax(-1)[token]
        hidden, cache = model.module.text_hidden([torch.tensor([token])], cache)
        logits = model.module.logits(hidden)
    found = model.text_logprob(PICTURES[:1], ["a red cat"])
    torch.testing.assert_close(found[0], total / len(ids), atol=1e-5, rtol=0)
    assert (found - model.text_logprob(PICTURES[1:2], ["a red cat"])).abs() > 1e-4
    with pytest.raises(UserError, match="text 1 is empty"):
        model.text_logprob(PICTURES[:2], ["a", ""])
    with pytest.raises(ValueError, match="need image_index"):
        model.text_logprob(PICTURES[:2], ["a"])


def test_greedy_decoding_equals_recomputing_everything(model: BagelAdapter) -> None:
    """The cache against a fresh read of the whole sequence for each token."""
    question = model.reader.tokenizer.segment(QUESTIONS[0])
    context = model.module.read_text([question], model.reader.read_images(PICTURES[:1]))
    first, cache = model.answerer.decoder.start(context)
    tokens, logits = model.answerer.decoder.decode(first, cache, 5, keep_logits=True)
    assert logits is not None and tokens.shape == (1, 5)
    for step in range(5):
        before = torch.cat([torch.tensor([model.module.special.bos]), tokens[0, :step]])
        hidden, _ = model.module.text_hidden([before], context)
        fresh = model.module.logits(hidden[-1:])
        torch.testing.assert_close(logits[:, step], fresh, atol=1e-5, rtol=0)
        assert int(fresh.argmax()) == int(tokens[0, step])


def test_sampled_answers_follow_their_own_seeds(model: BagelAdapter) -> None:
    def ask(seeds: list[int], temperature: float = 2.0, rows: tuple[int, ...] = (0, 1, 2)) -> list[str]:
        pictures = [PICTURES[row] for row in rows]
        return model.answer(pictures, [QUESTIONS[row] for row in rows], 8, None, temperature, seeds)

    answers = ask([1, 2, 3])
    assert answers == ask([1, 2, 3])
    assert answers != ask([4, 5, 6])
    assert [ask([seed], rows=(row,))[0] for row, seed in enumerate([1, 2, 3])] == answers
    assert ask([1, 2, 3], temperature=1e-4) == model.answer(PICTURES, QUESTIONS, 8)
    with pytest.raises(UserError, match="temperature"):
        ask([1, 2, 3], temperature=-1.0)
    with pytest.raises(ValueError, match="seeds"):
        ask([1, 2])


def test_sampling_draws_from_the_softmax(model: BagelAdapter) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    count = 4000
    decoder, nothing = model.answerer.decoder, model.reader.empty(count)
    tokens, _ = decoder.decode(logits.repeat(count, 1), nothing, 1, 0.5, list(range(count)))
    drawn = tokens[:, 0].bincount(minlength=4) / count
    expected = (logits / 0.5).softmax(-1)
    assert (drawn - expected).abs().max() < 4 * (0.25 / count) ** 0.5


def test_a_picture_too_large_for_the_tower_is_refused(folder: Path) -> None:
    model = load_bagel(folder)
    transform = model.reader.config.vit_transform
    object.__setattr__(transform, "max_image_size", 84)
    with pytest.raises(UserError, match="vit_max_num_patch_per_side 4"):
        model.answer([random_picture(84, 84)], ["a"], 1)


def test_training_the_generator_leaves_understanding_bit_identical(folder: Path) -> None:
    model = load_bagel(folder)
    assert model.judge_unchanged_by("generation") and not model.judge_unchanged_by("transformer")

    def look() -> list[Tensor]:
        first, cache = model.answerer.decoder.start(model.reader.read_images(PICTURES))
        tokens, logits = model.answerer.decoder.decode(first, cache, 6, keep_logits=True)
        assert logits is not None
        return [
            tokens,
            logits,
            model.answer_logprobs(PICTURES, QUESTIONS, ["yes", "no"]),
            model.text_logprob(PICTURES, ["yes", "no", "a"]),
        ]

    def draw() -> Tensor:
        return model.generate([Prompt("p", "a")], [("test",)], (2, 2), FlowSampling(num_timesteps=4))[0]

    def disturb(mode: str) -> None:
        generator = torch.Generator().manual_seed(1)
        named = dict(model.module.named_parameters())
        with torch.no_grad():
            for name in model.trainable(mode):
                named[name].add_(0.1 * torch.randn(named[name].shape, generator=generator))

    def changes(act: Callable[[], None]) -> tuple[list[bool], bool]:
        seen, drawn = look(), draw()
        act()
        return [not torch.equal(a, b) for a, b in zip(seen, look(), strict=True)], not torch.equal(drawn, draw())

    assert changes(lambda: disturb("generation")) == ([False] * 4, True)
    looks_changed, _ = changes(lambda: disturb("transformer"))
    assert looks_changed[1] and looks_changed[2]
    with pytest.raises(UserError, match="'everything'"):
        model.trainable("everything")
