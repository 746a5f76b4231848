"""What a design's work costs, as numbers: parameters, FLOPs and bytes, known without any weights.

A family gives its ``ModelCosts`` by ``ModelFamily.costs``; ``srum-ds plan`` and the accounting of every run ask it and
know nothing of the design. FLOPs count a multiplication and an addition as two, and products, convolutions and
attention alone, as ``torch.utils.flop_counter`` does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class ParameterCounts:
    """Elements of a model's parameters in a training mode.

    total: all that an engine shards. trained: those that train; largest_trained: of its largest single one. judging:
    of a copy that only judges. unit: the largest unit that ZeRO-3 gathers at once, of which there are ``units``.
    frozen_outside: parameters that no engine shards (an autoencoder), whole on every rank.
    """

    total: int
    trained: int
    largest_trained: int
    judging: int
    unit: int
    units: int
    frozen_outside: int


@dataclass(frozen=True)
class Flops:
    """FLOPs of a pass and of its gradient; ``recomputed``: the part that checkpointed blocks run again."""

    forward: float
    backward: float = 0.0
    recomputed: float = 0.0

    @property
    def model(self) -> float:
        """What the method asks for: recomputing is left out, as MFU has it (PaLM, arXiv 2204.02311)."""
        return self.forward + self.backward

    @property
    def executed(self) -> float:
        """What a device runs."""
        return self.forward + self.backward + self.recomputed


@dataclass(frozen=True)
class Device:
    """What the memory of a pass depends on: bytes per number of its activations; whether a CPU runs it."""

    element: int
    cpu: bool = False


@runtime_checkable
class ModelCosts(Protocol):
    """What one design's work costs. Image sizes are (height, width) in pixels; FLOPs are of one rank's work."""

    @property
    def assumed(self) -> str:
        """Where the shapes come from, in words: a folder, or the released configuration."""
        ...

    def parameters(self, mode: str, lora_rank: int, lora_targets: Sequence[str]) -> ParameterCounts:
        """Counts in a mode of ``model.trains``; the lora arguments are for mode ``lora``. UserError for a bad mode."""
        ...

    @property
    def token_numbers(self) -> int:
        """Numbers of one token as it is trained: its channels, or 1 for a code."""
        ...

    def judge_unchanged_by(self, mode: str) -> bool:
        """As ``Trainable.judge_unchanged_by``: whether the live model can judge while ``mode`` trains."""
        ...

    def tokens(self, size_hw: tuple[int, int]) -> int:
        """Tokens of an image of this size."""
        ...

    def text_tokens(self, text: str) -> int:
        """Tokens of a text: exact where the folder has a tokenizer, else a quarter of its characters."""
        ...

    def draw_flops(self, prompt: str, images: int, size_hw: tuple[int, int], sampling: Any, adapter: int = 0) -> float:
        """Drawing ``images`` images of one prompt, up to their pixels; adapter: elements of a LoRA adapter."""
        ...

    def draw_passes(self, sampling: Any) -> int:
        """How often drawing a micro-batch runs every layer, its contexts included."""
        ...

    def answer_flops(self, size_hw: tuple[int, int], questions: Sequence[str]) -> float:
        """The answers' probabilities of all questions about one image, in one pass."""
        ...

    def text_flops(self, size_hw: tuple[int, int], questions: Sequence[str], texts: Sequence[str]) -> float:
        """The likelihood of texts under one image, each after its question ("" for none), in one pass."""
        ...

    def write_flops(self, size_hw: tuple[int, int], question: str, new_tokens: int) -> float:
        """A reply of ``new_tokens`` tokens to a question about an image."""
        ...

    def train_flops(
        self,
        prompts: Sequence[str],
        views: int,
        size_hw: tuple[int, int],
        mode: str,
        recompute: bool,
        adapter: int = 0,
    ) -> Flops:
        """A training pass over ``views`` views of one image of each prompt, with its gradient in ``mode``.

        recompute: whether blocks are checkpointed. adapter: elements of a LoRA adapter.
        """
        ...

    def train_gathers(self, mode: str) -> int:
        """How often a training pass with its gradient fetches each unit, where none stays between the uses."""
        ...

    def cache_bytes(self, tokens: int, device: Device) -> int:
        """Keys and values of so many tokens."""
        ...

    def draw_bytes(
        self, images: int, size_hw: tuple[int, int], sampling: Any, prompt_tokens: int, device: Device
    ) -> Mapping[str, int]:
        """Bytes by part while a micro-batch is drawn: ``KV cache`` and ``activations``."""
        ...

    def decode_bytes(self, images: int, size_hw: tuple[int, int], device: Device) -> int:
        """Bytes while tokens of ``images`` images become pixels at once, the weights apart."""
        ...

    def judge_bytes(
        self, images: int, size_hw: tuple[int, int], text_tokens: int, written: int, device: Device
    ) -> Mapping[str, int]:
        """Bytes by part while ``images`` images are asked about at once, each with ``text_tokens`` tokens of texts.

        written: tokens of each reply, 0 where none is written.
        """
        ...

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
        """Bytes of activations that a training pass over a micro-batch holds at most, its gradient's included."""
        ...


CONVOLUTIONS = (torch.ops.aten.convolution.default,)


class MetaBytes(TorchDispatchMode):
    """While it is entered, the most bytes that tensors made meanwhile would hold at once.

    copies: what cuDNN holds beside them counts too. Its convolutions copy their input and their output, channels last.
    """

    def __init__(self, copies: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies = copies
        self.alive = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # What comes from outside, such as weights, is not counted, nor are views of it.
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self._meet(value.untyped_storage(), made_here=False)
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._meet(value.untyped_storage(), made_here=True)
        beside = args[0].nbytes + result.nbytes if self.copies and func in CONVOLUTIONS else 0
        self.peak = max(self.peak, self.alive + beside)
        return result

    def _meet(self, storage: torch.UntypedStorage, made_here: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if made_here else 0

        def forget(_: Any) -> None:
            del self._known[key]
            self.alive -= size

        self._known[key] = weakref.ref(storage, forget)
        self.alive += size


@torch.no_grad()
def measured_on_meta(work: Callable[[], Any], copies: bool = False) -> tuple[float, int]:
    """(FLOPs, peak bytes) of work on tensors of the meta device: nothing is computed. copies: see ``MetaBytes``."""
    with MetaBytes(copies) as memory, FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()), memory.peak
