"""What BAGEL's work costs: parameters, FLOPs and bytes as functions of its configuration, for ``ModelFamily.costs``.

FLOPs are those of torch's counter on the same passes (tests/unit/models/test_bagel_costs.py holds both together),
without padding; ``products`` has those of single layers. The autoencoder is run on the meta device instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from zlib import crc32

import torch

from srum_ds.models import lora
from srum_ds.models.bagel import modes
from srum_ds.models.bagel.config import BagelConfig, SpecialTokens, read_config
from srum_ds.models.bagel.drop_generation import drop_generation
from srum_ds.models.bagel.images import target_size
from srum_ds.models.bagel.latents import Autoencoder, images_at_once
from srum_ds.models.bagel.model import Bagel
from srum_ds.models.bagel.modes import lora_targets
from srum_ds.models.bagel.products import Shape
from srum_ds.models.bagel.sampling import guided_at, time_points
from srum_ds.models.bagel.text_trees import Ids, build_text_trees
from srum_ds.models.bagel.tokenizer import BagelTokenizer
from srum_ds.models.costs import Device, Flops, ParameterCounts, measured_on_meta
from srum_ds.models.flow import FlowSampling

CHARACTERS_A_TOKEN = 4
"""Where no tokenizer is at hand: English text in Qwen2's vocabulary."""


