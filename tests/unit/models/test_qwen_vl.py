"""The Qwen-VL judge: what it reads and says is what the library's model does, whatever is read together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from srum_ds.common.errors import UserError
from srum_ds.models.qwen_vl import answerer as answering
from srum_ds.models.qwen_vl.answerer import QwenVLAnswerer
from srum_ds.models.qwen_vl.chat import PICTURE, Chat, open_tokenizer, read_ends
from srum_ds.models.qwen_vl.pictures import PictureReader, read_settings
from tests.support.tiny_models import random_picture
from tests.support.tiny_qwen_image import TinyQwenImage, tiny_encoder, tiny_tokenizer

# Windows of 2 x 2 and of 4 x 4 merged patches, one key for all heads or one for two, a head of its own or a shared one.
VARIANTS = {
    "grouped": TinyQwenImage(window=56),
    "tied": TinyQwenImage(width=48, heads=6, kv_heads=1, tied=True, window=112, vision_layers=3, full_attention=(0, 2)),
}
QUESTIONS = ("Is it red?", "What is in the picture?", "yes or no?", "And now?", "Is it blue? Say yes or no.")
SHOWN = (2, 0, 0, 1, 2)
NEAR = 2e-5


def images() -> list[Tensor]:
    """Of several sizes and shapes: one stays as it is, one is enlarged, one is long."""
    return [random_picture(112, 168, 1), random_picture(20, 30, 2), random_picture(84, 280, 3)]


@pytest.fixture(scope="module", params=VARIANTS)
def judge(request: pytest.FixtureRequest) -> QwenVLAnswerer:
    tokenizer = tiny_tokenizer()
    module = tiny_encoder(tokenizer, VARIANTS[request.param], seed=5)
    chat = Chat(tokenizer, module.config.image_token_id, [tokenizer.eos_token_id])
    return QwenVLAnswerer(module, chat, PictureReader(module.config.vision_config))


def library_logits(judge: QwenVLAnswerer, image: Tensor, ids: Sequence[int]) -> Tensor:
    """Logits [L, V] of one sequence by the library's own forward."""
    read = judge.pictures.read([image])[0]
    ids_1L = torch.tensor([list(ids)])
    found = judge.module(
        input_ids=ids_1L,
        pixel_values=read.patches_VD,
        image_grid_thw=torch.tensor([read.grid]),
        mm_token_type_ids=(ids_1L == judge.chat.picture).int(),
    )
    logits: Tensor = found.logits[0]
    return logits


@torch.no_grad()
def test_answers_are_as_likely_as_the_library_says_one_by_one(judge: QwenVLAnswerer) -> None:
    shown = images()
    expected = torch.stack(
        [
            library_logits(judge, shown[image], judge.question_ids(shown[image], question))[-1].log_softmax(-1)
            for question, image in zip(QUESTIONS, SHOWN, strict=True)
        ]
    )
    torch.testing.assert_close(judge.next_logprobs(shown, QUESTIONS, SHOWN), expected, rtol=0, atol=NEAR)
    first = [judge.chat.encode(answer)[0] for answer in ("yes", "no")]
    found = judge.answer_logprobs(shown, QUESTIONS, ("yes", "no"), SHOWN)
    torch.testing.assert_close(found, expected[:, first], rtol=0, atol=NEAR)
    assert float((expected[1] - expected[2]).abs().max()) > 0.1, "the question changes nothing"
    other = judge.answer_logprobs(shown, QUESTIONS[:1], ("yes", "no"), [0])
    assert float((other - found[0]).abs().max()) > 1e-2, "the image changes nothing"


@torch.no_grad()
def test_texts_are_as_likely_as_the_library_says_with_their_end(judge: QwenVLAnswerer) -> None:
    texts = ("a red circle", "no", "two of them and a third one")
    shown = images()
    found = judge.token_logprobs(shown, texts, QUESTIONS[:3])
    for text, question, image, logprobs in zip(texts, QUESTIONS, shown, found, strict=False):
        asked = judge.question_ids(image, question)
        written = (*judge.chat.encode(text), judge.chat.end)
        logits = library_logits(judge, image, (*asked, *written))[len(asked) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(len(written)), torch.tensor(written)]
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=NEAR)
    means = judge.text_logprob(shown, texts, QUESTIONS[:3])
    torch.testing.assert_close(means, torch.stack([part.mean() for part in found]))
    assert not torch.allclose(judge.text_logprob(shown, texts), means), "a question changes nothing"


@torch.no_grad()
def test_greedy_answers_are_the_librarys(judge: QwenVLAnswerer) -> None:
    shown = images()
    found = judge.answer_tokens(shown, QUESTIONS, 9, SHOWN)
    for question, image, tokens in zip(QUESTIONS, SHOWN, found, strict=True):
        read = judge.pictures.read([shown[image]])[0]
        ids = torch.tensor([judge.question_ids(shown[image], question)])
        written = judge.module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=read.patches_VD,
            image_grid_thw=torch.tensor([read.grid]),
            mm_token_type_ids=(ids == judge.chat.picture).int(),
            max_new_tokens=9,
            do_sample=False,
        )[0, ids.shape[1] :].tolist()
        ends = [place for place, token in enumerate(written) if token in judge.chat.ends]
        assert tokens == written[: ends[0] if ends else 9]
        (whole,) = judge.answer_tokens([shown[image]], [question], 9, with_end=True)
        assert whole == written[: ends[0] + 1 if ends else 9]
    assert judge.answer(shown, QUESTIONS, 9, SHOWN) == [judge.chat.decode(ids).strip() for ids in found]


