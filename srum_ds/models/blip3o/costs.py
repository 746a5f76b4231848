"""What BLIP3-o's work costs: parameters, FLOPs and bytes by its configuration alone, for ``ModelFamily.costs``.

Judging goes by formula (``judging_costs``); the transformer, the reading of the queries and the decoder are run once on
the meta device instead, where nothing is computed, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srum_ds.models import lora
from srum_ds.models.blip3o.config import Blip3oConfig, read_config
from srum_ds.models.blip3o.decoder import DecoderConfig, SdxlDecoder, read_decoder
from srum_ds.models.blip3o.denoiser import Denoiser
from srum_ds.models.blip3o.judging_costs import JudgingCosts
from srum_ds.models.blip3o.measured import FLOAT32, Pass, with_gradient, without_gradient
from srum_ds.models.blip3o.model import Blip3o
from srum_ds.models.blip3o.modes import lora_targets, trained
from srum_ds.models.blip3o.prompts import BEFORE, BEHIND
from srum_ds.models.blip3o.released import assumed_decoder, released_config
from srum_ds.models.blip3o.settings import Blip3oSampling
from srum_ds.models.costs import Device, Flops, ParameterCounts
from srum_ds.models.qwen_vl.chat import Chat, open_tokenizer
from srum_ds.models.qwen_vl.pictures import PictureReader, read_settings

UNITS = ("dit.transformer.layers.0.", "vlm.model.language_model.layers.0.")
"""Beginnings of the names of one unit of each kind that ZeRO-3 gathers at once."""

AROUND_PROMPT = 30
"""Tokens around a caption, the one before the queries included, where no tokenizer is at hand."""

KEPT_RANK = 1


class Blip3oCosts:
    """``ModelCosts`` of BLIP3-o; see there. Without a tokenizer, texts are taken for pieces of four characters.

    module and decoder are on the meta device.
    """

    def __init__(self, module: Blip3o, decoder: SdxlDecoder, assumed: str, judging: JudgingCosts) -> None:
        self.module = module
        self.decoder = decoder
        self.assumed = assumed
        self.judging = judging
        self.config = module.config
        self._read = lru_cache(maxsize=256)(self._read_on_meta)
        self._moved = lru_cache(maxsize=8)(self._moved_on_meta)

    # ---- parameters

    def parameters(self, mode: str, lora_rank: int = 0, targets: Sequence[str] = ()) -> ParameterCounts:
        """See ``ModelCosts``."""
        counts = self._counts
        total = sum(counts.values())
        own = [counts[name] for name in trained(mode, counts)]
        size, largest = sum(own), max(own, default=0)
        if mode == "lora":
            names = lora_targets(self.module, targets)
            widest = max(max(self.module.get_parameter(f"{name}.weight").shape) for name in names)
            size, largest = lora.adapter_size(self.module, names, lora_rank), lora_rank * widest
            total += size
        outside = [parameter for part in (self.decoder.unet, self.decoder.vae) for parameter in part.parameters()]
        return ParameterCounts(
            total=total,
            trained=size,
            largest_trained=largest,
            judging=self._of("vlm."),
            unit=max(self._of(unit) for unit in UNITS),
            units=len(self.module.dit.blocks) + self.judging.vlm.layers,
            frozen_outside=sum(parameter.numel() for parameter in outside),
        )

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {name: parameter.numel() for name, parameter in self.module.named_parameters()}

    def _of(self, beginning: str) -> int:
        return sum(count for name, count in self._counts.items() if name.startswith(beginning))

    def judge_unchanged_by(self, mode: str) -> bool:
        return mode in ("generation", "lora")

    # ---- sizes

    @property
    def token_numbers(self) -> int:
        return self.config.denoiser.in_channels

    def tokens(self, size_hw: tuple[int, int]) -> int:
        del size_hw
        return self.config.denoiser.input_size**2

    def text_tokens(self, text: str) -> int:
        return self.judging.text_tokens(text)

    def told(self, prompt: str) -> int:
        """Tokens of a prompt as it stands before the queries."""
        if self.judging.chat is None:
            return self.text_tokens(prompt) + AROUND_PROMPT
        return len(self.judging.chat.encode(f"{BEFORE}{prompt}{BEHIND}")) + 1

    # ---- what is measured

    def _read_on_meta(self, length: int, trained_too: bool) -> Pass:
        """One prompt of ``length`` ids and the queries; trained_too: with the gradient that the queries have."""
        module = self.module.requires_grad_(False)
        ids_PL = torch.zeros(1, length, dtype=torch.int64)

        def work() -> Tensor:
            return module.conditions(ids_PL, torch.tensor([length]))

        if not trained_too:
            return without_gradient(work)
        module.queries.requires_grad_(True)
        found = with_gradient(work, module)
        module.requires_grad_(False)
        return found

    def _moved_on_meta(self, mode: str) -> Pass:
        """One map through the transformer; mode: whose gradient is taken, "" none."""
        dit: nn.Module = self.module.dit.requires_grad_(False)
        if mode == "lora":
            # An adapter of rank 1: whatever its rank is, the rest of the gradient is the same.
            with torch.device("meta"):
                holder = nn.ModuleDict({"dit": Denoiser(self.config.denoiser)})
            holder.requires_grad_(False)
            lora.inject(holder, lora_targets(holder), KEPT_RANK, 1.0, 0)
            dit = holder["dit"]
        elif mode == "generation":
            dit.requires_grad_(True)
        sizes = self.config.denoiser
        x = torch.empty(1, sizes.in_channels, sizes.input_size, sizes.input_size, device="meta")
        # The conditions have a gradient where the queries train.
        z = torch.empty(1, self.config.n_query, self.config.width, device="meta", requires_grad=mode == "generation")

        def work() -> Tensor:
            velocity: Tensor = dit(x, torch.zeros(1, device="meta"), z)
            return velocity

        found = with_gradient(work, dit) if mode else without_gradient(work)
        self.module.requires_grad_(False)
        return found

    @cached_property
    def _painted(self) -> tuple[Pass, Pass]:
        """One image through the UNet, and through the autoencoder."""
        unet, vae = self.decoder.unet, self.decoder.vae
        features = torch.empty(1, self.tokens((0, 0)), self.token_numbers, device="meta")
        latents = torch.empty(1, *self.decoder.noise_shape, device="meta")
        added = {"text_embeds": features[:, 0], "time_ids": torch.empty(1, 6, device="meta")}
        time = torch.zeros((), device="meta")

        def moved() -> Tensor:
            predicted: Tensor = unet(
                latents, time, encoder_hidden_states=features, added_cond_kwargs=added, return_dict=False
            )[0]
            return predicted

        def decoded() -> Tensor:
            image: Tensor = vae.decode(latents, return_dict=False)[0]
            return image

        return without_gradient(moved), without_gradient(decoded)

    # ---- drawing

    def draw_flops(
        self, prompt: str, images: int, size_hw: tuple[int, int], sampling: Blip3oSampling, adapter: int = 0
    ) -> float:
        """The prompt is read once. The empty text's features are counted with each prompt; a batch has them once."""
        guided = sampling.text_scale != 1
        step = (2 if guided else 1) * (self._moved("").forward + self._adapted(adapter))
        features, reading = images * sampling.steps * step, self._read(self.told(prompt), False).forward
        moved, decoded = self._painted
        pixels = sampling.decoder_steps * moved.forward + decoded.forward
        if sampling.decoder_scale > 1:
            pixels += sampling.decoder_steps * moved.forward
            features += sampling.steps * step
            reading += self._read(1, False).forward
        return reading + features + images * pixels

    def _adapted(self, adapter: int) -> float:
        """An adapter of attention on one map: its layers see the map's cells, or the queries."""
        rows = (5 * self.tokens((0, 0)) + 2 * self.config.n_query) / 7
        return 2.0 * adapter * rows

    def draw_passes(self, sampling: Blip3oSampling) -> int:
        """Each step of the features and their reading, and the same of the empty text; the decoder is not sharded."""
        return (sampling.steps + 1) * (2 if sampling.decoder_scale > 1 else 1)

    # ---- judging

    def answer_flops(self, size_hw: tuple[int, int], questions: Sequence[str]) -> float:
        return self.judging.answer_flops(size_hw, questions)

    def text_flops(self, size_hw: tuple[int, int], questions: Sequence[str], texts: Sequence[str]) -> float:
        return self.judging.text_flops(size_hw, questions, texts)

    def write_flops(self, size_hw: tuple[int, int], question: str, new_tokens: int) -> float:
        return self.judging.write_flops(size_hw, question, new_tokens)

    # ---- training

    def train_flops(
        self,
        prompts: Sequence[str],
        views: int,
        size_hw: tuple[int, int],
        mode: str,
        recompute: bool,
        adapter: int = 0,
    ) -> Flops:
        """Each distinct prompt is read once, padded to the longest; in ``generation`` with the queries' gradient."""
        distinct, count = set(prompts), len(prompts) * views
        text = max((self.told(prompt) for prompt in prompts), default=1)
        queries = mode == "generation"
        read, moved = self._read(text, queries), self._moved(mode)
        once, ranks = self._adapted(adapter), self._adapted(self._smallest if mode == "lora" else 0)
        forward = len(distinct) * read.forward + count * (moved.forward - ranks + once)
        backward = len(distinct) * read.backward + count * (moved.backward + 2 * (once - ranks))
        blocks = count * (self._moved("").forward + once) + (len(distinct) * read.forward if queries else 0.0)
        return Flops(forward, backward, blocks if recompute else 0.0)

    @cached_property
    def _smallest(self) -> int:
        """Elements of an adapter of rank 1."""
        return lora.adapter_size(self.module, lora_targets(self.module), KEPT_RANK)

    def train_gathers(self, mode: str) -> int:
        """The pass, and its gradient."""
        return 2

    # ---- bytes

    def cache_bytes(self, tokens: int, device: Device) -> int:
        return self.judging.cache_bytes(tokens, device)

    def draw_bytes(
        self, images: int, size_hw: tuple[int, int], sampling: Blip3oSampling, prompt_tokens: int, device: Device
    ) -> Mapping[str, int]:
        """The largest of reading the prompts, a step of the features and one of the decoder's UNet.

        The two halves of a guided step run at once. The UNet's attention is counted with its whole matrices, which
        fused attention does not hold.
        """
        reading = self._read(prompt_tokens + AROUND_PROMPT, False).alive
        step = (1 if sampling.text_scale == 1 else 2) * self._moved("").alive
        painting = (2 if sampling.decoder_scale > 1 else 1) * self._painted[0].alive
        held = images * max(reading, step, painting)
        return {"KV cache": 0, "activations": held * device.element}

    def decode_bytes(self, images: int, size_hw: tuple[int, int], device: Device) -> int:
        """The autoencoder's, which takes one image at a time, and all images' pixels in float32."""
        height, width = self.decoder.size
        return self._painted[1].alive * device.element + images * 3 * height * width * FLOAT32

    def judge_bytes(
        self, images: int, size_hw: tuple[int, int], text_tokens: int, written: int, device: Device
    ) -> Mapping[str, int]:
        return self.judging.judge_bytes(images, size_hw, text_tokens, written, device)

    def train_bytes(
        self,
        images: int,
        views: int,
        size_hw: tuple[int, int],
        prompt_tokens: int,
        mode: str,
        recompute: bool,
        device: Device,
    ) -> int:
        """What autograd keeps of all blocks, or of one and the inputs of all, and as much again for a block's gradient.

        Every image is taken to have a prompt of its own.
        """
        vlm, sizes = self.judging.vlm, self.config.denoiser
        length = prompt_tokens + AROUND_PROMPT
        parts = [(self._moved(mode).kept, sizes.n_layers, self.tokens(size_hw) * sizes.dim, images * views)]
        if mode == "generation":
            read = self._read(length, True).kept
            parts.append((read, vlm.layers, (length + self.config.n_query) * self.config.width, images))
        held = 0.0
        for kept, layers, entry, count in parts:
            block = kept / layers
            held += count * ((block + layers * entry if recompute else kept) + block)
        return round(held) * device.element


