"""What Janus's work costs: parameters, FLOPs and bytes as functions of its configuration, for ``ModelFamily.costs``.

FLOPs are those of torch's counter on the same passes (tests/unit/models/test_janus_costs.py holds both together),
without padding; ``products`` has those of single layers. The VQ is run on the meta device instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import torch
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig
from transformers.models.janus.modeling_janus import JanusVQVAE
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from srum_ds.models import lora
from srum_ds.models.costs import Device, Flops, ParameterCounts, measured_on_meta
from srum_ds.models.janus.config import JanusSettings, read_config
from srum_ds.models.janus.generator import DECODED_TOGETHER
from srum_ds.models.janus.model import Janus
from srum_ds.models.janus.modes import lora_targets, trained
from srum_ds.models.janus.products import Shape
from srum_ds.models.janus.sampling import CodeSampling
from srum_ds.models.janus.texts import Ids, JanusTexts
from srum_ds.models.janus.trees import build_trees
from srum_ds.models.janus.weights import build

CHARACTERS_A_TOKEN = 4
"""Where no tokenizer is at hand: English text in the release's vocabulary."""

RELEASED = JanusSettings(
    JanusConfig(
        text_config=LlamaConfig(
            vocab_size=102400,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=30,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=16384,
        ),
        vision_config=JanusVisionConfig(projection_dim=4096),
        vq_config=JanusVQVAEConfig(projection_dim=4096, image_token_embed_dim=4096),
        tie_word_embeddings=False,
    )
)
"""Janus-Pro-7B: DeepSeek-LLM-7B, and what the library has by default for Janus-Pro-1B, at its width."""


class _Texts(Protocol):
    """What of ``JanusTexts`` a plan counts."""

    def prompt(self, text: str, /) -> Ids: ...

    def opening(self, question: str | None, /) -> Ids: ...

    def answer(self, question: str | None, text: str, /) -> Ids: ...


class PiecedTexts:
    """Texts as pieces of four characters, where there is no tokenizer."""

    def __init__(self, tokens: int) -> None:
        """tokens: of a picture."""
        self.tokens = tokens

    def prompt(self, text: str) -> Ids:
        return (-1, *_pieces(f"<|User|>: {text}\n\n<|Assistant|>:"), -2)

    def opening(self, question: str | None) -> Ids:
        before, behind = _pieces(f"{DEFAULT_SYSTEM_PROMPT}<|User|>: "), _pieces(f"\n{question or ''}\n\n<|Assistant|>:")
        return (-1, *before, *[-3] * (self.tokens + 2), *behind)

    def answer(self, question: str | None, text: str) -> Ids:
        return _pieces(f" {text}")


def _pieces(text: str) -> Ids:
    starts = range(0, len(text), CHARACTERS_A_TOKEN)
    return tuple(crc32(text[start : start + CHARACTERS_A_TOKEN].encode()) for start in starts)


