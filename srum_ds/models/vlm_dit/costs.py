"""What Qwen-Image's work costs: parameters, FLOPs and bytes by its configuration alone, for ``ModelFamily.costs``.

FLOPs are those of torch's counter on the same passes (tests/unit/models/test_vlm_dit_costs.py holds both together). The
autoencoder is run on the meta device instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from srum_ds.models import lora
from srum_ds.models.costs import Device, Flops, ParameterCounts, measured_on_meta
from srum_ds.models.qwen_vl.chat import Chat, open_tokenizer
from srum_ds.models.qwen_vl.pictures import PictureReader, read_settings
from srum_ds.models.vlm_dit.config import read_folder
from srum_ds.models.vlm_dit.modes import lora_targets, trained
from srum_ds.models.vlm_dit.parts import build_autoencoder, build_encoder, build_transformer
from srum_ds.models.vlm_dit.pipelines import QWEN_IMAGE_UNREACHED
from srum_ds.models.vlm_dit.products import DROPPED, DitShape, VlmShape
from srum_ds.models.vlm_dit.released import released_parts
from srum_ds.models.vlm_dit.sampling import PipelineSampling

CHARACTERS_A_TOKEN = 4
"""Where no tokenizer is at hand: English text in Qwen2's vocabulary."""

BEHIND_PROMPT = 5
BEFORE_IMAGE, BEHIND_IMAGE = 15, 6
"""Tokens of the released templates: behind a prompt, before an image, and behind it beside the question."""

UNITS = ("transformer.transformer_blocks.0.", "text_encoder.model.language_model.layers.0.")
"""Beginnings of the names of one unit of each kind that ZeRO-3 gathers at once."""

