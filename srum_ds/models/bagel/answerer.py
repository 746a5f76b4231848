"""Answers questions about images, and says how likely answers and texts are: the ``Judge`` of models/protocol.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.bagel.cache import Cache, stack_caches
from srum_ds.models.bagel.layout import build_layout
from srum_ds.models.bagel.reader import Reader
from srum_ds.models.bagel.text_decoding import TextDecoder
from srum_ds.models.bagel.text_trees import Ids, build_text_trees

READ_TOGETHER = 16
"""Most questions that are read in one pass before their answers are written, which takes less memory a question."""


class BagelAnswerer:
    """The understanding half of a BAGEL model."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.decoder = TextDecoder(reader)

    @torch.no_grad()
    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Log-probabilities [Q, A] (float32) of each answer's first token; see ``protocol.Judge``.

        One pass: every image is read once, and behind it what the questions about it begin with. UserError for
        answers that begin with the same token, and for an empty question.
        """
        tokenizer, module = self.reader.tokenizer, self.reader.module
        first = [tokenizer.encode(answer)[:1] for answer in answers]
        if any(len(ids) == 0 for ids in first) or len({ids[0] for ids in first}) < len(first):
            raise UserError(
                f"the answers {list(answers)} must differ in their first tokens: choose others (judge.answers of a "
                "recipe, --answer of `srum-ds ask`)."
            )
        if not questions:
            return torch.zeros(0, len(answers))
        image_of = _image_of(images, questions, image_index, "questions")
        openings = self._openings(questions)
        logits = module.logits(self._last_hidden(images, openings, image_of, [1] * len(openings)))
        return logits.log_softmax(-1)[:, [ids[0] for ids in first]]

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
        """Answers as text, one per question; a text ends at the first eos, or at a bos, which opens another.

        All answers are written in one decoding, which ends when all of them have ended; questions and images are read
        ``READ_TOGETHER`` questions at a time. temperature, seeds: see ``TextDecoder.decode``.
        """
        if not questions:
            return []
        image_of = _image_of(images, questions, image_index, "questions")
        # Questions about one image stand together, so that it is read once.
        order = sorted(range(len(questions)), key=image_of.__getitem__)
        runs = [order[start : start + READ_TOGETHER] for start in range(0, len(order), READ_TOGETHER)]
        opened = [self._opened(images, [questions[q] for q in run], [image_of[q] for q in run]) for run in runs]
        logits_QV = torch.cat([logits for logits, _ in opened])
        cache = opened[0][1] if len(opened) == 1 else stack_caches([cache for _, cache in opened])
        if seeds is not None:
            if len(seeds) != len(questions):
                raise ValueError(f"{len(questions)} questions need as many seeds, got {len(seeds)}")
            seeds = [seeds[q] for q in order]
        tokens, _ = self.decoder.decode(logits_QV, cache, max_new_tokens, temperature, seeds)
        texts = dict(zip(order, self.decoder.texts(tokens), strict=True))
        return [texts[q].strip() for q in range(len(questions))]

    def _opened(
        self, images: Sequence[Tensor], questions: Sequence[str], image_of: Sequence[int]
    ) -> tuple[Tensor, Cache]:
        """Logits [Q, V] of each answer's first token, and the context of image and question that it goes on from."""
        used = list(dict.fromkeys(image_of))
        index = torch.tensor([used.index(image) for image in image_of], device=self.reader.module.device)
        context = self.reader.read_images([images[image] for image in used]).take(index)
        return self.decoder.next_logits([torch.tensor(ids) for ids in self._openings(questions)], context)

    @torch.no_grad()
    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean log-probability [Q] (float32) of each text's tokens, its eos included, under its image.

        With ``questions``, the text is the answer to one; without, it follows the image at once.
        ``image_index[q]`` is the image of text q (default: image q); every image is read once.
        UserError for an empty text.
        """
        image_of = _image_of(images, texts, image_index, "texts")
        if not texts:
            return torch.zeros(0)
        for number, text in enumerate(texts):
            if not text:
                raise UserError(f"text {number} is empty; give it at least one character.")
        tokenizer, module = self.reader.tokenizer, self.reader.module
        wrapped = [tokenizer.segment(text).tolist() for text in texts]
        before = [tokenizer.segment(question).tolist() for question in questions or ()]
        before = before or [[]] * len(texts)
        paths = [(*asked, *ids[:-1]) for asked, ids in zip(before, wrapped, strict=True)]
        lengths = [len(ids) - 1 for ids in wrapped]
        hidden = self._last_hidden(images, paths, image_of, lengths)
        expected = torch.tensor([token for ids in wrapped for token in ids[1:]], device=hidden.device)
        logprobs = module.logits(hidden).log_softmax(-1).gather(1, expected[:, None])[:, 0]
        return torch.stack([part.mean() for part in torch.split(logprobs, lengths)])

    # ---- one pass without a cache

    def _openings(self, questions: Sequence[str]) -> list[Ids]:
        """[bos] ids [eos] [bos] of each question, the last of which opens its answer."""
        bos = self.reader.module.special.bos
        of_text = {
            text: (*self.reader.text_ids(text, "the question").tolist(), bos) for text in dict.fromkeys(questions)
        }
        return [of_text[question] for question in questions]

    def _last_hidden(
        self, images: Sequence[Tensor], texts: Sequence[Ids], image_of: Sequence[int], counts: Sequence[int]
    ) -> Tensor:
        """Normed hidden states [sum of counts, D] of the last ``counts`` tokens of each text behind its image."""
        module = self.reader.module
        device = module.device
        patches = self.reader.patches(images)
        trees = build_text_trees([len(numbers) for numbers, _ in patches], texts, image_of, module.special)
        asked = [row for rows, count in zip(trees.rows, counts, strict=True) for row in rows[len(rows) - count :]]
        rows_L, back_N = torch.tensor(asked, device=device).unique(return_inverse=True)
        inputs = replace(self.reader.vision_inputs(patches), text_N=torch.tensor(trees.text, device=device))
        layout = build_layout(trees.samples, device=device)
        return module.run_rows(inputs, layout, rows_L).index_select(0, back_N)


def _image_of(
    images: Sequence[Tensor], texts: Sequence[str], image_index: Sequence[int] | None, what: str
) -> list[int]:
    """The number of each text's image."""
    if image_index is not None:
        return list(image_index)
    if len(images) != len(texts):
        raise ValueError(f"{len(texts)} {what} about {len(images)} images need image_index")
    return list(range(len(texts)))