def test_every_image_goes_through_the_tower_once(judge: QwenVLAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    hook = judge.module.model.visual.register_forward_pre_hook(
        lambda module, given, named: seen.append(len(named["grid_thw"])), with_kwargs=True
    )
    try:
        judge.answer_logprobs(images(), QUESTIONS, ("yes", "no"), SHOWN)
        assert seen == [3]
        alone = judge.next_logprobs(images(), QUESTIONS, SHOWN)
        monkeypatch.setattr(answering, "READ_TOGETHER", 2)
        torch.testing.assert_close(judge.next_logprobs(images(), QUESTIONS, SHOWN), alone, rtol=0, atol=NEAR)
    finally:
        hook.remove()


def test_sampled_answers_are_their_seeds_in_any_batch(judge: QwenVLAnswerer) -> None:
    shown, seeds = images(), [4, 5, 6, 7, 8]
    found = judge.answer_tokens(shown, QUESTIONS, 20, SHOWN, 1.0, seeds)
    for number in range(len(QUESTIONS)):
        image = [shown[SHOWN[number]]]
        alone = judge.answer_tokens(image, QUESTIONS[number : number + 1], 20, None, 1.0, seeds[number : number + 1])
        assert alone == found[number : number + 1]
    assert judge.answer_tokens(shown, QUESTIONS, 20, SHOWN, 1.0, [9, 9, 9, 9, 9]) != found
    with pytest.raises(ValueError, match="as many seeds"):
        judge.answer(shown, QUESTIONS, 3, SHOWN, 1.0)
    with pytest.raises(UserError, match="temperature"):
        judge.answer(shown, QUESTIONS, 3, SHOWN, -1.0, seeds)


def test_what_no_question_can_be_is_refused(judge: QwenVLAnswerer) -> None:
    shown = images()[:1]
    with pytest.raises(UserError, match="stands for an image"):
        judge.answer_logprobs(shown, [f"Is {PICTURE} red?"], ("yes", "no"))
    with pytest.raises(UserError, match="is empty"):
        judge.answer_logprobs(shown, [" "], ("yes", "no"))
    with pytest.raises(UserError, match="first tokens"):
        judge.answer_logprobs(shown, ["Is it?"], ("yes", "yesterday"))
    with pytest.raises(UserError, match="text 0 is empty"):
        judge.text_logprob(shown, [""])
    with pytest.raises(UserError, match="too narrow"):
        judge.answer_logprobs([random_picture(2, 1000)], ["Is it?"], ("yes", "no"))
    with pytest.raises(UserError, match="max_position_embeddings"):
        judge.answer_logprobs(shown, ["long " * 800], ("yes", "no"))
    with pytest.raises(ValueError, match="image_index"):
        judge.answer_logprobs(shown, ["a", "b"], ("yes", "no"))


# ---- templates and processors


def chat_with(template: str | None) -> Chat:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer, tokenizer.convert_tokens_to_ids(PICTURE))


TEXT_ALONE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_template_that_knows_text_alone_gets_the_image_as_text() -> None:
    chat = chat_with(TEXT_ALONE)
    expected = f"<|im_start|>user\n<|vision_start|>{PICTURE}<|vision_end|>Red?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.rendered("Red?") == expected
    opening = chat.opening("Red?")
    assert opening.around(3, chat.picture) == chat.encode(expected.replace(PICTURE, PICTURE * 3))
    assert opening.before == chat.encode("<|im_start|>user\n<|vision_start|>")


@pytest.mark.parametrize("template", [None, "{% for message in messages %}{{ message['role'] }}{% endfor %}"])
def test_a_template_that_shows_no_image_is_refused(template: str | None) -> None:
    with pytest.raises(UserError, match="chat template shows no image"):
        chat_with(template).rendered("Red?")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image_token_id"):
        Chat(tiny_tokenizer(), 7)
    with pytest.raises(UserError, match=r"tokenizer_config\.json"):
        open_tokenizer(tmp_path)


def test_a_text_ends_where_the_release_says(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    picture = tokenizer.convert_tokens_to_ids(PICTURE)
    assert read_ends(tmp_path) == ()
    assert Chat(tokenizer, picture).ends == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    for written, ends in (("5", (5,)), ("[5, 6]", (5, 6)), ("null", ())):
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {written}}}')
        assert read_ends(tmp_path) == ends
    assert Chat(tokenizer, picture, (5, 6)).ends == (5, 6)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json"):
        read_ends(tmp_path)


def test_another_processor_changes_nothing_in_how_large_images_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # What transformers 5.17 does when a judge is opened whose file has other areas: its classes share one table.
    monkeypatch.setattr(Qwen2VLImageProcessorPil, "size", {"shortest_edge": 784, "longest_edge": 12544})
    config: Any = tiny_encoder(tiny_tokenizer()).config.vision_config
    assert PictureReader(config).read([random_picture(280, 280)])[0].grid == (1, 20, 20)
    assert PictureReader(config, {"min_pixels": 200 * 280}).read([random_picture(280, 280)])[0].grid == (1, 20, 20)


def test_a_processors_file_sets_how_large_images_are_seen(tmp_path: Path) -> None:
    config: Any = tiny_encoder(tiny_tokenizer()).config.vision_config
    image = random_picture(280, 280)
    assert PictureReader(config, read_settings(tmp_path)).read([image])[0].grid == (1, 20, 20)
    (tmp_path / "preprocessor_config.json").write_text('{"min_pixels": 784, "max_pixels": 12544, "do_resize": true}')
    seen = PictureReader(config, read_settings(tmp_path / "none", tmp_path)).read([image])[0]
    assert seen.grid == (1, 8, 8) and seen.placeholders(2) == 16
    with pytest.raises(UserError, match=r"size is 448, expected an object with shortest_edge and longest_edge"):
        PictureReader(config, {"size": 448})
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        read_settings(tmp_path)
