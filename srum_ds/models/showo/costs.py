"""What Show-o's work costs: parameters, FLOPs and bytes as functions of its configuration, for ``ModelFamily.costs``.

FLOPs are those of torch's counter on the same passes (tests/unit/models/test_showo_costs.py holds both together),
without padding between texts. The picture tokenizer is run on the meta device instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import PhiConfig

from srum_ds.models import lora
from srum_ds.models.costs import Device, Flops, ParameterCounts, measured_on_meta
from srum_ds.models.library import meta_module
from srum_ds.models.showo import modes
from srum_ds.models.showo.answerer import READ_TOGETHER
from srum_ds.models.showo.config import SPECIAL_TOKENS, MagvitConfig, ShowoConfig, ShowoFacts, read_config
from srum_ds.models.showo.layout import AROUND, answer_text, question_text
from srum_ds.models.showo.magvit import PIXELS_AT_ONCE, Magvit
from srum_ds.models.showo.model import Showo
from srum_ds.models.showo.products import Shape
from srum_ds.models.showo.sampling import MaskedSampling
from srum_ds.models.showo.tokenizer import ShowoTokenizer, Vocabulary

CHARACTERS_A_TOKEN = 4
"""Where no tokenizer is at hand: English text in the vocabulary of phi-1_5."""

HEAD_ROWS = 512
"""Rows whose logits exist at once in training (``linear_cross_entropy``)."""

_TASK = 3
"""Ids around a prompt: its task token, bos and eos."""


class ShowoCosts:
    """``ModelCosts`` of Show-o; see there. Without a tokenizer, texts are taken for pieces of four characters."""

    def __init__(self, config: ShowoConfig, assumed: str, tokenizer: ShowoTokenizer | None = None) -> None:
        self.config = config
        self.assumed = assumed
        self.tokenizer = tokenizer
        self.shape = Shape.of(config.phi, config.facts.codebook_size)
        self.picture = config.facts.num_vq_tokens
        self.prompt = config.facts.max_text_len + 1

    # ---- parameters

    def parameters(self, mode: str, lora_rank: int = 0, lora_targets: Sequence[str] = ()) -> ParameterCounts:
        """See ``ModelCosts``."""
        counts = {name: parameter.numel() for name, parameter in self._module.named_parameters()}
        trained = [counts[name] for name in modes.trained(mode, counts)]
        total, size, largest = sum(counts.values()), sum(trained), max(trained, default=0)
        if mode == "lora":
            names = modes.lora_targets(self._module, lora_targets)
            size = lora.adapter_size(self._module, names, lora_rank)
            layers = [self._module.get_submodule(name) for name in names]
            sides = [max(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
            largest = lora_rank * max(sides)
            total += size
        return ParameterCounts(
            total=total,
            trained=size,
            largest_trained=largest,
            judging=sum(counts.values()),
            unit=sum(count for name, count in counts.items() if name.startswith("showo.model.layers.0.")),
            units=self.shape.layers,
            frozen_outside=sum(parameter.numel() for parameter in self._magvit.parameters()),
        )

    @cached_property
    def _module(self) -> Showo:
        nothing = Vocabulary(*[0] * 10)
        return meta_module(lambda: Showo(self.config.phi, nothing, self.picture))

    @cached_property
    def _magvit(self) -> Magvit:
        with torch.device("meta"):
            return Magvit(self.config.magvit).eval()

    def judge_unchanged_by(self, mode: str) -> bool:
        return mode == "lora"

    # ---- sizes

    @property
    def token_numbers(self) -> int:
        return 1

    def tokens(self, size_hw: tuple[int, int]) -> int:
        """The picture's codes, whatever size is asked for: there is one."""
        return self.picture

    def text_tokens(self, text: str) -> int:
        if self.tokenizer is None:
            return -(-len(text) // CHARACTERS_A_TOKEN)
        return len(self.tokenizer.encode(text))

    def _question(self, question: str) -> int:
        return 1 + self.text_tokens(question_text(question))

    @property
    def _seen(self) -> int:
        """Ids of a picture that is looked at."""
        return self.picture + AROUND + 1

    # ---- drawing

    def draw_flops(
        self, prompt: str, images: int, size_hw: tuple[int, int], sampling: MaskedSampling, adapter: int = 0
    ) -> float:
        """The prompt, padded, is read once for its images, as is the empty one; a guided step runs both."""
        shape, rows = self.shape, self.picture + AROUND
        branches = 2 if sampling.guidance > 0 else 1
        reading = branches * (shape.blocks(self.prompt, self.prompt) + 2.0 * adapter * self.prompt)
        one = shape.blocks(rows, self.prompt + rows) + shape.head(self.picture, shape.codes) + 2.0 * adapter * rows
        return reading + images * (sampling.steps * branches * one + self._decoding[0])

    def draw_passes(self, sampling: MaskedSampling) -> int:
        """The reading of the prompts, and each step of the sampler, whose branches run as one batch."""
        return 1 + sampling.steps

    @cached_property
    def _decoding(self) -> tuple[float, int]:
        """FLOPs and peak bytes of one picture's decoding, in float32."""
        codes = torch.zeros(1, self.picture, dtype=torch.int64, device="meta")
        return measured_on_meta(lambda: self._magvit.decode(codes, (self.config.side, self.config.side)))

    @cached_property
    def _encoding(self) -> tuple[float, int]:
        pixels = torch.empty(1, 3, self.config.pixels, self.config.pixels, device="meta")
        return measured_on_meta(lambda: self._magvit.encode(pixels))

    @property
    def _pictures_at_once(self) -> int:
        return max(1, PIXELS_AT_ONCE // self.config.pixels**2)

    # ---- judging

    def answer_flops(self, size_hw: tuple[int, int], questions: Sequence[str]) -> float:
        lengths = [self._question(question) for question in questions]
        return self._looking_flops(lengths, len(lengths))

    def text_flops(self, size_hw: tuple[int, int], questions: Sequence[str], texts: Sequence[str]) -> float:
        asked = [self._question(question) if question else 1 for question in questions]
        pairs = list(zip(questions, texts, strict=True))
        own = [self.text_tokens(answer_text(text) if question else text) for question, text in pairs]
        lengths = [before + count for before, count in zip(asked, own, strict=True)]
        return self._looking_flops(lengths, sum(own) + len(own))

    def _looking_flops(self, lengths: Sequence[int], wanted: int) -> float:
        """One picture with texts behind it as one sequence, of which ``wanted`` ids are asked what follows them."""
        if not lengths:
            return 0.0
        rows = self._seen + sum(lengths)
        return self._encoding[0] + self.shape.blocks(rows, rows) + self.shape.head(wanted, self.shape.vocabulary)

    def write_flops(self, size_hw: tuple[int, int], question: str, new_tokens: int) -> float:
        shape, seen, asked = self.shape, self._seen, self._question(question)
        flops = self._encoding[0] + shape.blocks(seen, seen) + shape.blocks(asked, seen + asked)
        steps = max(0, new_tokens - 1)
        flops += (1 + steps) * shape.head(1, shape.vocabulary)
        return flops + steps * shape.blocks(1, seen + asked + (steps + 1) / 2)

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
        """Every view is a whole sequence, as long as the longest prompt needs.

        A trained product costs twice itself in backward, a frozen one that a gradient passes once, attention twice. The
        head's logits are computed once more in backward, and counted as recomputed.
        """
        shape, batch = self.shape, len(prompts) * views
        rows = max((self.text_tokens(prompt) for prompt in prompts), default=0) + _TASK + self.picture + AROUND
        head = shape.head(self.picture, shape.codes)
        blocks = shape.blocks(rows, rows)
        products = 2.0 * shape.layers * shape.layer_products * rows
        attention = shape.layers * shape.attention(rows, rows)
        if mode == "transformer":
            backward = 2 * products + 2 * attention + 2 * head
        else:
            # Below the first layer nothing learns: no gradient leaves what reads its input.
            backward = products - 2.0 * shape.before * rows + 2 * attention + head
        adapters = 2.0 * rows * adapter
        # The last product of a block is not run again, but for what an adapter adds to it.
        spared = 0.0 if adapter else shape.layers * 2.0 * shape.width * shape.inner * rows
        again = head + (blocks - spared + adapters if recompute else 0.0)
        return Flops(batch * (blocks + head + adapters), batch * (backward + 2 * adapters), batch * again)

    def train_gathers(self, mode: str) -> int:
        """One pass, and its gradient."""
        return 2

    # ---- bytes

    def cache_bytes(self, tokens: int, device: Device) -> int:
        return 2 * self.shape.layers * self.shape.keys * tokens * device.element

    def draw_bytes(
        self, images: int, size_hw: tuple[int, int], sampling: MaskedSampling, prompt_tokens: int, device: Device
    ) -> Mapping[str, int]:
        """Every branch's prompt, padded, and of a step one layer's arrays, or its logits."""
        branches = 2 if sampling.guidance > 0 else 1
        rows = self.picture + AROUND
        held = branches * images * self.shape.pass_numbers(rows, self.prompt + rows) * device.element
        # Logits as the head gives them and in float32, their two parts of guidance, and what they become.
        numbers = images * self.picture * self.shape.codes
        held = max(held, numbers * (branches * (device.element + 4) + 4 * branches))
        return {"KV cache": self.cache_bytes(branches * images * self.prompt, device), "activations": held}

    def decode_bytes(self, images: int, size_hw: tuple[int, int], device: Device) -> int:
        return min(images, self._pictures_at_once) * self._decoding[1] + images * 3 * 4 * self.config.pixels**2

    def judge_bytes(
        self, images: int, size_hw: tuple[int, int], text_tokens: int, written: int, device: Device
    ) -> Mapping[str, int]:
        batch = min(images, READ_TOGETHER)
        rows = self._seen + text_tokens
        encoding = min(images, self._pictures_at_once) * self._encoding[1]
        held = batch * (self.shape.pass_numbers(rows, rows) * device.element + rows**2 * (1 + device.element))
        logits = images * self.shape.vocabulary * (4 + 4 + device.element)
        # Questions see their pictures' keys and values, of which a pass makes its own copy, layer by layer.
        cache = self.cache_bytes(batch * (2 * rows + written), device) if written else 0
        return {"KV cache": cache, "activations": max(encoding, held) + logits}

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
        """What autograd keeps of each layer, or its input alone, and the gradients of one layer's arrays."""
        shape, batch = self.shape, images * views
        length = prompt_tokens + _TASK + self.picture + AROUND
        rows = batch * length
        kept = rows * shape.width * shape.layers + rows * shape.kept if recompute else rows * shape.layers * shape.kept
        gradients = rows * (2 * shape.width + 3 * shape.inner)
        mask = batch * length**2 * (1 + device.element)
        head = min(HEAD_ROWS, batch * self.picture) * shape.codes * (device.element + 8)
        if mode == "transformer":
            head += shape.codes * shape.width * (4 + device.element)
        return (kept + gradients) * device.element + mask + head


def costs_of_folder(folder: Path | None) -> ShowoCosts:
    """Costs of a checkpoint folder, from its configuration and tokenizer; without one of the released 512 x 512 model.

    UserError as ``read_config`` and ``ShowoTokenizer``.
    """
    if folder is None:
        # showlab/show-o-512x512 on phi-1_5, whose sizes are the library's defaults.
        text, codes = 50295, 2 ** MagvitConfig().z_channels
        facts = ShowoFacts(text + SPECIAL_TOKENS + codes + 1, text, "microsoft/phi-1_5", codes, num_vq_tokens=1024)
        phi = PhiConfig(vocab_size=facts.vocab_size, qk_layernorm=True)
        config = ShowoConfig(facts, phi, MagvitConfig(), Path(facts.llm_model_path))
        return ShowoCosts(config, "the released Show-o of 512 x 512 pixels")
    config = read_config(folder)
    return ShowoCosts(config, str(folder), ShowoTokenizer(config))
