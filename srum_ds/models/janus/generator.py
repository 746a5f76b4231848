"""Draws pictures code by code, and says how likely given codes are: the ``Generator`` of models/protocol.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.janus.language import Writer
from srum_ds.models.janus.reader import Reader
from srum_ds.models.janus.sampling import CodeSampling, choose, guide, uniforms
from srum_ds.models.janus.texts import Ids
from srum_ds.models.matching import CategoricalTokens
from srum_ds.models.protocol import Forward, ViewSettings
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView

DECODED_TOGETHER = 8
"""Most pictures that an accelerator decodes in one pass."""


class JanusGenerator:
    """The drawing half of a Janus model."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @property
    def token_spec(self) -> TokenSpec:
        """Codes of the VQ."""
        return TokenSpec("discrete", self.reader.settings.codes)

    @property
    def matching(self) -> CategoricalTokens:
        """Predictions are log-probabilities of codes."""
        return CategoricalTokens()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Codes (rows, columns); UserError for any size but the one that the model draws."""
        return self.reader.settings.grid(height, width)

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """(height, width) in pixels of every picture. UserError for an image to edit."""
        if edit is not None:
            raise _no_edits()
        return self.reader.settings.side, self.reader.settings.side

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """See ``prompt_ids``."""
        self.prompt_ids(prompts)

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[Ids]:
        """Ids of each prompt up to the begin of its picture; UserError, naming it, where it is empty or too long."""
        return [self.reader.prompt_ids(prompt.text, f"prompt {prompt.id!r}") for prompt in prompts]

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: CodeSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws one picture per prompt, picture n by the uniform numbers that ``keys[n]`` seeds.

        Returns the codes [N, T] (int64) and the pictures [N, 3, H, W] in [0, 1], multiples of 1/255. In float32 the
        same prompt and key give the same picture in any batch. In bfloat16 they need not: where a code's number lies
        next to a boundary, rounding that depends on the batch gives another code, and then all that follow are others.
        UserError for edits and plans, which Janus does not have. ValueError where there is not one key per prompt.
        """
        if edits is not None:
            raise _no_edits()
        if plans is not None:
            raise _no_plans()
        if len(keys) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many keys, got {len(keys)}")
        settings = self.reader.settings
        if grid != (settings.per_side, settings.per_side):
            raise UserError(f"a grid of {grid[0]} x {grid[1]} codes cannot be drawn: it is {settings.per_side} a side.")
        ids = self.prompt_ids(prompts)
        code_NT = self.sample(ids, uniforms(keys, settings.tokens), sampling)
        return code_NT, self.decode(code_NT)

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """UserError: Janus writes no plans."""
        raise _no_plans()

    # ---- training

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """``settings.copies`` views of every picture, which differ in prompt dropout alone. Every code counts.

        inputs: ``dropped_NM`` (bool, on the CPU), the copies that are trained without their prompt. target: the codes.
        """
        code_NMT = samples.tokens[:, None].expand(-1, settings.copies, -1)
        u_NM = torch.stack([seeds.uniform((settings.copies,), *key) for key in keys.of("dropout")])
        counts_NMT = torch.ones(code_NMT.shape, dtype=torch.bool, device=code_NMT.device)
        return TrainView({"dropped_NM": u_NM < settings.prompt_dropout}, code_NMT, counts_NMT)

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """log p of the views' codes [N, M, T] (float32), through the engine or the gathered module (``Janus.forward``).

        Views of a picture that do not differ are computed once.
        """
        del grid
        dropped_NM = view.inputs["dropped_NM"]
        prompt_ids = self.prompt_ids(prompts)
        rows: dict[tuple[int, bool], int] = {}
        row_NM = torch.tensor(
            [[rows.setdefault((n, drop), len(rows)) for drop in own] for n, own in enumerate(dropped_NM.tolist())]
        )
        without = self.reader.texts.without_prompt
        ids = [without(prompt_ids[n]) if drop else prompt_ids[n] for n, drop in rows]
        code_BT = view.target[:, 0][[n for n, _ in rows]]
        logprob_BT: Tensor = forward(*padded(ids), code_BT)
        return logprob_BT[row_NM.to(logprob_BT.device)]

    # ---- sampling

    @torch.no_grad()
    def sample(
        self,
        ids: Sequence[Ids],
        uniform_NT: Tensor,
        sampling: CodeSampling,
        trace: list[tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        """Codes [N, T] (int64) of prompts (ids up to the begin of the picture), each by its own uniform numbers.

        Equal prompts are read once; with guidance, the rows without prompts run in the same batch. ``trace`` receives,
        of each code, the logits [N, V] with the prompt and, with guidance, without it.
        """
        module, without = self.reader.module, self.reader.texts.without_prompt
        count, tokens = uniform_NT.shape
        sequences = [*ids, *map(without, ids)] if sampling.guided else list(ids)
        distinct = {sequence: row for row, sequence in enumerate(dict.fromkeys(sequences))}
        first_PD, kept = module.read_texts(list(distinct))
        places = [(distinct[sequence], range(len(sequence))) for sequence in sequences]
        hidden_BD = first_PD[torch.tensor([row for row, _ in places], device=first_PD.device)]
        writer = Writer(module.language, kept, places, tokens - 1)
        uniform_NT = uniform_NT.to(module.device)
        codes: list[Tensor] = []
        for step in range(tokens):
            logits = module.model.generation_head(hidden_BD).float().split(count)
            if trace is not None:
                trace.append(logits)
            guided_NV = guide(logits[0], logits[1], sampling.guidance) if sampling.guided else logits[0]
            codes.append(choose(guided_NV, uniform_NT[:, step], sampling.temperature))
            if step + 1 < tokens:
                embedded_ND = module.embed_codes(codes[-1])
                hidden_BD = writer(embedded_ND.repeat(2, 1) if sampling.guided else embedded_ND)
        return torch.stack(codes, dim=1)

    @torch.no_grad()
    def decode_unclamped(self, code_NT: Tensor, together: int | None = None) -> Tensor:
        """The VQ's pixels [N, 3, H, W], about [-1, 1], of codes.

        together: how many are decoded in one pass. Sums of a larger pass may be taken in another order, so that a CPU
        decodes one picture at a time: it is then the same to the bit in any batch.
        """
        vq = self.reader.vq
        together = together or (1 if vq.device.type == "cpu" else DECODED_TOGETHER)
        parts: list[Tensor] = [vq.decode(part) for part in code_NT.to(vq.device).split(together)]
        return torch.cat(parts).float()

    def decode(self, code_NT: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in [0, 1] of codes, multiples of 1/255."""
        return levels(self.decode_unclamped(code_NT)) / 255


def levels(pixels: Tensor) -> Tensor:
    """Whole numbers 0 to 255 (as floats) of the VQ's pixels in [-1, 1], truncated as the release does."""
    return ((pixels + 1) / 2 * 255).clamp(0, 255).floor()


def padded(ids: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Ids [B, L] (int64), padded on the right, and their lengths [B], on the CPU."""
    rows = [torch.tensor(row) for row in ids]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in ids])


def _no_edits() -> UserError:
    return UserError("Janus edits no images: leave the image to edit out, or choose a model that edits.")


def _no_plans() -> UserError:
    return UserError("Janus writes no plans: leave them out (rollout.think or --think), or choose a model that plans.")