class BagelCosts:
    """``ModelCosts`` of BAGEL; see there. Without a tokenizer, texts are taken for pieces of four characters."""

    def __init__(self, config: BagelConfig, assumed: str, tokenizer: BagelTokenizer | None = None) -> None:
        self.config = config
        self.assumed = assumed
        self.tokenizer = tokenizer
        self.shape = Shape(config)
        self.special = SpecialTokens() if tokenizer is None else tokenizer.special
        self._decoding = lru_cache(maxsize=64)(self._decoding_on_meta)

    # ---- parameters

    def parameters(self, mode: str, lora_rank: int = 0, lora_targets: Sequence[str] = ()) -> ParameterCounts:
        """See ``ModelCosts``."""
        counts = self._counts
        trained = {name: counts[name] for name in modes.trained(mode, counts)}
        total, size, largest = sum(counts.values()), sum(trained.values()), max(trained.values(), default=0)
        if mode == "lora":
            size, largest = self._adapter(lora_rank, tuple(lora_targets))
            total += size
        return ParameterCounts(
            total=total,
            trained=size,
            largest_trained=largest,
            judging=self._judging,
            unit=sum(count for name, count in counts.items() if name.startswith("language_model.model.layers.0.")),
            units=self.shape.layers,
            frozen_outside=self._autoencoder,
        )

    @cached_property
    def _module(self) -> Bagel:
        with torch.device("meta"):
            return Bagel(self.config, SpecialTokens())

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {name: parameter.numel() for name, parameter in self._module.named_parameters()}

    @cached_property
    def _judging(self) -> int:
        with torch.device("meta"):
            module = Bagel(self.config, SpecialTokens())
        drop_generation(module)
        return sum(parameter.numel() for parameter in module.parameters())

    @cached_property
    def _autoencoder(self) -> int:
        return sum(parameter.numel() for parameter in self._meta_autoencoder.parameters())

    def _adapter(self, rank: int, targets: tuple[str, ...]) -> tuple[int, int]:
        names = lora_targets(self._module, targets)
        layers = [self._module.get_submodule(name) for name in names]
        widest = max(max(int(w) for w in layer.weight.shape) for layer in layers)  # type: ignore[union-attr]
        return lora.adapter_size(self._module, names, rank), rank * widest

    def judge_unchanged_by(self, mode: str) -> bool:
        return mode in ("generation", "lora")

    # ---- sizes

    @property
    def token_numbers(self) -> int:
        return self.config.token_channels

    def tokens(self, size_hw: tuple[int, int]) -> int:
        unit = self.config.pixels_per_token
        return (size_hw[0] // unit) * (size_hw[1] // unit)

    def text_tokens(self, text: str) -> int:
        return len(self._ids(text))

    def _ids(self, text: str) -> Ids:
        if self.tokenizer is not None:
            return tuple(self.tokenizer.encode(text))
        step = CHARACTERS_A_TOKEN
        return tuple(crc32(text[start : start + step].encode()) for start in range(0, len(text), step))

    def _segment(self, text: str) -> Ids:
        return (self.special.bos, *self._ids(text), self.special.eos)

    def patches(self, size_hw: tuple[int, int]) -> int:
        """What the vision tower reads of an image of this size."""
        width, height = target_size(size_hw[1], size_hw[0], self.config.vit_transform)
        patch = self.config.vit.patch_size
        return (height // patch) * (width // patch)

    # ---- drawing

    def passes(self, sampling: FlowSampling) -> tuple[int, int]:
        """Sampler steps (guided, plain)."""
        times = time_points(sampling)[:-1].tolist()
        guided = sum(guided_at(time, sampling) for time in times)
        return guided, len(times) - guided

    def draw_flops(
        self, prompt: str, images: int, size_hw: tuple[int, int], sampling: FlowSampling, adapter: int = 0
    ) -> float:
        """The prompt is read once for its images; a guided step adds a pass that sees no prompt."""
        shape, tokens = self.shape, self.tokens(size_hw)
        context = len(self._segment(prompt))
        guided, plain = self.passes(sampling)
        drawn = (guided + plain) * shape.velocity(tokens, context) + guided * shape.velocity(tokens, 0)
        drawn += (2 * guided + plain) * 2.0 * adapter * tokens
        reading = shape.blocks_for(context, context, 0)
        # A step's time is embedded once for all of its images.
        times = (guided + plain) * sum(shape.time_ends)
        return reading + times + images * (drawn + self._decoding(size_hw)[0])

    def draw_passes(self, sampling: FlowSampling) -> int:
        """The reading of the prompts, and each step of the sampler, whose branches run as one batch."""
        return 1 + sum(self.passes(sampling))

    @cached_property
    def _meta_autoencoder(self) -> Autoencoder:
        with torch.device("meta"):
            return Autoencoder(self.config.vae).eval()

    def _decoding_on_meta(self, size_hw: tuple[int, int], copies: bool = False) -> tuple[float, int]:
        """FLOPs and peak numbers alive of one image's decoding; copies: with those of cuDNN's convolutions."""
        down = self.config.vae.downsample
        latent = torch.empty(1, self.config.vae.z_channels, size_hw[0] // down, size_hw[1] // down, device="meta")
        autoencoder = self._meta_autoencoder
        flops, held = measured_on_meta(lambda: autoencoder.decode(latent), copies)
        return flops, held // 4

    # ---- judging

    def answer_flops(self, size_hw: tuple[int, int], questions: Sequence[str]) -> float:
        texts = [(*self._segment(question), self.special.bos) for question in questions]
        return self._tree_flops(size_hw, texts, [1] * len(texts))

    def text_flops(self, size_hw: tuple[int, int], questions: Sequence[str], texts: Sequence[str]) -> float:
        wrapped = [self._segment(text) for text in texts]
        paths = [(*(self._segment(q) if q else ()), *t[:-1]) for q, t in zip(questions, wrapped, strict=True)]
        return self._tree_flops(size_hw, paths, [len(ids) - 1 for ids in wrapped])

    def _tree_flops(self, size_hw: tuple[int, int], texts: Sequence[Ids], counts: Sequence[int]) -> float:
        """One image and its texts as one sequence; of text n the last ``counts[n]`` tokens are asked for."""
        if not texts:
            return 0.0
        patches = self.patches(size_hw)
        trees = build_text_trees([patches], texts, [0] * len(texts), self.special)
        rows = {row for own, count in zip(trees.rows, counts, strict=True) for row in own[len(own) - count :]}
        tokens = len(trees.text) + patches
        shape = self.shape
        return shape.tower(patches) + shape.blocks_for(tokens, tokens, len(rows)) + shape.head(sum(counts))

    def write_flops(self, size_hw: tuple[int, int], question: str, new_tokens: int) -> float:
        shape, patches = self.shape, self.patches(size_hw)
        image, asked = patches + 2, len(self._segment(question)) + 1
        flops = shape.tower(patches) + shape.blocks_for(image, image, 0)
        flops += shape.blocks_for(asked, image + asked, 1) + shape.head(1)
        steps = max(0, new_tokens - 1)
        keys = image + asked + (steps + 1) / 2
        products = 2.0 * shape.layers * shape.layer_products + shape.head(1)
        return flops + steps * (products + shape.layers * shape.attention(1, keys))

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
        """Each distinct prompt is read in the pass of its images, padded to the longest, as ``Bagel.forward`` has them.

        A trained product costs twice itself in backward, a frozen one that a gradient passes once, attention twice.
        """
        shape, tokens = self.shape, self.tokens(size_hw)
        context = max((len(self._segment(prompt)) for prompt in prompts), default=0)
        images = len(prompts)
        reading = len(set(prompts)) * shape.blocks_for(context, context, 0)
        forward = reading + images * views * (shape.velocity(tokens, context) + sum(shape.time_ends))
        backward = images * views * self._velocity_backward(tokens, context, mode)
        # The last product of a block is not run again, but for what an adapter adds to it.
        spared = 0.0 if adapter else shape.layers * 2.0 * shape.width * shape.inner * tokens
        again = reading + images * views * (shape.picture_blocks(tokens, context) - spared)
        if mode == "transformer":
            backward += len(set(prompts)) * self._reading_backward(context)
        adapters = 2.0 * images * views * tokens * adapter
        forward, backward, again = forward + adapters, backward + 2 * adapters, again + adapters
        return Flops(forward, backward, again if recompute else 0.0)

    def _velocity_backward(self, tokens: int, context: int, mode: str) -> float:
        shape = self.shape
        before, after = shape.key_products + shape.query_products, shape.output_products
        trained = mode != "lora"
        generation = (1 + trained) * shape.layers * shape.layer_products
        # Nothing below the first layer learns in mode lora.
        generation -= 0 if trained else before
        # The image's start and end: what the last layer makes of them is not read.
        above = shape.layers - 1
        if mode == "transformer":
            wrapping = 2 * (above * (before + after) + shape.key_products)
        else:
            # Their embeddings do not learn, so that nothing goes back into the first layer's queries and keys.
            wrapping = above * after + (above - 1) * before + shape.key_products
        keys = tokens + 2 + context
        flops = 2.0 * (generation * tokens + wrapping * 2)
        flops += 2 * (above * shape.attention(tokens + 2, keys) + shape.attention(tokens, keys))
        first, second = shape.time_ends
        ends = shape.latent_ends(tokens)
        return flops + (3 * ends + first + 2 * second if trained else ends)

    def _reading_backward(self, context: int) -> float:
        """The prompt's reading: of the last layer keys and values alone are used."""
        shape = self.shape
        products = (shape.layers - 1) * shape.layer_products + shape.key_products
        return 4.0 * products * context + 2 * (shape.layers - 1) * shape.attention(context, context)

    def train_gathers(self, mode: str) -> int:
        """Prompts and images in one pass, and its gradient."""
        return 2

    # ---- bytes

    def cache_bytes(self, tokens: int, device: Device) -> int:
        return 2 * self.shape.layers * self.shape.keys * tokens * device.element

    def draw_bytes(
        self, images: int, size_hw: tuple[int, int], sampling: FlowSampling, prompt_tokens: int, device: Device
    ) -> Mapping[str, int]:
        """Every image's context, as it was read and as it is arranged, and one layer's arrays of a step.

        The embeddings of the positions are there twice, for guided steps and for others.
        """
        branches = 2 if self.passes(sampling)[0] else 1
        context = prompt_tokens + 2
        rows = self.tokens(size_hw) + 2
        held = self._pass_bytes(branches * images, rows, context, device)
        held += 2 * self.tokens(size_hw) * self.shape.width * device.element
        return {"KV cache": self.cache_bytes(2 * images * context, device), "activations": held}

    def decode_bytes(self, images: int, size_hw: tuple[int, int], device: Device) -> int:
        """Measured for one image at a time; more at once may take less, as cuDNN chooses other convolutions."""
        together = min(images, images_at_once(size_hw[0] * size_hw[1]))
        return together * self._decoding(size_hw, not device.cpu)[1] * device.element

    def judge_bytes(
        self, images: int, size_hw: tuple[int, int], text_tokens: int, written: int, device: Device
    ) -> Mapping[str, int]:
        patches = self.patches(size_hw)
        rows = patches + 2 + text_tokens
        vit = self.config.vit
        tower = images * patches * (4 * vit.hidden_size + 2 * vit.intermediate_size) * device.element
        logits = images * self.config.llm.vocab_size * 8
        cache = self.cache_bytes(images * (rows + written), device) if written else 0
        # A cache grows by a copy of one layer's.
        held = max(tower, self._pass_bytes(images, rows, 0, device) + self._mask_bytes(images, rows, device))
        held += logits + cache // self.shape.layers
        return {"KV cache": cache, "activations": held}

    def _pass_bytes(self, batch: int, rows: int, context: int, device: Device) -> int:
        """A pass without gradient: the stream, and the larger of what a layer's MLP and its attention hold.

        The stream is there as the first layer got it, as this one got it, with its attention's output, and normed.
        """
        shape = self.shape
        mlp = 4 * shape.width + 2 * shape.inner
        attention = 3 * shape.width + 4 * shape.queries + 4 * shape.keys * (rows + context) / rows
        held = batch * rows * max(mlp, attention) * device.element
        return int(held)

    def _mask_bytes(self, batch: int, rows: int, device: Device) -> int:
        """Passes that read attend under a dense mask: in float32 on a CPU, elsewhere once for each query of a key."""
        if device.cpu:
            return 2 * batch * rows**2 * 4
        return batch * rows**2 * device.element * self.shape.queries // self.shape.keys

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
        """What autograd keeps of each layer, or its input alone, and the gradients of one layer's arrays.

        Of a token a layer keeps its input and both normed streams, q four times and k three times (projected, normed
        and rotated, as attention takes and gives them), and four arrays of the MLP.
        """
        shape, context = self.shape, prompt_tokens + 2
        batch = images * views
        rows = batch * (self.tokens(size_hw) + 2)
        past = 2 * shape.keys * batch * context
        layer = rows * (4 * shape.width + 4 * shape.queries + 3 * shape.keys + 4 * shape.inner) + past
        gradients = rows * (2 * shape.width + 3 * shape.inner)
        kept = rows * shape.width * shape.layers + layer if recompute else shape.layers * layer
        held = (kept + gradients) * device.element
        if mode == "transformer":
            reading = images * context * (4 * shape.width + 4 * shape.queries + 3 * shape.keys + 4 * shape.inner)
            held += reading * (1 if recompute else shape.layers) * device.element
        return held


def costs_of_folder(folder: Path | None) -> BagelCosts:
    """Costs of a checkpoint folder, from its configuration and tokenizer; without one of the released BAGEL-7B-MoT.

    UserError as ``read_config`` and ``BagelTokenizer``.
    """
    if folder is None:
        return BagelCosts(BagelConfig(), "the released BAGEL-7B-MoT")
    config = read_config(folder)
    return BagelCosts(config, str(folder), BagelTokenizer(folder, config.llm.vocab_size))
