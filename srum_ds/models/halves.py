"""A model put together from what judges and what draws: every design's adapter stands on this."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.library.export import export_adapted
from srum_ds.models.library.folder import FolderWeights, Streamed
from srum_ds.models.lora import Binding, inject, switched_off
from srum_ds.models.protocol import Forward, Generator, Judge, Matching, ViewSettings
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView


class TwoHalves:
    """A ``UnifiedModel`` but for what only its design knows. What its methods take and give, the protocol says.

    A design adds ``module``, ``judge_unchanged_by``, ``enable_checkpointing``, ``compile_blocks``, ``shard_units``, and
    the two that end in ``_names``.

    weights: of the folder that it was loaded from. answerer, generator: the halves, to which calls are passed on.
    """

    def __init__(self, weights: FolderWeights, answerer: Judge, generator: Generator) -> None:
        self.weights = weights
        self.answerer: Any = answerer
        self.generator: Any = generator
        self.lora: Binding | None = None

    # ---- what only a design knows

    @property
    def module(self) -> Any:
        """What an engine wraps."""
        raise NotImplementedError

    def trained_names(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains; UserError for a mode that the design does not have."""
        raise NotImplementedError

    def lora_names(self, targets: Sequence[str]) -> Sequence[str]:
        """Names of the linear layers that an adapter goes on, as ``match_targets``; no targets: the design's choice."""
        raise NotImplementedError

    def library_name(self, name: str) -> str:
        """What the library's own model calls a module or parameter, for peft's files."""
        return name

    # ---- judges

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """See ``protocol.Judge``."""
        found: Tensor = self.answerer.answer_logprobs(images, questions, answers, image_index)
        return found

    def answer(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        image_index: Sequence[int] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """See ``protocol.Judge``."""
        found: list[str] = self.answerer.answer(images, questions, max_new_tokens, image_index, temperature, seeds)
        return found

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """See ``protocol.Judge``."""
        found: Tensor = self.answerer.text_logprob(images, texts, questions, image_index)
        return found

    # ---- draws

    @property
    def token_spec(self) -> TokenSpec:
        """See ``protocol.Generator``."""
        spec: TokenSpec = self.generator.token_spec
        return spec

    @property
    def matching(self) -> Matching:
        """See ``protocol.Generator``."""
        matching: Matching = self.generator.matching
        return matching

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See ``protocol.Generator``."""
        found: tuple[int, int] = self.generator.grid(height, width)
        return found

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """See ``protocol.Generator``."""
        found: tuple[int, int] = self.generator.default_size(edit)
        return found

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """See ``protocol.Generator``."""
        self.generator.check_prompts(prompts)

    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: Any,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See ``protocol.Generator``, and the design's generator for what it promises."""
        drawn: tuple[Tensor, Tensor] = self.generator.generate(prompts, keys, grid, sampling, edits, plans)
        return drawn

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """See ``protocol.Generator``."""
        plans: list[str] = self.generator.plan(prompts, max_new_tokens, edits, temperature, seeds)
        return plans

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """See ``protocol.Generator``."""
        view: TrainView = self.generator.views(samples, settings, keys)
        return view

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """See ``protocol.Generator``."""
        prediction: Tensor = self.generator.predict(forward, prompts, view, grid)
        return prediction

    # ---- trains

    @property
    def folder(self) -> Path:
        """The checkpoint folder that it was loaded from."""
        return self.weights.folder

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        device: torch.device = self.module.device
        return device

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains; ValueError for ``lora`` before ``add_lora``."""
        if mode == "lora" and self.lora is None:
            raise ValueError("mode lora trains an adapter: call add_lora first")
        return self.trained_names(mode)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Inside, LoRA is off: the model judges as it did before training. No effect without LoRA."""
        with switched_off(self.module):
            yield

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> Binding:
        """Puts a LoRA adapter on the modules that ``targets`` name (none: the design's choice), for mode ``lora``.

        It changes nothing until it is trained. UserError for a target that names no module, ValueError where there is
        an adapter already.
        """
        if self.lora is not None:
            raise ValueError("this model has an adapter already")
        self.lora = inject(self.module, self.lora_names(targets), rank, alpha, seed)
        return self.lora

    def stored(self) -> Iterable[tuple[str, Tensor]]:
        """The folder's tensors as stored under the module's names, memory-mapped, one at a time."""
        return self.weights.stored()

    def export(self, folder: Path, names: Iterable[str], tensors: Streamed, dtype: torch.dtype | None = None) -> None:
        """Writes the folder this model came from with some tensors replaced, streamed one at a time.

        With LoRA, ``tensors`` are the adapter's: the folder holds the merged model, and the adapter alone, as peft's
        files for the library's own model, under ``lora/``.
        """
        if self.lora is None:
            self.weights.export(folder, names, tensors, dtype)
        else:
            export_adapted(self.weights, folder, self.lora, tensors, dtype, self.library_name)