def costs_of_folder(folder: Path | None) -> Blip3oCosts:
    """Costs of a BLIP3-o folder, from its configuration and tokenizer; without one of the released 8B.

    UserError as ``read_config`` and ``read_decoder``.
    """
    if folder is None:
        config = released_config()
        assumed = "the released BLIP3-o 8B (its decoder assumed to be of SDXL's sizes)"
        return _costs(config, assumed_decoder(config.denoiser.in_channels), assumed, {}, None)
    config = read_config(folder)
    chat = Chat(open_tokenizer(folder), config.vlm.image_token_id)
    decoder = read_decoder(config.decoder_folder, config.denoiser.in_channels)
    return _costs(config, decoder, str(folder), read_settings(folder), chat)


def _costs(
    config: Blip3oConfig, decoder: DecoderConfig, assumed: str, settings: Mapping[str, Any], chat: Chat | None
) -> Blip3oCosts:
    # Buffers too: the passes are run there.
    with torch.device("meta"):
        module, unet, vae = Blip3o(config), decoder.build_unet(), decoder.build_vae()
    module.vlm.tie_weights()
    for part in (module, unet, vae):
        part.eval().requires_grad_(False)
    judging = JudgingCosts(config.vlm, PictureReader(config.vlm.vision_config, settings), chat)
    return Blip3oCosts(module, SdxlDecoder(unet, vae, None, {}), assumed, judging)