class JanusCosts:
    """``ModelCosts`` of Janus; see there. Without a tokenizer, texts are taken for pieces of four characters."""

    def __init__(self, settings: JanusSettings, assumed: str, texts: JanusTexts | None = None) -> None:
        self.settings = settings
        self.assumed = assumed
        self.shape = Shape(settings)
        self.texts: _Texts = texts or PiecedTexts(settings.tokens)

    # ---- parameters

    def parameters(self, mode: str, lora_rank: int = 0, lora_targets: Sequence[str] = ()) -> ParameterCounts:
        """See ``ModelCosts``."""
        counts = {name: parameter.numel() for name, parameter in self._module.named_parameters()}
        own = {name: counts[name] for name in trained(mode, counts)}
        total, size, largest = sum(counts.values()), sum(own.values()), max(own.values(), default=0)
        judging = total
        if mode == "lora":
            size, largest = self._adapter(lora_rank, tuple(lora_targets))
            total += size
        return ParameterCounts(
            total=total,
            trained=size,
            largest_trained=largest,
            judging=judging,
            unit=sum(count for name, count in counts.items() if name.startswith("model.language_model.layers.0.")),
            units=self.shape.layers,
            frozen_outside=sum(parameter.numel() for parameter in self._vq.parameters()),
        )

    @cached_property
    def _built(self) -> tuple[Janus, JanusVQVAE]:
        module, vq, _ = build(Path(self.assumed), self.settings)
        return module, vq.eval()

    @property
    def _module(self) -> Janus:
        return self._built[0]

    @property
    def _vq(self) -> JanusVQVAE:
        return self._built[1]

    def _adapter(self, rank: int, targets: tuple[str, ...]) -> tuple[int, int]:
        names = lora_targets(self._module, targets)
        layers: list[Any] = [self._module.get_submodule(name) for name in names]
        widest = max(max(layer.weight.shape) for layer in layers)
        return lora.adapter_size(self._module, names, rank), rank * int(widest)

    def judge_unchanged_by(self, mode: str) -> bool:
        return mode in ("generation", "lora")

    # ---- sizes

    @property
    def token_numbers(self) -> int:
        return 1

    def tokens(self, size_hw: tuple[int, int]) -> int:
        """Codes of a picture; UserError for a size that the model does not draw."""
        rows, columns = self.settings.grid(*size_hw)
        return rows * columns

    def text_tokens(self, text: str) -> int:
        return len(self.texts.answer(None, text))

    # ---- drawing

    def draw_flops(
        self, prompt: str, images: int, size_hw: tuple[int, int], sampling: CodeSampling, adapter: int = 0
    ) -> float:
        """The prompt is read once for its images, and so is the empty one of a guided sampler."""
        shape, tokens = self.shape, self.tokens(size_hw)
        branches = 2 if sampling.guided else 1
        length = len(self.texts.prompt(prompt))
        reading = branches * (shape.blocks(length, length) + 2.0 * adapter * length)
        steps = tokens - 1
        # The first of them sees its prompt and itself.
        written = shape.blocks(steps, length + (steps + 1) / 2) + 2.0 * adapter * steps
        written += tokens * sum(shape.code_head)
        return reading + images * (branches * written + steps * shape.code_input + self._decoding[0])

    def draw_passes(self, sampling: CodeSampling) -> int:
        """The reading of the prompts, and a pass for each code but the last; both branches run as one batch."""
        return self.settings.tokens

    @cached_property
    def _decoding(self) -> tuple[float, int]:
        """FLOPs and peak numbers alive of one picture's decoding."""
        codes = torch.zeros(1, self.settings.tokens, dtype=torch.int64, device="meta")
        # Made before it is measured; the library's types ask for a kind of tensor that no call makes.
        vq: Any = self._vq
        flops, held = measured_on_meta(lambda: vq.decode(codes))
        return flops, held // 4

    # ---- judging

    def answer_flops(self, size_hw: tuple[int, int], questions: Sequence[str]) -> float:
        return self._tree_flops([self.texts.opening(question) for question in questions], len(questions))

    def text_flops(self, size_hw: tuple[int, int], questions: Sequence[str], texts: Sequence[str]) -> float:
        asked = [question or None for question in questions]
        answers = [self.texts.answer(question, text) for question, text in zip(asked, texts, strict=True)]
        # Of the last token, eos, nothing is asked.
        whole = [(*self.texts.opening(question), *answer) for question, answer in zip(asked, answers, strict=True)]
        return self._tree_flops(whole, sum(len(answer) + 1 for answer in answers))

    def _tree_flops(self, texts: Sequence[Ids], rows: int) -> float:
        """One picture and its texts as one sequence, and the logits of ``rows`` tokens."""
        if not texts:
            return 0.0
        tokens = build_trees(texts, [0] * len(texts)).ids_PS.shape[1]
        return self.shape.tower() + self.shape.blocks(tokens, tokens) + self.shape.text_head(rows)

    def write_flops(self, size_hw: tuple[int, int], question: str, new_tokens: int) -> float:
        shape, length = self.shape, len(self.texts.opening(question))
        steps = max(0, new_tokens - 1)
        flops = shape.tower() + shape.blocks(length, length) + shape.text_head(1 + steps)
        return flops + shape.blocks(steps, length + (steps + 1) / 2)

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
        """One row a picture: views differ in prompt dropout alone, and the few without their prompt are not counted.

        Rows are padded to the longest. A trained product costs twice itself in backward, a frozen one that a gradient
        passes once, attention twice. Recomputed are the logits always, and the layers where ``recompute``.
        """
        shape, tokens, rows = self.shape, self.tokens(size_hw), len(prompts)
        length = max((len(self.texts.prompt(prompt)) for prompt in prompts), default=0) + tokens - 1
        first, second = shape.code_head
        ends = tokens * (first + second)
        inputs = (tokens - 1) * shape.code_input
        layers = shape.blocks(length, length)
        attention = shape.layers * shape.attention(length, length)
        products = layers - attention
        backward = 2 * attention + (2 if mode == "transformer" else 1) * products
        if mode == "lora":
            # Nothing below the first layer learns, and nothing of the ends.
            backward += ends - 2.0 * shape.input_products * length
        else:
            backward += 2 * ends + 2 * inputs
        # The last product of a layer is not run again, but for what an adapter adds to it.
        spared = 0.0 if adapter else shape.layers * 2.0 * shape.width * shape.inner * length
        again = tokens * second + (layers - spared if recompute else 0.0)
        adapters = 2.0 * adapter * length
        return Flops(
            rows * (layers + ends + inputs + adapters),
            rows * (backward + 2 * adapters),
            rows * (again + (adapters if recompute else 0.0)),
        )

    def train_gathers(self, mode: str) -> int:
        """The pass, and its gradient."""
        return 2

    # ---- bytes

    def cache_bytes(self, tokens: int, device: Device) -> int:
        return 2 * self.shape.layers * self.shape.keys * tokens * device.element

    def draw_bytes(
        self, images: int, size_hw: tuple[int, int], sampling: CodeSampling, prompt_tokens: int, device: Device
    ) -> Mapping[str, int]:
        """Every branch's cache, written in place, and the prompts' as they were read; one layer's arrays; the logits.

        A code is chosen in double precision: the logits, their share and its sums, beside those of both branches.
        """
        rows = (2 if sampling.guided else 1) * images
        length = prompt_tokens + self._around
        cache = self.cache_bytes(rows * (2 * length + self.tokens(size_hw) - 1), device)
        logits = rows * self.settings.codes * (device.element + 4) + 3 * images * self.settings.codes * 8
        return {"KV cache": cache, "activations": max(self._pass_bytes(rows * length, device), logits)}

    @property
    def _around(self) -> int:
        """Tokens of a prompt that are not its text's."""
        return len(self.texts.prompt("a")) - 1

    def decode_bytes(self, images: int, size_hw: tuple[int, int], device: Device) -> int:
        return min(images, 1 if device.cpu else DECODED_TOGETHER) * self._decoding[1] * device.element

    def judge_bytes(
        self, images: int, size_hw: tuple[int, int], text_tokens: int, written: int, device: Device
    ) -> Mapping[str, int]:
        """Keys and values stay where something is written alone: as they were read, and with room for the reply."""
        vision = self.settings.library.vision_config
        length = len(self.texts.opening("a")) + text_tokens
        inner = int(vision.hidden_size * vision.mlp_ratio)
        tower = images * self.settings.tokens * (4 * vision.hidden_size + 2 * inner) * device.element
        mask = images * length**2 * device.element
        logits = images * self.shape.vocabulary * 8
        cache = self.cache_bytes(images * (2 * length + written), device) if written else 0
        held = max(tower, self._pass_bytes(images * length, device) + mask) + logits
        return {"KV cache": cache, "activations": held}

    def _pass_bytes(self, tokens: int, device: Device) -> int:
        """A pass without gradient: the stream, and the larger of what a layer's MLP and its attention hold."""
        shape = self.shape
        mlp = 2 * shape.width + 3 * shape.inner
        attention = 2 * shape.width + 4 * shape.queries + 4 * shape.keys
        return int(tokens * max(mlp, attention) * device.element)

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

        At most two rows a picture: with its prompt and without. Of a token a layer keeps its input, both normed streams
        in the compute dtype and in float32, q and k before and after they are turned, v, attention's output, and four
        arrays of the MLP.
        """
        shape, tokens = self.shape, self.tokens(size_hw)
        count = images * min(views, 2) * (prompt_tokens + self._around + tokens - 1)
        wide = 2 * shape.width * 4 / device.element if device.element < 4 else 0.0
        layer = count * (5 * shape.width + wide + 4 * shape.queries + 4 * shape.keys + 4 * shape.inner)
        gradients = count * (2 * shape.width + 3 * shape.inner)
        kept = count * shape.width * shape.layers + layer if recompute else shape.layers * layer
        return int((kept + gradients) * device.element)


def costs_of_folder(folder: Path | None) -> JanusCosts:
    """Costs of a checkpoint folder, from its configuration and tokenizer; without one of the released Janus-Pro-7B.

    UserError as ``read_config`` and ``JanusTexts``.
    """
    if folder is None:
        return JanusCosts(RELEASED, "the released Janus-Pro-7B")
    settings = read_config(folder)
    return JanusCosts(settings, str(folder), JanusTexts(folder, settings))
