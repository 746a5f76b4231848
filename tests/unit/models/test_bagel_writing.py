"""Writing text: when it ends, what a token costs, and that neither changes what is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srum_ds.common import seeds as randomness
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.answerer import READ_TOGETHER
from srum_ds.models.bagel.text_decoding import LOOK_EVERY, TextDecoder
from srum_ds.models.bagel.text_step import BLOCK, TextStep
from srum_ds.rewards.judge.judge import Asking, judge_together
from srum_ds.rewards.judge.readouts import GenerateReadout
from srum_ds.rewards.templates import load_template
from srum_ds.types import Regions
from tests.support.judges import RIGHT, WRONG, samples_showing
from tests.support.tiny_models import random_picture, write_tiny_bagel

PICTURES = [random_picture(30, 50, 1), random_picture(56, 56, 2), random_picture(20, 20, 3)]
QUESTIONS = ["what is it?", "a", "is there a red cat in the picture?"]


@pytest.fixture
def model(tmp_path: Path) -> BagelAdapter:
    return load_bagel(write_tiny_bagel(tmp_path))


@pytest.fixture
def talkative(model: BagelAdapter) -> BagelAdapter:
    """A model whose sampled replies end now and then, after a handful or many tokens."""
    head = model.module.language_model.lm_head.weight
    with torch.no_grad():
        head[model.module.special.eos] *= 8
    return model


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Steps of each decoding."""
    steps: list[int] = []
    decode, step = TextDecoder.decode, TextStep.__call__

    def decoding(self: TextDecoder, *args: object, **settings: object) -> object:
        steps.append(0)
        return decode(self, *args, **settings)  # type: ignore[arg-type]

    def one_step(self: TextStep, token_B: Tensor) -> Tensor:
        steps[-1] += 1
        return step(self, token_B)

    with monkeypatch.context() as patch:
        patch.setattr(TextDecoder, "decode", decoding)
        patch.setattr(TextStep, "__call__", one_step)
        yield steps


def ends_after(model: BagelAdapter, lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes reply q consist of ``lengths[q]`` tokens, the end token included."""
    said = 0
    eos = model.module.special.eos

    def logits(hidden_QD: Tensor) -> Tensor:
        nonlocal said
        said += 1
        logits_QV = torch.zeros(len(hidden_QD), model.reader.config.llm.vocab_size)
        logits_QV[:, model.reader.tokenizer.encode("a")[0]] = 1.0
        logits_QV[torch.tensor(lengths) == said, eos] = 2.0
        return logits_QV

    monkeypatch.setattr(model.module, "logits", logits)


def test_replies_of_mixed_length_end_with_the_longest(model: BagelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    for lengths in ([3, 37, 12], [1, 1, 1], [16, 2, 5], [17, 2, 5]):
        ends_after(model, lengths, monkeypatch)
        with counted(monkeypatch) as steps:
            answers = model.answer(PICTURES, QUESTIONS, 4000)
        assert [len(answer) for answer in answers] == [length - 1 for length in lengths]
        assert len(steps) == 1 and max(lengths) - 1 <= steps[0] < max(lengths) + LOOK_EVERY
    ends_after(model, [9000] * 3, monkeypatch)
    with counted(monkeypatch) as steps:
        assert [len(answer) for answer in model.answer(PICTURES, QUESTIONS, 21)] == [21] * 3
    assert steps == [20]


def test_a_reply_does_not_depend_on_its_batch_nor_on_when_others_end(talkative: BagelAdapter) -> None:
    index = [n % 3 for n in range(12)]
    questions, seeds = [QUESTIONS[n] for n in index], list(range(12))
    together = talkative.answer(PICTURES, questions, 90, index, 1.0, seeds)
    lengths = sorted(len(answer) for answer in together)
    assert lengths[0] < 16 < 48 < lengths[-1]
    for row in range(12):
        alone = talkative.answer([PICTURES[index[row]]], [questions[row]], 90, None, 1.0, [seeds[row]])
        assert alone == [together[row]]


def test_more_questions_than_are_read_at_once_get_their_own_answers(talkative: BagelAdapter) -> None:
    """Questions about the pictures in turn, which are read picture by picture in several passes."""
    index = [n % 3 for n in range(2 * READ_TOGETHER + 3)]
    questions = [f"what is {n}?" for n in range(len(index))]
    together = talkative.answer(PICTURES, questions, 6, index, 1.0, list(range(len(index))))
    assert len(set(together)) > 3
    for row, picture in enumerate(index):
        assert talkative.answer([PICTURES[picture]], [questions[row]], 6, None, 1.0, [row]) == [together[row]]


def test_all_that_a_rank_asks_takes_one_decoding(model: BagelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures in two micro-batches, two questions each, 64 tokens."""
    picture = random_picture(64, 64, 1)
    batches = [(samples_showing((prompt,), ((picture, picture),)), boxes()) for prompt in (RIGHT, WRONG)]
    asking = Asking(
        load_template("sample_level_score"),
        load_template("regional_boxes"),
        GenerateReadout(max_new_tokens=64, retries=0),
        "boxes",
    )
    with counted(monkeypatch) as steps:
        scores = judge_together(model, batches, asking)
    assert len(steps) == 1 and steps[0] <= 80
    assert [len(said.raw) for said in scores] == [6, 6]


def boxes() -> Regions:
    corners = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    return Regions(torch.tensor([0, 0, 1, 1]), torch.cat([corners, corners]))


def test_a_written_token_equals_a_read_one(model: BagelAdapter) -> None:
    """The cache that is laid out once against the one that is made anew, with padding and past one block's end."""
    texts = [model.reader.tokenizer.segment(question) for question in QUESTIONS]
    cache = model.module.read_text(texts, model.reader.read_images(PICTURES))
    untouched = [keys.clone() for keys in cache.keys_L]
    append = TextStep(model.module.language_model.model, cache)
    plain = cache
    generator = torch.Generator().manual_seed(0)
    for _ in range(BLOCK + 3):
        token_B = torch.randint(250, (3,), generator=generator)
        hidden = append(token_B)
        expected, plain = model.module.text_hidden(list(token_B[:, None]), plain)
        torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(append.keys_L, plain.keys_L, strict=True):
        torch.testing.assert_close(mine[:, :, : theirs.shape[2]], theirs, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before, after) for before, after in zip(untouched, cache.keys_L, strict=True))


