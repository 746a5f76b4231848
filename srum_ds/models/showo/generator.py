"""Draws pictures, makes masked training views, predicts log p of codes: the ``Generator`` of models/protocol.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.matching import CategoricalTokens
from srum_ds.models.protocol import Forward, ViewSettings
from srum_ds.models.showo.images import quantise
from srum_ds.models.showo.layout import picture_rows, prompt_row
from srum_ds.models.showo.reader import Reader
from srum_ds.models.showo.sampling import (
    MASKED,
    Logits,
    MaskedSampling,
    SamplerStep,
    guide,
    masked_in_training,
    noise,
    unmask,
)
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView


class ShowoGenerator:
    """The drawing half of a Show-o model."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @property
    def token_spec(self) -> TokenSpec:
        """Codes of the picture tokenizer."""
        return TokenSpec("discrete", self.reader.config.facts.codebook_size)

    @property
    def matching(self) -> CategoricalTokens:
        """Predictions are log p of the codes."""
        return CategoricalTokens()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Codes (rows, columns) of a picture in pixels; UserError for any size but the one that the model has."""
        side = self.reader.config.pixels
        if (height, width) != (side, side):
            raise UserError(f"this Show-o draws pictures of {side} x {side} pixels only, not of {height} x {width}.")
        return self.reader.grid

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """(height, width) in pixels of every picture. UserError for a picture to edit."""
        if edit is not None:
            raise _no_edits()
        return self.reader.config.pixels, self.reader.config.pixels

    # ---- prompts

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """UserError, naming the prompt, for one that is empty or does not fit into ``max_text_len`` tokens."""
        room = self.reader.config.facts.max_text_len
        for prompt in prompts:
            if not prompt.text.strip():
                raise UserError(f"prompt {prompt.id!r} is empty; give it at least one character.")
            # Its task token, bos and eos stand around it, in one place more than max_text_len.
            count = len(self.reader.tokenizer.encode(prompt.text)) + 2
            if count > room:
                raise UserError(
                    f"prompt {prompt.id!r} has {count - 2} tokens; max_text_len of config.json leaves room for "
                    f"{room - 2}. Shorten it."
                )

    def prompt_ids(self, texts: Sequence[str]) -> Tensor:
        """``[pad ...] <t2i> bos text eos`` of each text, int64 [N, max_text_len + 1]; a text that is too long is cut.

        The empty text is what guidance and prompt dropout compare with.
        """
        vocabulary, length = self.reader.tokenizer.vocabulary, self.reader.config.facts.max_text_len
        encode = self.reader.tokenizer.encode
        return torch.tensor([prompt_row(encode(text) if text else [], vocabulary, length) for text in texts])

    def sequence_ids(self, texts: Sequence[str], codes_NT: Tensor) -> Tensor:
        """The drawing sequence of each text, int64 [N, L]: its prompt, and codes (``MASKED`` where not known)."""
        picture_NS = picture_rows(codes_NT.cpu(), self.reader.tokenizer.vocabulary)
        return torch.cat([self.prompt_ids(texts), picture_NS], dim=1)

    # ---- drawing

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: MaskedSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws one picture per prompt, picture n from the uniform numbers that ``keys[n]`` seeds.

        Returns the codes [N, T] (int64) and the pictures [N, 3, H, W] in [0, 1], 8-bit values. UserError for edits,
        plans and another grid than the model's.

        The same prompt and key give the same codes in any batch, in float32 and, as all sequences have one length, in
        bfloat16 too: measured on a CPU. A GPU may choose its kernels by the size of a batch; in bfloat16 their
        roundings can then turn a code and what follows it.
        """
        if edits is not None:
            raise _no_edits()
        if plans is not None:
            raise _no_plans()
        if len(keys) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many keys, got {len(keys)}")
        if tuple(grid) != self.reader.grid:
            raise UserError(f"this Show-o draws {self.reader.grid} codes only, not {tuple(grid)}.")
        self.check_prompts(prompts)
        uniform_N2ST = noise(keys, sampling.steps, grid[0] * grid[1])
        codes_NT = self.sample([prompt.text for prompt in prompts], uniform_N2ST, sampling)
        return codes_NT, self.decode(codes_NT, grid)

    @torch.no_grad()
    def sample(
        self,
        texts: Sequence[str],
        uniform_N2ST: Tensor,
        sampling: MaskedSampling,
        trace: list[SamplerStep] | None = None,
    ) -> Tensor:
        """Codes [N, T] of texts, from given uniform numbers; see ``sampling.unmask``.

        It makes 1 + ``sampling.steps`` passes whatever the texts are, so that ranks may hold the weights in shards.
        """
        logits_of = self._guided_logits(texts, sampling.guidance)
        return unmask(logits_of, uniform_N2ST.to(self.reader.module.device), sampling, trace)

    def _guided_logits(self, texts: Sequence[str], guidance: float) -> Logits:
        """The pass of a sampler's step. Each distinct text is read once; guided rows follow the plain ones."""
        module, vocabulary = self.reader.module, self.reader.tokenizer.vocabulary
        guided = guidance > 0
        distinct = list(dict.fromkeys(texts))
        rows = [distinct.index(text) for text in texts]
        if guided:
            rows += [len(distinct)] * len(texts)
            distinct.append("")
        prompt_ids = self.prompt_ids(distinct).to(module.device)
        index = torch.tensor(rows, device=module.device)
        prompts = module.read_prompts(prompt_ids).take(index)
        pad_BP = (prompt_ids == vocabulary.pad)[index]

        def logits_of(codes_NT: Tensor) -> Tensor:
            picture_NS = picture_rows(codes_NT, vocabulary)
            if not guided:
                return module.code_logits(picture_NS, prompts, pad_BP)
            logits = module.code_logits(picture_NS.repeat(2, 1), prompts, pad_BP)
            conditional, unconditional = logits.chunk(2)
            return guide(conditional, unconditional, guidance)

        return logits_of

    @torch.no_grad()
    def decode_unclamped(self, codes_NT: Tensor, grid: tuple[int, int]) -> Tensor:
        """The picture tokenizer's output [N, 3, H, W], about [-1, 1], for codes."""
        return self.reader.magvit.decode(codes_NT.to(self.reader.module.device), grid)

    def decode(self, codes_NT: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pictures [N, 3, H, W] in [0, 1] (8-bit values) of codes."""
        return quantise(self.decode_unclamped(codes_NT, grid))

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """UserError: Show-o does not plan."""
        raise _no_plans()

    # ---- training

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """``settings.copies`` copies of every picture with other codes masked; the masked ones count.

        A copy at time t, uniform in [0, 1) as Show-o trains (``settings`` on times are for noise levels), masks
        round(T cos(t pi / 2)) codes, at least 1. inputs: ``seen_NMT`` (int64, the codes, ``MASKED`` where masked) and
        ``dropped_NM`` (bool, on the CPU), the copies that are trained without their prompt.
        """
        codes_NT = samples.tokens
        tokens, copies, device = codes_NT.shape[1], settings.copies, codes_NT.device
        u_N2M = torch.stack([seeds.uniform((2, copies), *key) for key in keys.of("time")])
        order_NMT = torch.stack([seeds.uniform((copies, tokens), *key) for key in keys.of("mask")]).argsort(dim=2)
        time_NM = u_N2M[:, 0]
        masked_NMT = (order_NMT < masked_in_training(time_NM, tokens)[..., None]).to(device)
        target_NMT = codes_NT[:, None].expand(-1, copies, -1)
        seen_NMT = torch.where(masked_NMT, MASKED, target_NMT)
        dropped_NM = u_N2M[:, 1] < settings.prompt_dropout
        inputs = {"seen_NMT": seen_NMT, "dropped_NM": dropped_NM}
        return TrainView(inputs, target_NMT.contiguous(), masked_NMT, time_NM.to(device))

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """log p [N, M, T] (float32) of every view's codes among all codes, given its prompt and the codes it shows.

        Without guidance, at temperature 1, through the engine or the gathered module; see ``Showo.forward``.
        """
        del grid
        seen_NMT, dropped_NM = view.inputs["seen_NMT"], view.inputs["dropped_NM"].tolist()
        texts = ["" if drop else prompt.text for prompt, row in zip(prompts, dropped_NM, strict=True) for drop in row]
        ids_BL = self.sequence_ids(texts, seen_NMT.flatten(0, 1))
        logp_BT: Tensor = forward(ids_BL, view.target.flatten(0, 1))
        return logp_BT.view(seen_NMT.shape)


def _no_edits() -> UserError:
    return UserError("Show-o draws from a prompt alone: it cannot edit a picture.")


def _no_plans() -> UserError:
    return UserError("Show-o does not plan: it draws from the prompt itself. Set rollout.think to false.")
