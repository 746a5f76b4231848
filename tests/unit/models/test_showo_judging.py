"""Show-o's answers and likelihoods against transformers' own class, one whole sequence at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PhiForCausalLM

from srum_ds.common.errors import UserError
from srum_ds.models.showo import answerer
from srum_ds.models.showo.adapter import ShowoAdapter, load_showo
from srum_ds.models.showo.decoding import texts
from srum_ds.models.showo.images import squared
from tests.support.tiny_models import random_picture
from tests.support.tiny_showo import library_model, write_tiny_showo

IMAGES = [random_picture(8, 8, seed=0), random_picture(13, 9, seed=1), random_picture(8, 24, seed=2)]
QUESTIONS = ["Is it red?", "What is to be seen in this picture?", "A dog?", "Is it red?"]
ABOUT = [0, 2, 0, 1]
START = 16 + 3
"""Ids of a picture: its task token, the codes, and one on either side."""


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
def library_logprobs(model: ShowoAdapter, library: PhiForCausalLM, image: Tensor, text: list[int]) -> Tensor:
    """Log-probabilities [L, vocabulary] behind every id of a picture and one text."""
    words = model.module.vocabulary
    codes = (model.reader.codes([image])[0] + words.first_code).tolist()
    ids = torch.tensor([[words.mmu, words.soi, *codes, words.eoi, *text]])
    seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    seen[:, :START] = True
    logits: Tensor = library(input_ids=ids, attention_mask=seen[None, None], use_cache=False).logits
    return logits[0].log_softmax(-1)


def test_every_question_is_answered_as_if_it_were_alone(
    model: ShowoAdapter, library: PhiForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = torch.stack(
        [
            library_logprobs(model, library, IMAGES[image], model.answerer.question_ids(question))[-1]
            for question, image in zip(QUESTIONS, ABOUT, strict=True)
        ]
    )
    found = model.answerer.next_logprobs(IMAGES, QUESTIONS, ABOUT)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    yes, no = (model.reader.tokenizer.encode(answer)[0] for answer in (" yes", " no"))
    chances = model.answer_logprobs(IMAGES, QUESTIONS, ["yes", "no"], ABOUT)
    assert torch.equal(chances, found[:, [yes, no]])
    monkeypatch.setattr(answerer, "READ_TOGETHER", 1)
    in_parts = model.answerer.next_logprobs(IMAGES, QUESTIONS, ABOUT)
    torch.testing.assert_close(in_parts, expected, atol=1e-5, rtol=1e-5)


def test_a_picture_is_encoded_once_for_all_its_questions(model: ShowoAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = model.reader.magvit.encode

    def counted(pixels: Tensor) -> Tensor:
        encoded.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(model.reader.magvit, "encode", counted)
    model.answer_logprobs(IMAGES, QUESTIONS, ["yes", "no"], [0, 2, 0, 2])
    assert encoded == [2]


def test_a_text_is_as_likely_as_its_words(model: ShowoAdapter, library: PhiForCausalLM) -> None:
    encode, words = model.reader.tokenizer.encode, model.module.vocabulary
    told = [(0, "a dog", QUESTIONS[0]), (1, "red", ""), (0, "a red dog", "")]
    expected = []
    for image, text, question in told:
        before = model.answerer.question_ids(question) if question else [words.bos]
        own = [*encode(" " + text if question else text), words.eos]
        logprobs = library_logprobs(model, library, IMAGES[image], [*before, *own])
        at = START + len(before) - 1 + torch.arange(len(own))
        expected.append(logprobs[at, torch.tensor(own)].mean())
    images, said, asked = zip(*told, strict=True)
    found = model.text_logprob(IMAGES, said, asked, images)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    without = model.text_logprob(IMAGES, ["red"], None, [1])
    torch.testing.assert_close(without[0], expected[1], atol=1e-5, rtol=1e-5)
    assert model.text_logprob([], []).shape == (0,)


def test_answers_are_written_as_whole_passes_would(model: ShowoAdapter, library: PhiForCausalLM) -> None:
    """More tokens than the cache has room for at once, of questions of several lengths in one batch."""
    count = 70
    choose = answerer.Chooser(len(QUESTIONS))
    tokens = model.answerer.answer_tokens(IMAGES, QUESTIONS, ABOUT, count, choose, to_the_end=True)
    assert tokens.shape == (len(QUESTIONS), count)
    for row, (question, image) in enumerate(zip(QUESTIONS, ABOUT, strict=True)):
        asked = model.answerer.question_ids(question)
        logprobs = library_logprobs(model, library, IMAGES[image], [*asked, *tokens[row].tolist()])
        places = START + len(asked) - 1 + torch.arange(count)
        assert torch.equal(logprobs[places].argmax(dim=-1), tokens[row])
    assert len({tuple(row) for row in tokens.tolist()}) > 1


def test_an_answer_ends_where_it_ends(model: ShowoAdapter) -> None:
    encode, words = model.reader.tokenizer.encode, model.module.vocabulary
    row = [*encode("a dog"), words.eos, *encode(" and more")]
    assert texts(model.reader, torch.tensor([row])) == ["a dog"]
    assert model.answer([], [], 4) == []


def test_sampled_answers_belong_to_their_seeds(model: ShowoAdapter) -> None:
    seeds = [3, 4, 5, 6]
    together = model.answer(IMAGES, QUESTIONS, 6, ABOUT, temperature=2.0, seeds=seeds)
    assert together == model.answer(IMAGES, QUESTIONS, 6, ABOUT, temperature=2.0, seeds=seeds)
    for row in range(4):
        one = slice(row, row + 1)
        assert model.answer(IMAGES, QUESTIONS[one], 6, ABOUT[one], 2.0, seeds[one]) == together[one]
    assert model.answer(IMAGES, QUESTIONS, 6, ABOUT, temperature=2.0, seeds=[7, 8, 9, 10]) != together
    with pytest.raises(ValueError, match="as many seeds"):
        model.answer(IMAGES, QUESTIONS, 6, ABOUT, temperature=2.0)
    with pytest.raises(UserError, match="temperature is -1"):
        model.answer(IMAGES, QUESTIONS, 6, ABOUT, temperature=-1.0)


def test_only_the_centre_square_is_seen(model: ShowoAdapter) -> None:
    wide = random_picture(8, 20, seed=4)
    changed = wide.clone()
    changed[:, :, :6] = 0
    changed[:, :, 14:] = 1
    assert torch.equal(model.reader.codes([wide]), model.reader.codes([changed]))
    changed[:, :, 6:14] = 0
    assert not torch.equal(model.reader.codes([wide]), model.reader.codes([changed]))
    assert squared(random_picture(40, 17), 10).shape == (3, 10, 10)
    assert torch.equal(squared(wide, 8), wide[:, :, 6:14] * 2 - 1)


def test_what_cannot_be_asked_is_said(model: ShowoAdapter) -> None:
    with pytest.raises(UserError, match="must differ in their first tokens"):
        model.answer_logprobs(IMAGES[:1], QUESTIONS[:1], ["yes", "yes, it is"])
    with pytest.raises(UserError, match="the question is empty"):
        model.answer_logprobs(IMAGES[:1], [" "], ["yes", "no"])
    with pytest.raises(UserError, match="a text is empty"):
        model.text_logprob(IMAGES[:1], [""])
    with pytest.raises(UserError, match="max_position_embeddings of the language model is 256"):
        model.answer(IMAGES[:1], QUESTIONS[:1], 250)
    with pytest.raises(ValueError, match="need image_index"):
        model.answer_logprobs(IMAGES, QUESTIONS, ["yes", "no"])
