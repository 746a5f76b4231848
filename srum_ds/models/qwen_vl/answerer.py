"""Answers questions about images and scores texts with a Qwen-VL model: the ``Judge`` of models/protocol.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.qwen_vl.chat import Chat, Ids
from srum_ds.models.qwen_vl.decoding import chooser, up_to_end, write
from srum_ds.models.qwen_vl.pictures import PictureReader
from srum_ds.models.qwen_vl.reading import Context, VLReader

READ_TOGETHER = 16
"""Most texts that are read in one pass: each holds the keys and values of its image."""


class QwenVLAnswerer:
    """A Qwen-VL model as a judge. Every image is read once for the questions about it that are read together.

    module: the library's ``...ForConditionalGeneration`` in evaluation mode, whole on this rank (inside
    ``engine.gathered()``); its weights are read, never changed.
    """

    def __init__(self, module: Any, chat: Chat, pictures: PictureReader) -> None:
        self.module = module
        self.chat = chat
        self.pictures = pictures
        self.reader = VLReader(module, chat.picture, chat.pad)

    @torch.no_grad()
    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Log-probabilities [Q, A] (float32) of each answer's first token; see ``protocol.Judge``.

        An answer follows the template's ``assistant`` line as it is written, without a space before it. UserError for
        answers that begin with the same token, and for an empty question.
        """
        first = [self.chat.as_text(answer)[:1] for answer in answers]
        if any(len(ids) == 0 for ids in first) or len({ids[0] for ids in first}) < len(first):
            raise UserError(
                f"the answers {list(answers)} must differ in their first tokens: choose others (judge.answers of a "
                "recipe, --answer of `srum-ds ask`)."
            )
        if not questions:
            return torch.zeros(0, len(answers))
        return self.next_logprobs(images, questions, image_index)[:, [ids[0] for ids in first]]

    @torch.no_grad()
    def next_logprobs(
        self, images: Sequence[Tensor], questions: Sequence[str], image_index: Sequence[int] | None = None
    ) -> Tensor:
        """Log-probabilities [Q, V] (float32) of the first token that follows each question."""
        image_of = _image_of(images, questions, image_index, "questions")
        found: dict[int, Tensor] = {}
        for run in _runs(image_of):
            hidden_QLD, _ = self._asked(images, [questions[q] for q in run], [image_of[q] for q in run])
            found |= zip(run, self.reader.logits(hidden_QLD[:, -1]).log_softmax(dim=-1), strict=True)
        return torch.stack([found[q] for q in range(len(questions))])

    @torch.no_grad()
    def answer(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        image_index: Sequence[int] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """Answers as text, one per question; greedy, or sampled at ``temperature``, each text by its own seed."""
        tokens = self.answer_tokens(images, questions, max_new_tokens, image_index, temperature, seeds)
        return [self.chat.decode(ids).strip() for ids in tokens]

    @torch.no_grad()
    def answer_tokens(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        image_index: Sequence[int] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        with_end: bool = False,
    ) -> list[list[int]]:
        """The ids of ``answer``, each text up to its end; ``with_end``: and the id that ends it.

        RuntimeError where weights are in shards on this rank.
        """
        image_of = _image_of(images, questions, image_index, "questions")
        if seeds is not None and len(seeds) != len(questions):
            raise ValueError(f"{len(questions)} questions need as many seeds, got {len(seeds)}")
        self._require_whole()
        found: dict[int, list[int]] = {}
        for run in _runs(image_of):
            choose = chooser(temperature, None if seeds is None else [seeds[q] for q in run], len(run))
            hidden_QLD, context = self._asked(images, [questions[q] for q in run], [image_of[q] for q in run])
            tokens = write(self.reader, hidden_QLD[:, -1], context, max_new_tokens, self.chat.ends, choose)
            found |= zip(run, up_to_end(tokens, self.chat.ends, with_end), strict=True)
        return [found[q] for q in range(len(questions))]

    @torch.no_grad()
    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean log-probability [Q] (float32) of each text's tokens and its eos; see ``token_logprobs``."""
        if not texts:
            return torch.zeros(0)
        return torch.stack([part.mean() for part in self.token_logprobs(images, texts, questions, image_index)])

    @torch.no_grad()
    def token_logprobs(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Log-probabilities (float32) of each text's tokens and of the eos behind it, as the answer to a question.

        Without ``questions`` the user's turn is the image alone. UserError for an empty text.
        """
        for number, text in enumerate(texts):
            if not text:
                raise UserError(f"text {number} is empty; give it at least one character.")
        image_of = _image_of(images, texts, image_index, "texts")
        found: dict[int, Tensor] = {}
        for run in _runs(image_of):
            asked = [self.chat.opening(questions[q] if questions else "") for q in run]
            written = [(*self.chat.as_text(texts[q]), self.chat.end) for q in run]
            context = self._seen(images, [opening.before for opening in asked], [image_of[q] for q in run])
            behind = [(*opening.after, *ids[:-1]) for opening, ids in zip(asked, written, strict=True)]
            hidden_QLD, _ = self.reader.append(behind, context)
            for q, ids, hidden_LD in zip(run, written, hidden_QLD, strict=True):
                logprobs_TV = self.reader.logits(hidden_LD[-len(ids) :]).log_softmax(dim=-1)
                found[q] = logprobs_TV.gather(1, torch.tensor(ids, device=logprobs_TV.device)[:, None])[:, 0]
        return [found[q] for q in range(len(texts))]

    @torch.no_grad()
    def features(self, images: Sequence[Tensor]) -> list[Tensor]:
        """What the vision tower makes of each image [3, H, W] in [0, 1]: [tokens, D]."""
        return self.reader.features(self.pictures.read(images))

    def question_ids(self, image: Tensor, question: str) -> Ids:
        """All ids of a question about an image, its placeholders included, up to where the answer begins."""
        placeholders = self.pictures.read([image])[0].placeholders(self.pictures.merge)
        return self.chat.opening(question).around(placeholders, self.chat.picture)

    # ---- passes

    def _asked(
        self, images: Sequence[Tensor], questions: Sequence[str], image_of: Sequence[int]
    ) -> tuple[Tensor, Context]:
        """Hidden states of the questions, which end in the last column, and the context that an answer goes on from."""
        for question in questions:
            if not question.strip():
                raise UserError("the question is empty; give it a text.")
        openings = [self.chat.opening(question) for question in questions]
        context = self._seen(images, [opening.before for opening in openings], image_of)
        return self.reader.append([opening.after for opening in openings], context)

    def _seen(self, images: Sequence[Tensor], before: Sequence[Ids], image_of: Sequence[int]) -> Context:
        """Contexts of an image behind the ids before it, each distinct pair of them read once."""
        pairs = list(zip(image_of, before, strict=True))
        distinct = list(dict.fromkeys(pairs))
        used = list(dict.fromkeys(image_of))
        pictures = dict(zip(used, self.pictures.read([images[image] for image in used]), strict=True))
        shown = [pictures[image] for image, _ in distinct]
        context = self.reader.read_pictures(shown, [ids for _, ids in distinct], self.pictures.merge)
        return context.take([distinct.index(pair) for pair in pairs])

    def _require_whole(self) -> None:
        """RuntimeError where a weight is in shards: ranks would gather it unequally often, and hang."""
        for name, parameter in self.module.named_parameters():
            if parameter.numel() == 0:
                raise RuntimeError(f"text is written with whole weights, inside engine.gathered(); {name} is in shards")


def _runs(image_of: Sequence[int]) -> list[list[int]]:
    """Numbers of the texts in runs of ``READ_TOGETHER``; those about one image stand together."""
    order = sorted(range(len(image_of)), key=image_of.__getitem__)
    return [order[start : start + READ_TOGETHER] for start in range(0, len(order), READ_TOGETHER)]


def _image_of(
    images: Sequence[Tensor], texts: Sequence[str], image_index: Sequence[int] | None, what: str
) -> list[int]:
    """The number of each text's image."""
    if image_index is not None:
        return list(image_index)
    if len(images) != len(texts):
        raise ValueError(f"{len(texts)} {what} about {len(images)} images need image_index")
    return list(range(len(texts)))
