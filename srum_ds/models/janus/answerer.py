"""Answers questions about pictures, and says how likely answers and texts are: the ``Judge`` of models/protocol.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srum_ds.common import seeds as randomness
from srum_ds.common.errors import UserError
from srum_ds.models.janus.language import KeysValues, Writer, run_layers
from srum_ds.models.janus.reader import Reader
from srum_ds.models.janus.sampling import choose
from srum_ds.models.janus.texts import Ids
from srum_ds.models.janus.trees import Trees, build_trees

LOOK_EVERY = 8
"""After so many tokens it is looked whether all answers have ended, for which an accelerator is waited for."""


class JanusAnswerer:
    """The understanding half of a Janus model."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @torch.no_grad()
    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Log-probabilities [Q, A] (float32) of each answer's first token; see ``protocol.Judge``.

        One pass: every picture is read once, and behind it what the questions about it begin with. An answer stands
        behind one space, as the template puts it. UserError for answers that begin with the same token, and for an
        empty or too long question.
        """
        if not questions:
            return torch.zeros(0, len(answers))
        texts = self.reader.texts
        first_QA = [[texts.answer(question, answer)[:1] for answer in answers] for question in questions]
        for first in first_QA:
            if not all(first) or len(set(first)) < len(first):
                raise UserError(
                    f"the answers {list(answers)} must differ in their first tokens: choose others (judge.answers of a "
                    "recipe, --answer of `srum-ds ask`)."
                )
        logprobs_QV = self.next_logprobs(images, questions, image_index)
        return logprobs_QV.gather(1, torch.tensor(first_QA, device=logprobs_QV.device)[..., 0])

    @torch.no_grad()
    def next_logprobs(
        self, images: Sequence[Tensor], questions: Sequence[str], image_index: Sequence[int] | None = None
    ) -> Tensor:
        """Log-probabilities [Q, V] (float32) of every token that an answer may begin with."""
        hidden_PSD, trees = self._read(images, self._openings(questions), questions, image_index, "questions")
        return self._logits(_last(hidden_PSD, trees)).log_softmax(-1)

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
        """Answers as text, one per question, each up to its eos; see ``write``."""
        if not questions:
            return []
        tokens_QT = self.write(images, questions, max_new_tokens, image_index, temperature, seeds)
        return [self.reader.texts.decode(row).strip() for row in tokens_QT.tolist()]

    @torch.no_grad()
    def write(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        image_index: Sequence[int] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Tokens [Q, T] (int64, CPU) of answers, T at most ``max_new_tokens``; what follows an answer's end is pads.

        temperature 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature), each answer
        by its own seed. All answers are written in one decoding, which ends when all of them have ended.
        UserError for a temperature below 0 and where question and answer exceed ``max_position_embeddings``; ValueError
        where sampling has not one seed per question.
        """
        if temperature < 0:
            raise UserError(f"temperature is {temperature}; it must be 0 (greedy) or above.")
        uniform_QT = torch.zeros(len(questions), max_new_tokens, dtype=torch.float64)
        if temperature > 0:
            if seeds is None or len(seeds) != len(questions):
                raise ValueError(f"sampling {len(questions)} answers needs as many seeds")
            drawn = [randomness.generator("answer", seed) for seed in seeds]
            uniform_QT = torch.stack([torch.rand(max_new_tokens, generator=g, dtype=torch.float64) for g in drawn])
        openings, kept = self._openings(questions, max_new_tokens), KeysValues()
        hidden_PSD, trees = self._read(images, openings, questions, image_index, "questions", kept)
        module, ends = self.reader.module, torch.tensor(sorted(self.reader.texts.ends))
        uniform_QT, ends = uniform_QT.to(module.device), ends.to(module.device)
        pad = torch.tensor(self.reader.texts.special.pad, device=module.device)
        writer = Writer(module.language, kept, trees.places, max_new_tokens)
        hidden_QD = _last(hidden_PSD, trees)
        ended_Q = torch.zeros(len(questions), dtype=torch.bool, device=module.device)
        tokens: list[Tensor] = []
        for step in range(max_new_tokens):
            token_Q = choose(self._logits(hidden_QD), uniform_QT[:, step], temperature)
            tokens.append(torch.where(ended_Q, pad, token_Q))
            ended_Q = ended_Q | torch.isin(token_Q, ends)
            if step + 1 == max_new_tokens or (len(tokens) % LOOK_EVERY == 0 and bool(ended_Q.all())):
                break
            hidden_QD = writer(module.language.embed_tokens(token_Q))
        return torch.stack(tokens, dim=1).cpu()

    @torch.no_grad()
    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean log-probability [Q] (float32) of each text's tokens, its eos included, under its picture.

        With ``questions``, the text is the answer to one; without, it answers the picture alone.
        ``image_index[q]`` is the picture of text q (default: picture q); every picture is read once.
        UserError for an empty text.
        """
        if not texts:
            return torch.zeros(0)
        logprobs = self.text_logprobs(images, texts, questions, image_index)
        return torch.stack([own.mean() for own in logprobs])

    @torch.no_grad()
    def text_logprobs(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Log-probabilities (float32) of the tokens of each text, eos last; see ``text_logprob``."""
        for number, text in enumerate(texts):
            if not text.strip():
                raise UserError(f"text {number} is empty; give it at least one character.")
        asked: list[str | None] = [None] * len(texts) if questions is None else list(questions)
        answers = [self.answer_ids(question, text) for question, text in zip(asked, texts, strict=True)]
        openings = [self.reader.texts.opening(question) for question in asked]
        whole = [(*opening, *answer) for opening, answer in zip(openings, answers, strict=True)]
        for number, ids in enumerate(whole):
            self.reader.check_room(len(ids), 0, f"text {number}")
        hidden_PSD, trees = self._read(images, [ids[:-1] for ids in whole], texts, image_index, "texts")
        rows = [
            (row, column)
            for (row, columns), answer in zip(trees.places, answers, strict=True)
            for column in columns[len(columns) - len(answer) :]
        ]
        index_2L = torch.tensor(rows, device=hidden_PSD.device).T
        expected_L = torch.tensor([token for answer in answers for token in answer], device=hidden_PSD.device)
        logprobs_LV = self._logits(hidden_PSD[index_2L[0], index_2L[1]]).log_softmax(-1)
        logprobs_L = logprobs_LV.gather(1, expected_L[:, None])[:, 0]
        return list(logprobs_L.split([len(answer) for answer in answers]))

    def answer_ids(self, question: str | None, text: str) -> Ids:
        """Ids of a text as the answer to a question, with its eos."""
        return (*self.reader.texts.answer(question, text), self.reader.texts.special.eos)

    # ---- one pass

    def _openings(self, questions: Sequence[str], more: int = 1) -> list[Ids]:
        """Ids of each question up to its answer, of ``more`` tokens. UserError for an empty or too long question."""
        openings = []
        for question in questions:
            if not question.strip():
                raise UserError("the question is empty; give it a text.")
            openings.append(self.reader.texts.opening(question))
            self.reader.check_room(len(openings[-1]), more, f"the question {question[:40]!r}")
        return openings

    def _read(
        self,
        images: Sequence[Tensor],
        texts: Sequence[Ids],
        named: Sequence[str],
        image_index: Sequence[int] | None,
        what: str,
        kept: KeysValues | None = None,
    ) -> tuple[Tensor, Trees]:
        """Normed hidden states [P, S, D] of all texts behind their pictures, and where they stand.

        kept: receives keys and values, for what goes on from there.
        """
        if image_index is None and len(images) != len(named):
            raise ValueError(f"{len(named)} {what} about {len(images)} images need image_index")
        module = self.reader.module
        trees = build_trees(texts, range(len(texts)) if image_index is None else image_index)
        features_PTD = module.features(self.reader.pixel_values([images[number] for number in trees.pictures]))
        ids_PS = trees.ids_PS.to(module.device)
        x_PSD = module.language.embed_tokens(ids_PS)
        place_PS1 = (ids_PS == self.reader.texts.special.image)[..., None]
        x_PSD = x_PSD.masked_scatter(place_PS1, features_PTD.to(x_PSD.dtype))
        mask = trees.mask(module.dtype)
        mask = None if mask is None else mask.to(module.device)
        return run_layers(module.language, x_PSD, trees.position_PS.to(module.device), mask, kept), trees

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits of the text head, float32."""
        logits: Tensor = self.reader.module.lm_head(hidden).float()
        return logits


def _last(hidden_PSD: Tensor, trees: Trees) -> Tensor:
    """The hidden state [Q, D] of each text's last token."""
    last = torch.tensor([(row, columns[-1]) for row, columns in trees.places], device=hidden_PSD.device)
    return hidden_PSD[last[:, 0], last[:, 1]]
