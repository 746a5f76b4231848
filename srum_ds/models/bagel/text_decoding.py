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
from srum_ds.models.bagel.text_step import TextStep
from srum_ds.models.lora import is_adapter

LOOK_EVERY = 16
"""After how many tokens it is looked whether all texts have ended: the only time that the device is waited for."""

Choose = Callable[[Tensor, int], Tensor]
"""(logits [Q, V], how many tokens each text has) -> the next token of each text, int64 [Q]."""


class TextDecoder:
    """Autoregressive decoding, greedy or sampled, of a batch of texts until all of them have ended.

    Ranks may decode different numbers of tokens: all parameters are whole (inside ``engine.gathered()``), and nothing
    communicates.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @torch.no_grad()
    def start(self, context: Cache) -> tuple[Tensor, Cache]:
        """Opens a text after a context: logits [Q, V] of its first token, and the context with its bos."""
        bos = torch.tensor([self.reader.module.special.bos])
        return self.next_logits([bos] * context.batch, context)

    @torch.no_grad()
    def next_logits(self, ids_B: Sequence[Tensor], context: Cache) -> tuple[Tensor, Cache]:
        """Appends ids (int64, at least one per sample); logits [B, V] of what follows them, and the context."""
        module = self.reader.module
        last_B = torch.tensor([len(ids) for ids in ids_B]).cumsum(0) - 1
        hidden, cache = module.text_hidden(ids_B, context, last_B.to(module.device))
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
        """Continues texts until each has ended, or by ``max_new_tokens`` tokens.

        logits_QV: of the first token (``start``). temperature 0 takes the likeliest token; above,
        tokens are drawn from softmax(logits / temperature), each text by its own seed. A text does not depend on its
        batch, nor on when others end. Every ``LOOK_EVERY`` tokens it is looked whether all have ended.

        Returns tokens [Q, T], int64, on the CPU, and, asked for, their logits [Q, T, V], where they were computed.
        What follows a text's end means nothing (``texts``). With ``keep_logits``, T is ``max_new_tokens``.

        UserError where context and text together exceed the model's ``max_position_embeddings``. ValueError where
        sampling has not one seed per text. RuntimeError where weights are not whole on this rank.
        """
        module = self.reader.module
        require_whole(module.language_model)
        choose = _chooser(len(logits_QV), temperature, seeds)
        longest = self.reader.config.llm.max_position_embeddings
        taken = int(cache.position_B.max())
        if taken + max_new_tokens > longest:
            raise UserError(
                f"{max_new_tokens} new tokens are too many: max_position_embeddings in llm_config.json is {longest}, "
                f"of which the context takes {taken}. Ask for fewer."
            )
        append = TextStep(module.language_model.model, cache)
        tokens: list[Tensor] = []
        chunks: list[Tensor] = []
        kept: list[Tensor] = []
        ended_Q = torch.zeros(len(logits_QV), dtype=torch.bool)
        for step in range(max_new_tokens):
            token_Q = choose(logits_QV, step)
            tokens.append(token_Q)
            if keep_logits:
                kept.append(logits_QV)
            last = step + 1 == max_new_tokens
            if last or len(tokens) == LOOK_EVERY:
                chunks.append(torch.stack(tokens, dim=1).cpu())
                tokens.clear()
                ended_Q |= torch.isin(chunks[-1], torch.tensor(self._ends)).any(dim=1)
            if last or (bool(ended_Q.all()) and not keep_logits):
                break
            logits_QV = module.logits(append(token_Q))
        return torch.cat(chunks, dim=1), torch.stack(kept, dim=1) if keep_logits else None

    def texts(self, tokens_QT: Tensor) -> list[str]:
        """The texts of decoded tokens: each ends at the first eos, or at a bos, which opens another text."""
        decode = self.reader.tokenizer.decode
        return [decode(list(takewhile(lambda token: token not in self._ends, row))) for row in tokens_QT.tolist()]

    @property
    def _ends(self) -> tuple[int, int]:
        """The tokens that end a text."""
        special = self.reader.module.special
        return special.eos, special.bos


def require_whole(language_model: torch.nn.Module) -> None:
    """RuntimeError where a weight that text goes through is in shards: ranks would gather it unequally often, and hang.

    Generation experts and adapters, which a judge switches off, may be (``engine.gathered_frozen()``).
    """
    for name, parameter in language_model.named_parameters():
        if parameter.numel() == 0 and "_moe_gen" not in name and not is_adapter(name):
            raise RuntimeError(f"text is written with whole weights, inside engine.gathered(); {name} is in shards")


def _chooser(count: int, temperature: float, seeds: Sequence[int] | None) -> Choose:
    if temperature < 0:
        raise UserError(f"temperature is {temperature}; it must be 0 (greedy) or above.")
    if temperature == 0:
        return _likeliest
    if seeds is None or len(seeds) != count:
        raise ValueError(f"sampling {count} answers needs as many seeds")
    return _Sampled(temperature, [randomness.generator("answer", seed) for seed in seeds])


def _likeliest(logits_QV: Tensor, step: int) -> Tensor:
    return logits_QV.argmax(-1)


class _Sampled:
    """Draws by inversion in double precision, where the logits are: one uniform number per token and text.

    The numbers come from each text's generator on the CPU, for ``LOOK_EVERY`` tokens at once.
    """

    def __init__(self, temperature: float, generators: Sequence[torch.Generator]) -> None:
        self.temperature = temperature
        self.generators = generators
        self.uniform_QT = torch.zeros(0)

    def __call__(self, logits_QV: Tensor, step: int) -> Tensor:
        if step % LOOK_EVERY == 0:
            drawn = [torch.rand(LOOK_EVERY, generator=g, dtype=torch.float64) for g in self.generators]
            self.uniform_QT = torch.stack(drawn).to(logits_QV.device)
        share_QV = (logits_QV.double() / self.temperature).softmax(-1).cumsum(-1)
        uniform_Q1 = self.uniform_QT[:, step % LOOK_EVERY, None]
        tokens_Q1 = torch.searchsorted(share_QV, uniform_Q1 * share_QV[:, -1:], right=True)
        return tokens_Q1[:, 0].clamp(max=logits_QV.shape[-1] - 1)
