"""Writes text after a context, token by token: the answerer's replies and the generator's plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from srum_ds.common import seeds as randomness
from srum_ds.common.errors import UserError
from srum_ds.models.bagel.cache import Cache
from srum_ds.models.bagel.reader import Reader


class TextDecoder:
    """Autoregressive decoding, greedy or sampled, in a fixed number of steps."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @torch.no_grad()
    def start(self, context: Cache) -> tuple[Tensor, Cache]:
        """Opens a text after a context: logits [Q, V] of its first token, and the context with its bos."""
        module = self.reader.module
        bos = torch.tensor([module.special.bos], device=module.device)
        return self.next_logits([bos] * context.batch, context)

    @torch.no_grad()
    def next_logits(self, ids_B: Sequence[Tensor], context: Cache) -> tuple[Tensor, Cache]:
        """Appends ids (int64, at least one per sample); logits [B, V] of what follows them, and the context."""
        module = self.reader.module
        last_B = torch.tensor([len(ids) for ids in ids_B], device=module.device).cumsum(0) - 1
        hidden, cache = module.text_hidden(ids_B, context, last_B)
        return module.logits(hidden), cache

    @torch.no_grad()
    def decode(
        self,
        logits_QV: Tensor,
        cache: Cache,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        keep_logits: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Continues texts by exactly ``max_new_tokens`` tokens, so that ranks stay in lockstep.

        logits_QV: of the first token (``start``). temperature 0 takes the likeliest token; above,
        tokens are drawn from softmax(logits / temperature), each text by its own seed, so that it does
        not depend on its batch. Returns tokens [Q, T], int64, and, asked for, their logits [Q, T, V].

        UserError where context and text together exceed the model's ``max_position_embeddings``. ValueError where
        sampling has not one seed per text.
        """
        choose = _chooser(len(logits_QV), temperature, seeds)
        longest = self.reader.config.llm.max_position_embeddings
        if int(cache.position_B.max()) + max_new_tokens > longest:
            raise UserError(
                f"{max_new_tokens} new tokens are too many: max_position_embeddings in llm_config.json is {longest}, "
                f"of which the context takes {int(cache.position_B.max())}. Ask for fewer."
            )
        module = self.reader.module
        tokens: list[Tensor] = []
        kept: list[Tensor] = []
        for step in range(max_new_tokens):
            tokens.append(choose(logits_QV))
            if keep_logits:
                kept.append(logits_QV)
            if step + 1 < max_new_tokens:
                hidden, cache = module.text_hidden(list(tokens[-1][:, None]), cache)
                logits_QV = module.logits(hidden)
        return torch.stack(tokens, dim=1), torch.stack(kept, dim=1) if keep_logits else None

    def texts(self, tokens_QT: Tensor) -> list[str]:
        """The texts of decoded tokens: each ends at the first eos, or at a bos, which opens another text."""
        special = self.reader.module.special
        ends = (special.eos, special.bos)
        rows = tokens_QT.tolist()
        return [self.reader.tokenizer.decode(list(takewhile(lambda token: token not in ends, row))) for row in rows]


def _chooser(count: int, temperature: float, seeds: Sequence[int] | None) -> Callable[[Tensor], Tensor]:
    """What turns logits [Q, V] into the next tokens [Q]."""
    if temperature < 0:
        raise UserError(f"temperature is {temperature}; it must be 0 (greedy) or above.")
    if temperature == 0:
        return _likeliest
    if seeds is None or len(seeds) != count:
        raise ValueError(f"sampling {count} answers needs as many seeds")
    return _Sampled(temperature, [randomness.generator("answer", seed) for seed in seeds])


def _likeliest(logits_QV: Tensor) -> Tensor:
    return logits_QV.argmax(-1)


class _Sampled:
    """Draws by inversion on the CPU in double precision: one uniform number per token and text."""

    def __init__(self, temperature: float, generators: Sequence[torch.Generator]) -> None:
        self.temperature = temperature
        self.generators = generators

    def __call__(self, logits_QV: Tensor) -> Tensor:
        share_QV = (logits_QV.double().cpu() / self.temperature).softmax(-1).cumsum(-1)
        uniform = [torch.rand(1, generator=g, dtype=torch.float64) for g in self.generators]
        tokens_Q1 = torch.searchsorted(share_QV, torch.stack(uniform) * share_QV[:, -1:], right=True)
        return tokens_Q1[:, 0].clamp(max=logits_QV.shape[-1] - 1).to(logits_QV.device)
