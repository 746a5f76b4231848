"""Answers questions about pictures, and says how likely answers and texts are: the ``Judge`` of models/protocol.py.

A picture is seen as the codes of its centre square, resized to the one size that the model has: boxes that lie outside
of that square are not seen. What the model draws itself is square, so that all of it is seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.showo.cache import Prefix, Reading, Room
from srum_ds.models.showo.decoding import Chooser, texts, write
from srum_ds.models.showo.layout import (
    AROUND,
    LookingRows,
    answer_text,
    looking_mask,
    looking_rows,
    question_text,
    seen_pictures,
)
from srum_ds.models.showo.reader import Reader

READ_TOGETHER = 16
"""Most pictures, or questions before their answers are written, that are read in one pass, which bounds the memory."""


class ShowoAnswerer:
    """The understanding half of a Show-o model."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    # ---- ids

    def question_ids(self, question: str) -> list[int]:
        """``bos "USER: \\n" question " ASSISTANT:"``; UserError for an empty question."""
        if not question.strip():
            raise UserError("the question is empty; give it at least one character.")
        tokenizer = self.reader.tokenizer
        return [tokenizer.vocabulary.bos, *tokenizer.encode(question_text(question))]

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer as it follows a question, with a space before it."""
        return self.reader.tokenizer.encode(answer_text(answer))

    def text_ids(self, text: str, question: str = "") -> tuple[list[int], int]:
        """``bos question text eos``, or ``bos text eos`` without a question, and where in it the text begins."""
        if not text.strip():
            raise UserError("a text is empty; give it at least one character.")
        vocabulary = self.reader.tokenizer.vocabulary
        if question:
            before, own = self.question_ids(question), self.answer_ids(text)
        else:
            before, own = [vocabulary.bos], self.reader.tokenizer.encode(text)
        return [*before, *own, vocabulary.eos], len(before)

    def rows(self, images: Sequence[Tensor], asked: Sequence[Sequence[int]], image_of: Sequence[int]) -> LookingRows:
        """The sequences in which ids ``asked`` stand behind their pictures; each picture is encoded once."""
        used = list(dict.fromkeys(image_of))
        codes_IT = self.reader.codes([images[image] for image in used])
        picture_of = [used.index(image) for image in image_of]
        return looking_rows(codes_IT, asked, picture_of, self.reader.tokenizer.vocabulary)

    # ---- one pass

    @torch.no_grad()
    def next_logprobs(
        self, images: Sequence[Tensor], questions: Sequence[str], image_index: Sequence[int] | None = None
    ) -> Tensor:
        """Log-probabilities [Q, vocabulary] (float32) of each answer's first token."""
        image_of = _image_of(images, questions, image_index, "questions")
        asked = [self.question_ids(question) for question in questions]
        hidden_QD = self._last_hidden(images, asked, image_of, [1] * len(asked))
        return self.reader.module.logits(hidden_QD).log_softmax(dim=-1)

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Log-probabilities [Q, A] (float32) of each answer's first token, the one behind a space.

        Every picture is encoded and read once, whatever the number of questions about it. UserError for answers that
        begin with the same token, and for an empty question.
        """
        first = [self.answer_ids(answer)[0] for answer in answers]
        if any(not answer.strip() for answer in answers) or len(set(first)) < len(first):
            raise UserError(
                f"the answers {list(answers)} must differ in their first tokens: choose others (judge.answers of a "
                "recipe, --answer of `srum-ds ask`)."
            )
        if not questions:
            return torch.zeros(0, len(answers))
        return self.next_logprobs(images, questions, image_index)[:, first]

    @torch.no_grad()
    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean log-probability [Q] (float32) of each text's tokens, its eos included, under its picture.

        With ``questions``, the text is the answer to one; without, or where it is "", it follows the picture at once.
        UserError for an empty text.
        """
        logprobs = self.text_logprobs(images, texts, questions, image_index)
        return torch.stack([part.mean() for part in logprobs]) if logprobs else torch.zeros(0)

    @torch.no_grad()
    def text_logprobs(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Log-probability (float32) of every token of each text, its eos included; see ``text_logprob``."""
        image_of = _image_of(images, texts, image_index, "texts")
        if not texts:
            return []
        asked = questions or [""] * len(texts)
        wrapped = [self.text_ids(text, question) for text, question in zip(texts, asked, strict=True)]
        lengths = [len(ids) - start for ids, start in wrapped]
        hidden = self._last_hidden(images, [ids[:-1] for ids, _ in wrapped], image_of, lengths)
        expected = torch.tensor([token for ids, start in wrapped for token in ids[start:]], device=hidden.device)
        logprobs = self.reader.module.logits(hidden).log_softmax(dim=-1).gather(1, expected[:, None])[:, 0]
        return list(torch.split(logprobs, lengths))

    def _last_hidden(
        self, images: Sequence[Tensor], asked: Sequence[Sequence[int]], image_of: Sequence[int], counts: Sequence[int]
    ) -> Tensor:
        """Normed hidden states [sum of counts, D] of the last ``counts`` ids of each text behind its picture."""
        self.reader.require_whole()
        rows = self.rows(images, asked, image_of)
        self._check_length(int(rows.position_BL.max()) + 1)
        device = self.reader.module.device
        hidden: list[Tensor] = []
        for start in range(0, len(rows.ids_BL), READ_TOGETHER):
            part = slice(start, start + READ_TOGETHER)
            position_BL, text_BL = rows.position_BL[part].to(device), rows.text_BL[part].to(device)
            seen_BLL = looking_mask(position_BL, text_BL)
            hidden_BLD = self.reader.module.hidden(rows.ids_BL[part].to(device), seen_BLL, position_BL)
            wanted = [
                hidden_BLD[row - start, columns.stop - count : columns.stop]
                for (row, columns), count in zip(rows.places, counts, strict=True)
                if start <= row < start + READ_TOGETHER
            ]
            hidden += wanted
        order = sorted(range(len(rows.places)), key=lambda text: rows.places[text][0] // READ_TOGETHER)
        placed = dict(zip(order, hidden, strict=True))
        return torch.cat([placed[text] for text in range(len(placed))])

    # ---- writing

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
        """Answers as text, one per question; a text ends at the first eos.

        ``READ_TOGETHER`` questions at a time; see ``decoding.Chooser`` for temperature and seeds.
        """
        image_of = _image_of(images, questions, image_index, "questions")
        if seeds is not None and len(seeds) != len(questions):
            raise ValueError(f"{len(questions)} questions need as many seeds, got {len(seeds)}")
        # Questions about one picture stand together, so that it is read once.
        order = sorted(range(len(questions)), key=image_of.__getitem__)
        said: dict[int, str] = {}
        for start in range(0, len(order), READ_TOGETHER):
            run = order[start : start + READ_TOGETHER]
            own_seeds = None if seeds is None else [seeds[q] for q in run]
            choose = Chooser(len(run), temperature, own_seeds)
            asked, about = [questions[q] for q in run], [image_of[q] for q in run]
            tokens_QN = self.answer_tokens(images, asked, about, max_new_tokens, choose)
            said |= dict(zip(run, texts(self.reader, tokens_QN), strict=True))
        return [said[q].strip() for q in range(len(questions))]

    @torch.no_grad()
    def answer_tokens(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        image_of: Sequence[int],
        max_new_tokens: int,
        choose: Chooser,
        to_the_end: bool = False,
    ) -> Tensor:
        """The tokens [Q, N] (int64, CPU) of answers; see ``decoding.write``. UserError where there is no room."""
        self.reader.require_whole()
        module, vocabulary = self.reader.module, self.reader.tokenizer.vocabulary
        device = module.device
        used = list(dict.fromkeys(image_of))
        codes_IT = self.reader.codes([images[image] for image in used])
        pictures = self._read_pictures(codes_IT).take(torch.tensor([used.index(i) for i in image_of], device=device))
        asked = [torch.tensor(self.question_ids(question)) for question in questions]
        length_Q = torch.tensor([len(ids) for ids in asked], device=device)
        start = codes_IT.shape[1] + AROUND + 1
        self._check_length(start + int(length_Q.max()) + max_new_tokens)
        ids_QL = torch.nn.utils.rnn.pad_sequence(asked, batch_first=True, padding_value=vocabulary.pad).to(device)
        longest = ids_QL.shape[1]
        place_L = torch.arange(longest, device=device)
        picture_QLP = torch.ones(len(asked), longest, start, dtype=torch.bool, device=device)
        causal_QLL = (place_L[:, None] >= place_L).expand(len(asked), -1, -1)
        seen_QLK = torch.cat([picture_QLP, causal_QLL], dim=2)
        reading = Reading(pictures)
        hidden_QLD = module.hidden(ids_QL, seen_QLK, (start + place_L)[None], reading)
        last_QD = hidden_QLD[torch.arange(len(asked), device=device), length_Q - 1]
        seen_QK = torch.cat([picture_QLP[:, 0], place_L < length_Q[:, None]], dim=1)
        first_QV, room = module.logits(last_QD), Room(reading.read)
        position_Q = start + length_Q
        return write(self.reader, first_QV, room, seen_QK, position_Q, max_new_tokens, choose, to_the_end)

    def _read_pictures(self, codes_IT: Tensor) -> Prefix:
        """Keys and values of ``<mmu> <soi>`` codes ``<eoi>``, all of which see each other."""
        ids_IP = seen_pictures(codes_IT, self.reader.tokenizer.vocabulary)
        reading = Reading()
        seen_I1P = torch.ones(len(ids_IP), 1, ids_IP.shape[1], dtype=torch.bool, device=ids_IP.device)
        self.reader.module.hidden(ids_IP, seen_I1P, cache=reading)
        return reading.read

    def _check_length(self, length: int) -> None:
        longest = int(self.reader.config.phi.max_position_embeddings)
        if length > longest:
            raise UserError(
                f"a picture, its question and the answer take {length} tokens; max_position_embeddings of the language "
                f"model is {longest}. Ask for less."
            )


def _image_of(
    images: Sequence[Tensor], texts: Sequence[str], image_index: Sequence[int] | None, what: str
) -> list[int]:
    """The number of each text's picture."""
    if image_index is not None:
        return list(image_index)
    if len(images) != len(texts):
        raise ValueError(f"{len(texts)} {what} about {len(images)} images need image_index")
    return list(range(len(texts)))
