"""The adapter's looking half: answers, their probabilities, and how likely a text is under a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import torch
from torch import Tensor

from srum_ds.common import seeds as randomness
from srum_ds.common.errors import UserError
from srum_ds.models.bagel.branches import Ids, branch
from srum_ds.models.bagel.layout import build_layout
from srum_ds.models.bagel.reading import BagelReader
from srum_ds.models.bagel.transformer import Cache


class BagelAnswerer(BagelReader):
    """Looks."""

    def _ask(
        self, images: Sequence[Tensor], questions: Sequence[str], image_index: Sequence[int] | None
    ) -> tuple[Tensor, Cache]:
        """Logits [Q, V] of the answers' first tokens, and the cache up to there.

        Every picture is read once.
        """
        index = torch.tensor(_picture_of(images, questions, image_index, "questions"), device=self.module.device)
        context = self.read_images(images).take(index)
        return self._last_logits([torch.tensor(ids) for ids in self._openings(questions)], context)

    def _openings(self, questions: Sequence[str]) -> list[Ids]:
        """[bos] ids [eos] [bos] of each question, the last of which opens its answer."""
        bos = self.module.special.bos
        of_text = {text: (*self.text_ids(text, "the question").tolist(), bos) for text in dict.fromkeys(questions)}
        return [of_text[question] for question in questions]

    def _last_logits(self, ids_B: Sequence[Tensor], context: Cache) -> tuple[Tensor, Cache]:
        last_B = torch.tensor([len(ids) for ids in ids_B], device=self.module.device).cumsum(0) - 1
        hidden, cache = self.module.text_hidden(ids_B, context, last_B)
        return self.module.logits(hidden), cache

    def _last_hidden(
        self, images: Sequence[Tensor], texts: Sequence[Ids], picture_of: Sequence[int], counts: Sequence[int]
    ) -> Tensor:
        """Normed hidden states [sum of counts, D] of the last ``counts`` tokens of each text behind its picture.

        One pass without a cache; see ``branches``.
        """
        device = self.module.device
        patches = self.patches_of(images)
        tree = branch([len(numbers) for numbers, _ in patches], texts, picture_of, self.module.special)
        asked = [row for rows, count in zip(tree.rows, counts, strict=True) for row in rows[len(rows) - count :]]
        rows_L, back_N = torch.tensor(asked, device=device).unique(return_inverse=True)
        inputs = replace(self._vision_inputs(patches), text_N=torch.tensor(tree.text, device=device))
        layout = build_layout(tree.samples, device=device)
        return self.module.run_rows(inputs, layout, rows_L).index_select(0, back_N)

    @torch.no_grad()
    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Log-probabilities [Q, A] (float32) of each answer's first token; see ``base.Judge``.

        One pass: every picture is read once, and behind it what the questions about it begin with.
        """
        first = [self.tokenizer.encode(answer)[:1] for answer in answers]
        if any(len(ids) == 0 for ids in first) or len({ids[0] for ids in first}) < len(first):
            raise UserError(
                f"the answers {list(answers)} must differ in their first tokens: choose others (judge.answers of a "
                "recipe, --answer of `srum-ds ask`)."
            )
        if not questions:
            return torch.zeros(0, len(answers))
        picture_of = _picture_of(images, questions, image_index, "questions")
        openings = self._openings(questions)
        logits = self.module.logits(self._last_hidden(images, openings, picture_of, [1] * len(openings)))
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
        """Answers as text, one a question; a text ends at the first eos, or at a bos, which opens another.

        Every rank decodes ``max_new_tokens`` steps. temperature, seeds: see ``decode_tokens``.
        """
        logits, cache = self._ask(images, questions, image_index)
        tokens, _ = self.decode_tokens(logits, cache, max_new_tokens, temperature, seeds)
        return [text.strip() for text in self._texts(tokens)]

    @torch.no_grad()
    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean log-probability [Q] (float32) of each text's tokens, its eos included, under its picture.

        With ``questions``, the text is the answer to one; without, it follows the picture at once.
        ``image_index[q]`` is the picture of text q (default: picture q); every picture is read once.
        UserError for an empty text.
        """
        picture_of = _picture_of(images, texts, image_index, "texts")
        if not texts:
            return torch.zeros(0)
        for number, text in enumerate(texts):
            if not text:
                raise UserError(f"text {number} is empty; give it at least one character.")
        wrapped = [self.tokenizer.segment(text).tolist() for text in texts]
        before = [self.tokenizer.segment(question).tolist() for question in questions or ()]
        before = before or [[]] * len(texts)
        paths = [(*asked, *ids[:-1]) for asked, ids in zip(before, wrapped, strict=True)]
        lengths = [len(ids) - 1 for ids in wrapped]
        hidden = self._last_hidden(images, paths, picture_of, lengths)
        expected = torch.tensor([token for ids in wrapped for token in ids[1:]], device=hidden.device)
        logprobs = self.module.logits(hidden).log_softmax(-1).gather(1, expected[:, None])[:, 0]
        return torch.stack([part.mean() for part in logprobs.split(lengths)])

    # ---- decoding

    @torch.no_grad()
    def start_answer(self, context: Cache) -> tuple[Tensor, Cache]:
        """Opens an answer after a context: logits [Q, V] of its first token, and the cache with its bos."""
        bos = torch.tensor([self.module.special.bos], device=self.module.device)
        return self._last_logits([bos] * context.batch, context)

    @torch.no_grad()
    def decode_tokens(
        self,
        logits_QV: Tensor,
        cache: Cache,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        keep_logits: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Continues answers by exactly ``max_new_tokens`` tokens, so that ranks stay in lockstep.

        logits_QV: of the first token (``start_answer``). temperature 0 takes the likeliest token; above,
        tokens are drawn from softmax(logits / temperature), each answer by its own seed, so that it does
        not depend on its batch. Returns tokens [Q, T], int64, and, asked for, their logits [Q, T, V].
        UserError where context and answer together exceed the model's ``max_position_embeddings``.
        """
        draw = self._chooser(len(logits_QV), temperature, seeds)
        longest = self.config.llm.max_position_embeddings
        if int(cache.position_B.max()) + max_new_tokens > longest:
            raise UserError(
                f"{max_new_tokens} new tokens are too many: max_position_embeddings in llm_config.json is {longest}, "
                f"of which the context takes {int(cache.position_B.max())}. Ask for fewer."
            )
        tokens: list[Tensor] = []
        kept: list[Tensor] = []
        for step in range(max_new_tokens):
            tokens.append(draw(logits_QV))
            if keep_logits:
                kept.append(logits_QV)
            if step + 1 < max_new_tokens:
                hidden, cache = self.module.text_hidden(list(tokens[-1][:, None]), cache)
                logits_QV = self.module.logits(hidden)
        return torch.stack(tokens, dim=1), torch.stack(kept, dim=1) if keep_logits else None

    def _chooser(self, count: int, temperature: float, seeds: Sequence[int] | None) -> _Greedy | _Sampled:
        if temperature < 0:
            raise UserError(f"temperature is {temperature}; it must be 0 (greedy) or above.")
        if temperature == 0:
            return _Greedy()
        if seeds is None or len(seeds) != count:
            raise ValueError(f"sampling {count} answers needs as many seeds")
        return _Sampled(temperature, [randomness.generator("answer", seed) for seed in seeds])

    def _texts(self, tokens_QT: Tensor) -> list[str]:
        ends = (self.module.special.eos, self.module.special.bos)
        rows = tokens_QT.tolist()
        return [self.tokenizer.decode(list(takewhile(lambda token: token not in ends, row))) for row in rows]


def _picture_of(
    images: Sequence[Tensor], texts: Sequence[str], image_index: Sequence[int] | None, what: str
) -> list[int]:
    """The number of each text's picture."""
    if image_index is not None:
        return list(image_index)
    if len(images) != len(texts):
        raise ValueError(f"{len(texts)} {what} about {len(images)} images need image_index")
    return list(range(len(texts)))


class _Greedy:
    def __call__(self, logits_QV: Tensor) -> Tensor:
        return logits_QV.argmax(-1)


class _Sampled:
    """Draws by inversion on the CPU in double precision: one uniform number a token and answer."""

    def __init__(self, temperature: float, generators: Sequence[torch.Generator]) -> None:
        self.temperature = temperature
        self.generators = generators

    def __call__(self, logits_QV: Tensor) -> Tensor:
        share_QV = (logits_QV.double().cpu() / self.temperature).softmax(-1).cumsum(-1)
        uniform = [torch.rand(1, generator=g, dtype=torch.float64) for g in self.generators]
        tokens_Q1 = torch.searchsorted(share_QV, torch.stack(uniform) * share_QV[:, -1:], right=True)
        return tokens_Q1[:, 0].clamp(max=logits_QV.shape[-1] - 1).to(logits_QV.device)
