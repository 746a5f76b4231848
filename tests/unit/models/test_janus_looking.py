"""How Janus answers about pictures: as the library does, the same in any company, each picture read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor

from srum_ds.common.errors import UserError
from srum_ds.models.janus.adapter import JanusAdapter, load_janus
from srum_ds.models.janus.trees import build_trees
from tests.support.tiny_janus import TinyJanus, write_tiny_janus
from tests.support.tiny_models import random_picture

PICTURES = [random_picture(16, 16, 1), random_picture(9, 30, 2), random_picture(40, 11, 3)]
"""Square, wide and tall."""
QUESTIONS = ["Is it red?", "What is to be seen?", "Is it red?", "Is it a dog, yes or no?", "Is it"]
ABOUT = [2, 0, 0, 1, 2]


@pytest.fixture(scope="module", params=[TinyJanus(), TinyJanus(system_prompt=True, tied=True, kv_heads=4)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_janus(tmp_path_factory.mktemp("janus"), 4, request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> JanusAdapter:
    return load_janus(folder)


def library_inputs(processor: Any, pictures: list[Tensor], questions: list[str], tail: str = "") -> Any:
    pixels = [(picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy() for picture in pictures]
    chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in questions]
    rendered = [processor.apply_chat_template(chat, add_generation_prompt=True) + tail for chat in chats]
    images = [Image.fromarray(image) for image in pixels]
    return processor(text=rendered, images=images, return_tensors="pt", padding=True)


@torch.no_grad()
def test_answers_are_the_librarys(folder: Path, model: JanusAdapter) -> None:
    library = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = JanusProcessor.from_pretrained(folder)
    batch = library_inputs(processor, [PICTURES[number] for number in ABOUT], QUESTIONS)
    expected = library(**batch, logits_to_keep=1).logits[:, -1].log_softmax(-1)
    assert torch.equal(model.reader.pixel_values(PICTURES)[ABOUT], batch["pixel_values"])
    found = model.answerer.next_logprobs(PICTURES, QUESTIONS, ABOUT)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    ids = [processor.tokenizer(f" {answer}", add_special_tokens=False).input_ids[0] for answer in ("yes", "no")]
    said = model.answer_logprobs(PICTURES, QUESTIONS, ("yes", "no"), ABOUT)
    torch.testing.assert_close(said, expected[:, ids], rtol=0, atol=2e-5)
    length = batch["input_ids"].shape[1]
    texts = library.generate(**batch, generation_mode="text", do_sample=False, max_new_tokens=7)[:, length:]
    assert texts.shape[1] == 7, "another seed would write more"
    assert torch.equal(model.answerer.write(PICTURES, QUESTIONS, 7, ABOUT), texts) and len(texts.unique()) > 1
    decoded = [text.strip() for text in processor.tokenizer.batch_decode(texts, skip_special_tokens=True)]
    assert model.answer(PICTURES, QUESTIONS, 7, ABOUT) == decoded


@torch.no_grad()
def test_likelihoods_are_the_librarys(folder: Path, model: JanusAdapter) -> None:
    library = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = JanusProcessor.from_pretrained(folder)
    text = "a red dog"
    batch = library_inputs(processor, PICTURES[1:2], QUESTIONS[1:2], f" {text}{processor.tokenizer.eos_token}")
    logprobs = library(**batch).logits.log_softmax(-1)[0, :-1]
    own = logprobs.gather(1, batch["input_ids"][0, 1:, None])[:, 0]
    count = len(processor.tokenizer(f" {text}", add_special_tokens=False).input_ids) + 1
    found = model.text_logprob(PICTURES[1:2], [text], QUESTIONS[1:2])
    torch.testing.assert_close(found, own[-count:].mean()[None], rtol=0, atol=2e-5)


def test_each_answer_is_the_same_alone(model: JanusAdapter) -> None:
    together = model.answer_logprobs(PICTURES, QUESTIONS, ("yes", "no"), ABOUT)
    written = model.answer(PICTURES, QUESTIONS, 6, ABOUT, 0.8, [5, 6, 7, 8, 9])
    likely = model.text_logprob(PICTURES, QUESTIONS, image_index=ABOUT)
    for number, (question, picture) in enumerate(zip(QUESTIONS, ABOUT, strict=True)):
        image = [PICTURES[picture]]
        alone = model.answer_logprobs(image, [question], ("yes", "no"))[0]
        torch.testing.assert_close(alone, together[number], rtol=0, atol=1e-5)
        assert model.answer(image, [question], 6, None, 0.8, [5 + number]) == written[number : number + 1]
        torch.testing.assert_close(model.text_logprob(image, [question])[0], likely[number], rtol=0, atol=1e-5)
    assert float((together[0] - together[2]).abs().max()) > 1e-3, "another picture changes nothing"
    other = model.answer(PICTURES, QUESTIONS, 6, ABOUT, 0.8, [15, 16, 17, 18, 19])
    assert other != written


def test_a_picture_is_read_once_for_all_its_questions(model: JanusAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inner = model.module.features

    def counting(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return inner(pixels)

    monkeypatch.setattr(model.module, "features", counting)
    model.answer_logprobs(PICTURES, QUESTIONS, ("yes", "no"), ABOUT)
    model.answer(PICTURES, QUESTIONS[:2], 2, [1, 1])
    assert seen == [3, 1]


def test_an_answer_ends_at_its_eos(model: JanusAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = model.answerer.write(PICTURES, QUESTIONS[:3], 6)
    # Whatever comes second is taken for an end: nothing of what follows is seen.
    ends = frozenset((int(tokens[0, 1]), model.reader.texts.special.eos))
    monkeypatch.setattr(model.reader.texts, "ends", ends)
    again = model.answerer.write(PICTURES, QUESTIONS[:3], 6)
    pad = model.reader.texts.special.pad
    assert torch.equal(again[0, :2], tokens[0, :2]) or int(tokens[0, 0]) in ends
    assert bool((again[0, 2:] == pad).all())
    assert model.reader.texts.decode([*tokens[0].tolist()]) == model.reader.texts.decode(again[0].tolist())


def test_what_cannot_be_asked_is_refused(model: JanusAdapter) -> None:
    with pytest.raises(UserError, match="must differ in their first tokens"):
        model.answer_logprobs(PICTURES[:1], ["Is it?"], ("yes", "yes sir"))
    with pytest.raises(UserError, match="the question is empty"):
        model.answer_logprobs(PICTURES[:1], [" "], ("yes", "no"))
    with pytest.raises(UserError, match="holds <image_placeholder>"):
        model.answer(PICTURES[:1], ["Is <image_placeholder> red?"], 2)
    with pytest.raises(UserError, match="is too long: .*max_position_embeddings in config.json is 1024"):
        model.answer(PICTURES[:1], ["Is it " + "very " * 400 + "red?"], 2)
    with pytest.raises(UserError, match="text 1 is empty"):
        model.text_logprob(PICTURES[:2], ["a", ""])
    with pytest.raises(UserError, match="temperature is -1"):
        model.answer(PICTURES[:1], ["Is it?"], 2, temperature=-1)
    with pytest.raises(ValueError, match="as many seeds"):
        model.answer(PICTURES[:1], ["Is it?"], 2, temperature=1)
    with pytest.raises(ValueError, match="need image_index"):
        model.answer_logprobs(PICTURES, ["Is it?"], ("yes", "no"))
    assert model.answer([], [], 3) == [] and model.text_logprob([], []).shape == (0,)


def test_trees_by_hand() -> None:
    trees = build_trees([(1, 2, 3), (9, 8), (1, 2, 4, 5), (1, 2, 3)], [4, 0, 4, 4])
    assert trees.pictures == (4, 0)
    assert trees.ids_PS.tolist() == [[1, 2, 3, 4, 5], [9, 8, 0, 0, 0]]
    assert trees.position_PS.tolist() == [[0, 1, 2, 2, 3], [0, 1, 0, 0, 0]]
    assert trees.branch_PS.tolist() == [[0, 0, 1, 2, 2], [0, 0, -1, -1, -1]]
    assert trees.places == ((0, (0, 1, 2)), (1, (0, 1)), (0, (0, 1, 3, 4)), (0, (0, 1, 2)))
    mask = trees.mask(torch.float32)
    assert mask is not None
    seen = [[column for column in range(5) if mask[0, 0, row, column] == 0] for row in range(5)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4]]
    assert build_trees([(1, 2), (3,)], [0, 1]).mask(torch.float32) is None