HELD_BY_PASS = 15
KEPT_BY_BLOCK = {"generation": 25, "lora": 15}
GRADIENTS_OF_BLOCK = 10
"""Numbers of a token in multiples of the width: of a pass without gradient, what a block keeps for its gradient, and
what that takes. Measured on the library's transformer (test_vlm_dit_costs.py)."""

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""Of the released pipeline: what its text encoder reads."""


class QwenImageCosts:
    """``ModelCosts`` of Qwen-Image; see there. Without a tokenizer, texts are taken for pieces of four characters.

    module: ``transformer`` and ``text_encoder`` on the meta device, autoencoder: likewise.
    """

    def __init__(self, module: Any, autoencoder: Any, assumed: str, pictures: PictureReader, chat: Chat | None) -> None:
        self.module = module
        self.autoencoder = autoencoder
        self.assumed = assumed
        self.pictures = pictures
        self.chat = chat
        self.dit = DitShape(module.transformer.config)
        self.vlm = VlmShape(module.text_encoder.config)
        self._decoding = lru_cache(maxsize=64)(self._decoding_on_meta)

    # ---- parameters

    def parameters(self, mode: str, lora_rank: int = 0, targets: Sequence[str] = ()) -> ParameterCounts:
        """See ``ModelCosts``."""
        counts = self._counts
        total, judging = sum(counts.values()), self._of("text_encoder.")
        own = [counts[name] for name in trained(mode, counts, QWEN_IMAGE_UNREACHED)]
        size, largest = sum(own), max(own, default=0)
        if mode == "lora":
            names = lora_targets(self.module, targets, QWEN_IMAGE_UNREACHED)
            widest = max(max(self.module.get_submodule(name).weight.shape) for name in names)
            size, largest = lora.adapter_size(self.module, names, lora_rank), lora_rank * widest
            total += size
        return ParameterCounts(
            total=total,
            trained=size,
            largest_trained=largest,
            judging=judging,
            unit=max(
                self._of("transformer.transformer_blocks.0."), self._of("text_encoder.model.language_model.layers.0.")
            ),
            units=self.dit.layers + self.vlm.layers,
            frozen_outside=sum(parameter.numel() for parameter in self.autoencoder.parameters()),
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
        return int(self.dit.config.in_channels)

    @cached_property
    def _unit(self) -> int:
        return int(2 ** (len(self.autoencoder.config.temperal_downsample) + 1))

    def tokens(self, size_hw: tuple[int, int]) -> int:
        return (size_hw[0] // self._unit) * (size_hw[1] // self._unit)

    def text_tokens(self, text: str) -> int:
        if self.chat is None:
            return -(-len(text) // CHARACTERS_A_TOKEN)
        return len(self.chat.encode(text))

    def told(self, prompt: str) -> int:
        """Embeddings of a prompt that the transformer is given; the text encoder reads ``DROPPED`` more."""
        if self.chat is None:
            return self.text_tokens(prompt) + BEHIND_PROMPT
        return len(self.chat.encode(TEMPLATE.format(prompt))) - DROPPED

    def patches(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Patches (rows, columns) that the vision tower reads of an image of this size."""
        processor = self.pictures.processor
        factor = processor.patch_size * processor.merge_size
        size = processor.size
        height, width = smart_resize(*size_hw, factor, size["shortest_edge"], size["longest_edge"])
        return height // processor.patch_size, width // processor.patch_size

    def _asked(self, question: str) -> tuple[int, int]:
        """Tokens before an image's placeholders and behind them."""
        if self.chat is None:
            return BEFORE_IMAGE, BEHIND_IMAGE + self.text_tokens(question)
        opening = self.chat.opening(question)
        return len(opening.before), len(opening.after)

    def _placeholders(self, size_hw: tuple[int, int]) -> int:
        rows, columns = self.patches(size_hw)
        return rows * columns // self.pictures.merge**2

    # ---- drawing

    def draw_flops(
        self, prompt: str, images: int, size_hw: tuple[int, int], sampling: PipelineSampling, adapter: int = 0
    ) -> float:
        """Every image has its prompt read; a guided step adds a pass with the empty prompt's embeddings."""
        tokens = self.tokens(size_hw)
        texts = [self.told(prompt), *([self.told(" ")] if sampling.guided else [])]
        drawn = sum(sampling.steps * (self.dit.velocity(tokens, text) + 2.0 * adapter * tokens) for text in texts)
        return images * (drawn + sum(self._reading(text) for text in texts) + self._decoding(size_hw)[0])

    def _reading(self, told: int) -> float:
        """One text through the text encoder, and the logits of its last token, which nobody asked for."""
        read = told + DROPPED
        return self.vlm.read(read, read) + self.vlm.head

    def draw_passes(self, sampling: PipelineSampling) -> int:
        """Each step, with and without the prompt, and the readings of both."""
        return (sampling.steps + 1) * (2 if sampling.guided else 1)

    def _decoding_on_meta(self, size_hw: tuple[int, int]) -> tuple[float, int]:
        """FLOPs and peak numbers alive of one image's decoding."""
        down = self._unit // 2
        channels = self.autoencoder.config.z_dim
        latent = torch.empty(1, channels, 1, size_hw[0] // down, size_hw[1] // down, device="meta")
        flops, held = measured_on_meta(lambda: self.autoencoder.decode(latent))
        return flops, held // 4

    # ---- judging

    def answer_flops(self, size_hw: tuple[int, int], questions: Sequence[str]) -> float:
        return self._judged(size_hw, [self._asked(question) for question in questions], [1] * len(questions))

    def text_flops(self, size_hw: tuple[int, int], questions: Sequence[str], texts: Sequence[str]) -> float:
        written = [self.text_tokens(text) for text in texts]
        asked = [self._asked(question) for question in questions]
        longer = [(before, behind + length) for (before, behind), length in zip(asked, written, strict=True)]
        return self._judged(size_hw, longer, [length + 1 for length in written])

    def _judged(self, size_hw: tuple[int, int], asked: Sequence[tuple[int, int]], counts: Sequence[int]) -> float:
        """One image and what follows it, padded to the longest; of text n ``counts[n]`` tokens have their logits."""
        if not asked:
            return 0.0
        seen = asked[0][0] + self._placeholders(size_hw)
        longest = max(behind for _, behind in asked)
        read = self.vlm.read(seen, seen) + len(asked) * self.vlm.read(longest, seen + longest)
        return self.vlm.tower(*self.patches(size_hw)) + read + sum(counts) * self.vlm.head

    def write_flops(self, size_hw: tuple[int, int], question: str, new_tokens: int) -> float:
        before, behind = self._asked(question)
        steps = max(0, new_tokens - 1)
        columns = before + self._placeholders(size_hw) + behind + (steps + 1) / 2
        first = self._judged(size_hw, [(before, behind)], [1])
        return first + steps * (self.vlm.read(1, columns) + self.vlm.head)

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
        """Each view has its prompt read, padded to the longest; the text encoder has no gradient."""
        tokens, count = self.tokens(size_hw), len(prompts) * views
        text = max((self.told(prompt) for prompt in prompts), default=0)
        forward = count * (self._reading(text) + self.dit.velocity(tokens, text))
        backward = count * self.dit.backward(tokens, text, mode != "lora")
        # An adapter's layers are of the image's stream and of the text's; both see about as many tokens as are here.
        adapters = 2.0 * count * adapter * (tokens + text) / 2
        again = count * self.dit.blocks(tokens, text) + adapters
        return Flops(forward + adapters, backward + 2 * adapters, again if recompute else 0.0)

    def train_gathers(self, mode: str) -> int:
        """The pass, and its gradient."""
        return 2

    # ---- bytes

    def cache_bytes(self, tokens: int, device: Device) -> int:
        return 2 * self.vlm.layers * self.vlm.keys * tokens * device.element

    def draw_bytes(
        self, images: int, size_hw: tuple[int, int], sampling: PipelineSampling, prompt_tokens: int, device: Device
    ) -> Mapping[str, int]:
        """One block's arrays of a step; with and without the prompt are two passes, one after the other."""
        rows = images * (self.tokens(size_hw) + prompt_tokens + BEHIND_PROMPT)
        return {"KV cache": 0, "activations": HELD_BY_PASS * rows * self.dit.width * device.element}

    def decode_bytes(self, images: int, size_hw: tuple[int, int], device: Device) -> int:
        return images * self._decoding(size_hw)[1] * device.element

    def judge_bytes(
        self, images: int, size_hw: tuple[int, int], text_tokens: int, written: int, device: Device
    ) -> Mapping[str, int]:
        text, vision = self.vlm.config.text_config, self.vlm.config.vision_config
        patch_rows, patch_columns = self.patches(size_hw)
        tower = images * patch_rows * patch_columns * (4 * vision.hidden_size + 2 * vision.intermediate_size)
        rows = images * (BEFORE_IMAGE + self._placeholders(size_hw) + text_tokens)
        layer = rows * (4 * text.hidden_size + 2 * text.intermediate_size)
        cache = self.cache_bytes(rows + images * written, device)
        held = max(tower, layer) * device.element + images * text.vocab_size * 8
        return {"KV cache": cache, "activations": held}

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
        """What autograd keeps of each block, or its input alone, and the gradients of one block's arrays."""
        rows = images * views * (self.tokens(size_hw) + prompt_tokens + BEHIND_PROMPT)
        width, layers = self.dit.width, self.dit.layers
        layer = KEPT_BY_BLOCK[mode] * rows * width
        kept = rows * width * layers + layer if recompute else layers * layer
        return (kept + GRADIENTS_OF_BLOCK * rows * width) * device.element


def costs_of_folder(folder: Path | None) -> QwenImageCosts | None:
    """Costs of a Qwen-Image folder, from its configuration and tokenizer; without one of the released Qwen-Image.

    None for the folder of another pipeline, of which nobody has worked them out. UserError as ``read_folder``.
    """
    with torch.device("meta"):
        if folder is None:
            transformer, encoder, autoencoder = released_parts()
            return _costs(transformer, encoder, autoencoder, "the released Qwen-Image", {}, None)
        found = read_folder(folder)
        if found.name != "QwenImagePipeline":
            return None
        transformer, encoder, autoencoder = build_transformer(found), build_encoder(found), build_autoencoder(found)
    settings = read_settings(found.text_folder, found.path("text_encoder"), found.folder)
    chat = Chat(open_tokenizer(found.text_folder), encoder.config.image_token_id)
    return _costs(transformer, encoder, autoencoder, str(folder), settings, chat)


def _costs(
    transformer: Any, encoder: Any, autoencoder: Any, assumed: str, settings: Mapping[str, Any], chat: Chat | None
) -> QwenImageCosts:
    module = nn.ModuleDict({"transformer": transformer, "text_encoder": encoder})
    encoder.tie_weights()
    pictures = PictureReader(encoder.config.vision_config, settings)
    return QwenImageCosts(module, autoencoder.eval(), assumed, pictures, chat)