def test_sampled_tokens_are_those_of_each_texts_own_numbers(talkative: BagelAdapter) -> None:
    """The inverse of the distribution function at one number after the other of each text's generator."""
    first, cache = talkative.answerer.decoder.start(talkative.reader.read_images(PICTURES))
    tokens, logits = talkative.answerer.decoder.decode(first, cache, 40, 0.9, [5, 6, 7], keep_logits=True)
    assert logits is not None and logits.shape[:2] == tokens.shape == (3, 40)
    for row, seed in enumerate((5, 6, 7)):
        generator = randomness.generator("answer", seed)
        for step in range(40):
            share_V = (logits[row, step].double() / 0.9).softmax(-1).cumsum(-1)
            number = torch.rand(1, generator=generator, dtype=torch.float64)
            assert int(tokens[row, step]) == int((share_V <= number * share_V[-1]).sum())


def test_texts_end_where_their_first_end_token_stands(talkative: BagelAdapter) -> None:
    """What is decoded behind it, while others go on, is not text."""
    decoder, special = talkative.answerer.decoder, talkative.module.special
    first, cache = decoder.start(talkative.reader.read_images(PICTURES))
    tokens, _ = decoder.decode(first, cache, 60, 1.0, [1, 2, 4])
    own = [list(takewhile(lambda t: t not in (special.eos, special.bos), row)) for row in tokens.tolist()]
    assert len({len(row) for row in own}) > 1
    assert decoder.texts(tokens) == [talkative.reader.tokenizer.decode(row) for row in own]


def test_an_expert_without_rows_is_not_called_unless_a_gradient_is_due(model: BagelAdapter) -> None:
    calls: list[str] = []
    for name, part in model.module.named_modules():
        if "_moe_gen" in name:
            part.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.answer(PICTURES, QUESTIONS, 4)
    model.answer_logprobs(PICTURES, QUESTIONS, ["yes", "no"])
    assert calls == []
    # Ranks reduce the same gradients, whichever experts their batches had rows for.
    model.module.read_text([model.reader.tokenizer.segment("a")])
    # (Norms between them are operations on their weights, without a call.)
    apart = ("act_fn", "q_norm", "k_norm", "post_attention")
    names = [name for name, _ in model.module.named_modules() if "_moe_gen" in name]
    experts = {name for name in names if not any(part in name for part in apart)}
    assert experts <= set(calls)


def test_writing_with_sharded_weights_is_refused(model: BagelAdapter) -> None:
    """Ranks may take different numbers of steps, so that gathering inside them would hang."""
    expected = model.answer(PICTURES, QUESTIONS, 3)
    for name, parameter in model.module.named_parameters():
        if "_moe_gen" in name:
            parameter.data = parameter.data.new_empty(0)
    assert model.answer(PICTURES, QUESTIONS, 3) == expected
    part = model.module.language_model.model.layers[1].get_parameter("mlp.up_proj.weight")
    part.data = part.data.new_empty(0)
    first, cache = torch.zeros(1, 272), model.reader.empty(1)
    with pytest.raises(RuntimeError, match=r"gathered.*layers.1.mlp.up_proj.weight"):
        model.answerer.decoder.decode(first, cache, 2)
