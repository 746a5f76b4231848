"""The adapter's looking half: answers, their probabilities, and how likely a text is under a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from srum_ds import seeds as randomness
from srum_ds.errors import UserError
from srum_ds.models.bagel.reading import BagelReader
from srum_ds.models.bagel.transformer import Cache


def common_prefix(ids_Q: Sequence[Tensor]) -> list[int]:
    """What all of these begin with, but for the last id of each."""
    shortest = min(len(ids) for ids in ids_Q) - 1
    begins_QP = torch.stack([ids[:shortest] for ids in ids_Q])
    same_P = (begins_QP == begins_QP[0]).all(dim=0)
    return begins_QP[0, : int(same_P.long().cumprod(0).sum())].tolist()


class BagelAnswerer(BagelReader):
    """Looks."""

    def _ask(
        self, images: Sequence[Tensor], questions: Sequence[str], image_index: Sequence[int] | None
    ) -> tuple[Tensor, Cache]:
        """Logits [Q, V] of the answers' first tokens, and the cache up to there.

        A question is [bos] ids [eos], the answer starts with [bos]; every picture is read once, and so is, after
        each picture, what all questions begin with, where there are more questions than pictures.
        """
        if image_index is None:
            if len(images) != len(questions):
                raise ValueError(f"{len(questions)} questions about {len(images)} images need image_index")
            image_index = range(len(questions))
        index = torch.tensor(list(image_index), device=self.module.device)
        bos = torch.tensor([self.module.special.bos], device=self.module.device)
        ids = [torch.cat([self.text_ids(question, "the question"), bos]) for question in questions]
        prefix = common_prefix(ids) if len(ids) > len(images) else []
        context = self.read_images(images, then=prefix).take(index)
        return self._last_logits([of_question[len(prefix) :] for of_question in ids], context)

    def _last_logits(self, ids_B: Sequence[Tensor], context: Cache) -> tuple[Tensor, Cache]:
        last_B = torch.tensor([len(ids) for ids in ids_B], device=self.module.device).cumsum(0) - 1
        hidden, cache = self.module.text_hidden(ids_B, context, last_B)
        return self.module.logits(hidden), cache

    @torch.no_grad()
    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Log-probabilities [Q, A] (float32) of each answer's first token; see ``base.Judge``."""
        first = [self.tokenizer.encode(answer)[:1] for answer in answers]
        if any(len(ids) == 0 for ids in first) or len({ids[0] for ids in first}) < len(first):
            raise UserError(
                f"the answers {list(answers)} must differ in their first tokens: choose others (judge.answers of a "
                "recipe, --answer of `srum-ds ask`)."
            )
        if not questions:
            return torch.zeros(0, len(answers))
        logits, _ = self._ask(images, questions, image_index)
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
        if image_index is None and len(images) != len(texts):
            raise ValueError(f"{len(texts)} texts about {len(images)} images need image_index")
        if not texts:
            return torch.zeros(0)
        for number, text in enumerate(texts):
            if not text:
                raise UserError(f"text {number} is empty; give it at least one character.")
        context = self.read_images(images)
        if image_index is not None:
            context = context.take(torch.tensor(list(image_index), device=self.module.device))
        if questions is not None:
            context = self.module.read_text([self.tokenizer.segment(q) for q in questions], context)
        device = self.module.device
        wrapped = [self.tokenizer.segment(text).to(device) for text in texts]
        hidden, _ = self.module.text_hidden([ids[:-1] for ids in wrapped], context)
        expected = torch.cat([ids[1:] for ids in wrapped])
        logprobs = self.module.logits(hidden).log_softmax(-1).gather(1, expected[:, None])[:, 0]
        lengths = [len(ids) - 1 for ids in wrapped]
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
