"""The BAGEL module: one tree of weights, and the passes over it.

``forward`` is the pass that trains, so that an engine which wraps the module (DeepSpeed ZeRO-3 hooks on ``__call__``)
sees it. The other passes have no gradient; they run as methods, under ZeRO-3 on the gathered module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srum_ds.models.bagel.attention import backends
from srum_ds.models.bagel.cache import Cache, empty_cache
from srum_ds.models.bagel.config import BagelConfig, SpecialTokens
from srum_ds.models.bagel.denoising import Branch, Denoising, open_branch, plan_denoising
from srum_ds.models.bagel.latents import PositionTable, TimestepEmbedder
from srum_ds.models.bagel.layout import Layout, Segment, build_layout
from srum_ds.models.bagel.pictures import Context, Pictures, arrange, place_texts
from srum_ds.models.bagel.transformer import LanguageModel
from srum_ds.models.bagel.vision import Connector, VisionModel, grid_ids


@dataclass(frozen=True)
class Inputs:
    """Flat inputs of one pass, in the order the layout counts them.

    text_N: ids of every text-like token (image start and end included). patches_VD with patch_place_V (where in the
    tower's and the connector's position tables) and patch_counts (patches of each image). latents_GC with
    latent_place_G, and time_I in [0, 1] of which token g has number time_index_G: tokens of one image share their
    time, which is embedded once.
    """

    text_N: Tensor
    patches_VD: Tensor | None = None
    patch_place_V: Tensor | None = None
    patch_counts: tuple[int, ...] = ()
    latents_GC: Tensor | None = None
    latent_place_G: Tensor | None = None
    time_I: Tensor | None = None
    time_index_G: Tensor | None = None


class Bagel(nn.Module):
    """Everything of ``ema.safetensors``; the autoencoder lives outside."""

    def __init__(self, config: BagelConfig, special: SpecialTokens) -> None:
        super().__init__()
        hidden = config.llm.hidden_size
        self.config = config
        self.special = special
        self.language_model = LanguageModel(config.llm)
        self.vit_model = VisionModel(config.vit)
        self.connector = Connector(config.vit.hidden_size, hidden, config.connector_act)
        self.vit_pos_embed = PositionTable(config.vit_max_num_patch_per_side, hidden)
        self.latent_pos_embed = PositionTable(config.max_latent_size, hidden)
        self.time_embedder = TimestepEmbedder(hidden)
        self.vae2llm = nn.Linear(config.token_channels, hidden)
        self.llm2vae = nn.Linear(hidden, config.token_channels)

    @property
    def dtype(self) -> torch.dtype:
        return self.llm2vae.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.llm2vae.weight.device

    def forward(
        self,
        ids_PL: Tensor,
        length_P: Tensor,
        dropped_BM: Tensor,
        x_BMTC: Tensor,
        t_BM: Tensor,
        grid_2: Tensor,
        prompt_B: Tensor | None = None,
    ) -> Tensor:
        """Velocities [B, M, T, C] (float32) of M noised copies of each of B images under their prompts.

        ids_PL: ids of P prompts with bos and eos, padded at their ends; length_P their lengths; prompt_B the prompt of
        each image (default: prompt b for image b). dropped_BM (bool) says which copies see no prompt; x_BMTC the
        noised latent tokens at times t_BM; grid_2 = (h, w). Lengths, prompt numbers, what is dropped and the grid
        decide shapes: on another device than the CPU, each costs a wait for it.

        Every prompt is read once, in the same pass as the images: a block's weights serve both, so that an engine
        gathers them once.
        """
        b, m, tokens, channels = x_BMTC.shape
        lengths = length_P.tolist()
        prompts = list(range(b)) if prompt_B is None else prompt_B.tolist()
        rows = [prompt for prompt in prompts for _ in range(m)]
        seen = [0 if drop else lengths[row] for row, drop in zip(rows, dropped_BM.flatten().tolist(), strict=True)]
        arrangement = arrange(seen, rows, self.device)
        llm = self.config.llm
        texts = place_texts(
            length_P.to(self.device), ids_PL.shape[1], arrangement.groups, llm.head_size, llm.rope_theta, self.dtype
        )
        pictures = Pictures(tuple(group.pictures for group in arrangement.groups), texts)
        ids_N = torch.cat([ids_PL.reshape(-1).to(self.device), self._wrap_ids()])
        text_ND, wrap_2D = self.language_model.model.embed_tokens(ids_N).split([ids_PL.numel(), 2])
        und_UD = wrap_2D.repeat(b * m, 1)
        x_RTC = x_BMTC.reshape(b * m, tokens, channels).index_select(0, arrangement.order_B)
        t_R = t_BM.reshape(-1).index_select(0, arrangement.order_B)
        place_TD = self._places((int(grid_2[0]), int(grid_2[1])))
        v_RTC = self._denoise(x_RTC, t_R, und_UD, place_TD, pictures, text_ND)
        return v_RTC.index_select(0, arrangement.back_B).view(b, m, tokens, channels)

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block in backward instead of keeping its activations."""
        self.language_model.model.checkpointing = enabled

    def embed(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Embeddings of the understanding rows [U, D] and the generation rows [G, D]."""
        und = self.language_model.model.embed_tokens(inputs.text_N)
        if inputs.patches_VD is not None and inputs.patch_place_V is not None:
            with backends(self.device):
                features = self.vit_model.vision_model(
                    inputs.patches_VD.to(self.dtype), inputs.patch_place_V, list(inputs.patch_counts)
                )
            seen = self.connector(features) + self.vit_pos_embed(inputs.patch_place_V)
            und = torch.cat([und, seen.to(und.dtype)])
        if inputs.latents_GC is None or inputs.latent_place_G is None or inputs.time_I is None:
            return und, und.new_zeros(0, und.shape[-1])
        gen = self.vae2llm(inputs.latents_GC.to(self.dtype))
        gen = gen + self.time_embedder(inputs.time_I, self.dtype)[inputs.time_index_G]
        gen = gen + self.latent_pos_embed(inputs.latent_place_G).to(gen.dtype)
        return und, gen.to(und.dtype)

    def run(
        self, inputs: Inputs, layout: Layout, past: Cache | None = None, rows_L: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Cache]:
        """Normed hidden states of understanding and generation rows, and the cache with them.

        rows_L: the understanding rows that are wanted; see ``MoTModel``.
        """
        und, gen = self.embed(inputs)
        cache: Cache
        und, gen, cache = self.language_model.model(und, gen, layout, past, True, rows_L)
        return und, gen, cache

    def run_last(self, inputs: Inputs, layout: Layout, past: Cache | None = None) -> tuple[Tensor, Tensor]:
        """Like ``run`` where nothing follows: no cache is kept."""
        und, gen = self.embed(inputs)
        und, gen, _ = self.language_model.model(und, gen, layout, past, False)
        return und, gen

    def run_rows(self, inputs: Inputs, layout: Layout, rows_L: Tensor) -> Tensor:
        """Normed hidden states [L, D] of the understanding rows ``rows_L`` (all different); no cache is kept."""
        und, gen = self.embed(inputs)
        hidden_LD: Tensor = self.language_model.model(und, gen, layout, None, False, rows_L)[0]
        return hidden_LD

    def read(self, inputs: Inputs, layout: Layout, past: Cache | None = None) -> Cache:
        """Appends segments to a cache."""
        return self.run(inputs, layout, past, self._no_rows())[2]

    def _no_rows(self) -> Tensor:
        return torch.zeros(0, dtype=torch.int64, device=self.device)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Vocabulary logits [N, V] in float32 from normed hidden states."""
        logits_NV: Tensor = self.language_model.lm_head(hidden_ND).float()
        return logits_NV

    def read_text(self, ids_B: Sequence[Tensor], past: Cache | None = None) -> Cache:
        """Appends one text segment per sample; ids carry bos and eos. An empty tensor appends nothing."""
        return self.text_hidden(ids_B, past, self._no_rows())[1]

    def text_hidden(
        self, ids_B: Sequence[Tensor], past: Cache | None = None, rows_L: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """Like ``read_text``, with the normed hidden states [sum of lengths, D] of the new ids.

        rows_L (int64): of these ids alone, counted over all samples one after the other.
        """
        if all(len(ids) == 0 for ids in ids_B):
            cache = past or empty_cache(self.config.llm, len(ids_B), self.dtype, self.device)
            return torch.zeros(0, self.config.llm.hidden_size, dtype=self.dtype, device=self.device), cache
        layout = self.layout_after([[Segment("text", len(ids))] if len(ids) else [] for ids in ids_B], past)
        text_N = torch.cat([ids for ids in ids_B if len(ids)]).to(self.device)
        hidden, _, cache = self.run(Inputs(text_N), layout, past, rows_L)
        return hidden, cache

    def read_padded(self, ids_BL: Tensor, length_B: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Like ``text_hidden`` for texts padded at their ends to one length: static shapes.

        Returns hidden states [B, L, D] (meaningless in the padding) and a cache in which the padding
        is marked as not there. A text of length 0 leaves its sample's context as it was.
        """
        batch, width = ids_BL.shape
        layout = self.layout_after([[Segment("text", width)]] * batch, past)
        hidden, _, cache = self.run(Inputs(ids_BL.reshape(-1)), layout, past)
        real_BL = torch.arange(width, device=ids_BL.device)[None] < length_B[:, None]
        before = cache.valid_BP[:, : cache.valid_BP.shape[1] - width]
        start_B = cache.position_B - width
        trimmed = Cache(cache.keys_L, cache.values_L, torch.cat([before, real_BL], dim=1), start_B + length_B)
        return hidden.view(batch, width, -1), trimmed

    def layout_after(self, samples: Sequence[Sequence[Segment]], past: Cache | None) -> Layout:
        """The layout of a batch of samples that go on after ``past``."""
        valid = None if past is None else past.valid_BP
        position = None if past is None else past.position_B
        return build_layout(samples, valid, position, self.device)

    # ---- noised pictures

    def _wrap_ids(self) -> Tensor:
        """A picture's start and end token."""
        return torch.tensor([self.special.image_start, self.special.image_end], device=self.device)

    def _places(self, grid: tuple[int, int]) -> Tensor:
        """Embeddings [T, D] of the latent tokens' places in a grid."""
        place_T = grid_ids(*grid, self.config.max_latent_size, self.config.interpolate_pos).to(self.device)
        place_TD: Tensor = self.latent_pos_embed(place_T)
        return place_TD

    def _denoise(
        self,
        x_RTC: Tensor,
        t_R: Tensor,
        und_UD: Tensor,
        place_TD: Tensor,
        pictures: Pictures,
        before: Tensor | tuple[tuple[Context | None, ...], ...],
    ) -> Tensor:
        """Velocities [R, T, C] (float32) of arranged pictures; t_R may have one time for all."""
        gen_RTD = self.vae2llm(x_RTC.to(self.dtype))
        # Added, not gathered: the gradient of a time's embedding is then a plain sum over its picture's tokens.
        gen_RTD = gen_RTD + self.time_embedder(t_R, self.dtype)[:, None]
        gen_RTD = gen_RTD + place_TD.to(gen_RTD.dtype)
        gen_GD = gen_RTD.flatten(0, 1).to(und_UD.dtype)
        hidden_GD = self.language_model.model.denoise(und_UD, gen_GD, pictures, before)
        velocity_RTC: Tensor = self.llm2vae(hidden_GD).float().view_as(x_RTC)
        return velocity_RTC

    @torch.no_grad()
    def plan_denoising(self, branches: Sequence[Branch], grid: tuple[int, int]) -> Denoising:
        """What stays the same while N pictures of a grid are denoised, each under every branch."""
        wrap_2D = self.language_model.model.embed_tokens(self._wrap_ids())
        return plan_denoising(branches, wrap_2D, self._places(grid).to(self.dtype))

    def branch(self, cache: Cache) -> Branch:
        """A branch of ``plan_denoising``: one picture behind each sample of a cache."""
        return open_branch(cache, self.config.llm.rope_theta)

    def velocities(self, x_NTC: Tensor, t_N: Tensor, plan: Denoising) -> tuple[Tensor, ...]:
        """Velocities [N, T, C] (float32) of noised pictures under each branch of a plan.

        x_NTC: latent tokens, row-major over the plan's grid; t_N: float in [0, 1], one for each or, [1], for all.
        """
        t_R = t_N if len(t_N) == 1 else t_N.index_select(0, plan.picture_R)
        x_RTC = x_NTC.index_select(0, plan.picture_R)
        v_RTC = self._denoise(x_RTC, t_R, plan.und_UD, plan.place_TD, plan.pictures, plan.contexts_LG)
        return v_RTC.index_select(0, plan.back_R).chunk(plan.branches)

    def velocity(self, x_NTC: Tensor, t_N: Tensor, grid: tuple[int, int], past: Cache) -> Tensor:
        """``velocities`` of one step under one context for each picture."""
        return self.velocities(x_NTC, t_N, self.plan_denoising([self.branch(past)], grid))[0]
