"""The protocol of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from srum_ds.models.flow import Sampling
from srum_ds.types import Prompt

Materialise = Callable[[torch.nn.Module, Iterable[tuple[str, Tensor]]], None]
"""Gives a module built on the meta device its memory, and the values of (name, tensor) pairs.

The pairs come one at a time and may hold names that the module lacks. This is how an engine takes
a model in shard by shard, without this package knowing of engines.
"""


@runtime_checkable
class Judge(Protocol):
    """The understanding half of a model, which is all the rewards ever see."""

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Log-probabilities [Q, A] (float32) of each answer's first token after each question.

        images: pictures [3, H, W] in [0, 1]; ``image_index[q]`` is the picture question q is
        about (default: question q is about picture q). One prefill; no sampling.
        """
        ...

    def answer(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        image_index: Sequence[int] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """Answers as text, one a question: greedy, or sampled at ``temperature``, each by its own seed."""
        ...

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean log-probability [Q] (float32) a token of each text under its picture: one teacher-forced pass.

        With ``questions``, each text is the answer to one; without, it follows the picture at once.
        """
        ...


@runtime_checkable
class UnifiedModel(Judge, Protocol):
    """A model that draws and looks."""

    module: torch.nn.Module

    def generate(
        self,
        prompts: Sequence[Prompt],
        noise_NTC: Tensor,
        grid: tuple[int, int],
        sampling: Sampling,
    ) -> tuple[Tensor, Tensor]:
        """Draws one picture a prompt from the given noise.

        Returns (targets [N, T, C] latent tokens, images [N, 3, H, W] in [0, 1]).
        """
        ...

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains."""
        ...

    def judge_unchanged_by(self, mode: str) -> bool:
        """Whether training in ``mode`` provably leaves the understanding path bit-identical."""
        ...

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> Any:
        """Puts a LoRA adapter on the modules that ``targets`` name, for mode ``lora``.

        It changes nothing until it is trained, and is the same on every rank. UserError for a target
        that names no module.
        """
        ...

    def judging(self) -> AbstractContextManager[None]:
        """A context in which the model judges as it did before training, where that takes a switch.

        Nothing in it communicates, so it may be entered inside ``engine.gathered()``.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes the checkpoint folder in the design's released layout."""
        ...
