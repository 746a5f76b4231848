"""What a model must offer: it judges, it draws, and a part of it trains. Nothing here is of any family.

A family stands in a folder of its own under ``srum_ds/models`` (README.md there says how to add one), is registered
in ``srum_ds/config/choices.py`` or by the entry point ``srum_ds.models``, and is opened by ``models.load_model``. The
loop, the rewards and the evaluation know these protocols alone; ``srum-ds check-adapter`` tests a family against them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    # A design is known, and its folder recognised, without torch, which takes a second or two to import.
    import torch
    from torch import Tensor

    from srum_ds.common.seeds import Key, SampleKeys
    from srum_ds.models.costs import ModelCosts
    from srum_ds.models.lora import Binding
    from srum_ds.types import Prompt, Samples, TokenSpec, TrainView

Materialise = Callable[["torch.nn.Module", "Iterable[tuple[str, Tensor]]"], None]
"""Gives a module built on the meta device its memory, and the values of (name, tensor) pairs.

The pairs come one at a time and may hold names that the module lacks. This is how an engine takes
a model in shard by shard, without this package knowing of engines.
"""

Forward = Callable[..., Any]
"""The engine, or a gathered module: runs one pass of the module, tensors by position."""


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

        images: [3, H, W] in [0, 1]; ``image_index[q]`` is the image question q is
        about (default: question q is about image q). One prefill; no sampling.
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
        """Answers as text, one per question: greedy, or sampled at ``temperature``, each by its own seed."""
        ...

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean log-probability [Q] (float32) per token of each text under its image: one teacher-forced pass.

        With ``questions``, each text is the answer to one; without, it follows the image at once.
        """
        ...


@dataclass(frozen=True)
class ViewSettings:
    """How training views are made of a step's samples (``train.*`` of a recipe; a family reads what it needs).

    copies: views of each image. time_distribution (``logit_normal`` or ``uniform``) and time_shift: of the noise
    levels, for families that have them. prompt_dropout: share of views in [0, 1] that are trained without their prompt.
    """

    copies: int
    time_distribution: str
    time_shift: float
    prompt_dropout: float


@runtime_checkable
class Matching(Protocol):
    """What an objective needs of a family: how far a prediction is from what it should be, or from another one.

    Predictions are what ``Generator.predict`` gives, flattened to B = N * M views: velocities [B, T, C], or log p of
    the codes [B, T]. All results are float32; only the first argument receives a gradient.
    """

    @property
    def bound(self) -> float:
        """The energy at which a bad token is pushed away no further, where a recipe sets none; > 0."""
        ...

    @property
    def quadratic(self) -> bool:
        """Whether energies and divergences are squared errors and distances, so that mixtures have a closed form."""
        ...

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """How badly each token is matched [B, T], >= 0: squared velocity error, or -log p of the code."""
        ...

    def divergence(self, prediction: Tensor, other: Tensor) -> Tensor:
        """How far a prediction is from another at each token [B, T], >= 0: squared distance, or a KL estimate."""
        ...

    def mix(self, old: Tensor, new: Tensor, share: float) -> Tensor:
        """The prediction (1 - share) old + share new; ``share`` may lie outside [0, 1]. ``old`` is a constant."""
        ...

    def inverse_size(self, prediction: Tensor, target: Tensor, time_B: Tensor | None) -> Tensor:
        """What an image's energies are scaled by to count by their size instead of its square: constants [B, 1]."""
        ...


@runtime_checkable
class OnePassMatching(Matching, Protocol):
    """A matching by squared distances that can compute a whole loss of them, and its gradient, in one pass."""

    def has_one_pass(self, prediction: Tensor) -> bool:
        """Whether ``mixture_losses`` is worth calling for a prediction of this device and dtype."""
        ...

    def mixture_losses(
        self,
        prediction: Tensor,
        target: Tensor,
        shares: Sequence[float],
        coefficient_KBT: Tensor,
        old: Tensor | None = None,
        reference: Tensor | None = None,
        reference_weight: float = 0.0,
        counts_BT: Tensor | None = None,
    ) -> Tensor:
        """sum_k a_k energy(mix(old, prediction, s_k), target) + c divergence(prediction, reference): [B, T] float32.

        shares: s_k, at most 3; without ``old`` all are 1. coefficient_KBT: a_k, constants. reference_weight: c, 0
        without a reference. counts_BT: bool; other tokens have loss 0 and no gradient, whatever their numbers are.
        """
        ...


@runtime_checkable
class Generator(Protocol):
    """The drawing half of a model."""

    @property
    def token_spec(self) -> TokenSpec:
        """What one token of an image is."""
        ...

    @property
    def matching(self) -> Matching:
        """How predictions are compared."""
        ...

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens (rows, columns) of an image in pixels. UserError for a size that it cannot draw."""
        ...

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """(height, width) in pixels: the largest square it draws, or what suits an input image [3, H, W]."""
        ...

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """UserError, naming the prompt, for one that is empty or too long."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: Any,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws one image per prompt; everything random about image n is seeded by ``keys[n]``.

        sampling: of the family's ``sampling_type``. edits: an input image [3, H, W] in [0, 1] for each prompt, to be
        edited. plans: what ``plan`` wrote. Both UserError where the design has no such thing.

        Returns (tokens as sampled, images [N, 3, H, W] in [0, 1], multiples of 1/255). The same prompt, key and size
        give the same image in any batch.
        """
        ...

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """Writes a plan for each prompt, for ``generate(..., plans=plans)``. UserError where the design has none."""
        ...

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """Training views of samples; everything random about image n is seeded by ``keys.of(purpose)[n]``."""
        ...

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """What the generator says of every view, [N, M, T, ...]; ``prompts`` has one entry per image.

        forward: the engine (then it has a gradient), or the module inside ``engine.gathered()``.
        """
        ...


@runtime_checkable
class Trainable(Protocol):
    """What an engine and the export need of a model."""

    @property
    def module(self) -> torch.nn.Module:
        """What an engine wraps: every parameter that may train, and every pass that has a gradient."""
        ...

    @property
    def folder(self) -> Path:
        """The checkpoint folder that it was loaded from."""
        ...

    @property
    def lora(self) -> Binding | None:
        """What the LoRA adapter is bound to, where there is one."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains (``lora``: after ``add_lora``). UserError for another mode."""
        ...

    def judge_unchanged_by(self, mode: str) -> bool:
        """Whether training in ``mode`` provably leaves what judges (inside ``judging()``) bit-identical."""
        ...

    def judging(self) -> AbstractContextManager[None]:
        """A context in which the model judges as it did before training, where that takes a switch.

        Nothing in it communicates, so it may be entered inside ``engine.gathered()``.
        """
        ...

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> Binding:
        """Puts a LoRA adapter on the modules that ``targets`` name (none: the family's choice), for mode ``lora``.

        It changes nothing until it is trained, and is the same on every rank. UserError for a target
        that names no module.
        """
        ...

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block in backward instead of keeping its activations."""
        ...

    def compile_blocks(self) -> None:
        """Has ``torch.compile`` compile what is repeated most; nothing where the design has no such part."""
        ...

    def shard_units(self) -> list[type[torch.nn.Module]]:
        """Module classes whose instances ZeRO-3 gathers as one unit, such as a transformer layer."""
        ...

    def stored(self) -> Iterable[tuple[str, Tensor]]:
        """The folder's tensors as stored under the module's names, memory-mapped, one at a time."""
        ...

    def export(
        self,
        folder: Path,
        names: Iterable[str],
        tensors: Iterable[tuple[str, Tensor | None]],
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes the folder it came from with some tensors replaced, streamed one at a time, in the released layout."""
        ...


@runtime_checkable
class UnifiedModel(Judge, Generator, Trainable, Protocol):
    """A model that draws, judges and trains."""


@dataclass(frozen=True)
class ModelFamily:
    """One design, as the registry knows it: nothing here loads weights but ``load``.

    modes: what ``model.trains`` may say. sampling_type: a frozen dataclass of its sampler's settings, which checks
    itself when it is made. matches: whether a folder is of this design, and ``contains`` in words, for the message
    where no design matches. load: (folder, dtype, device, materialise, only_judges) -> the model; only_judges: its
    drawing half may be left out. inspect: a folder's facts (JSON) and the same as text, from its configuration alone.
    costs: what the work of a folder's model costs, or of the released model where there is no folder; None for a design
    or a folder that does not say, which can neither be planned nor accounted for. Two more that a preflight asks before
    torch is imported: refuses_size: from (folder, height, width) in pixels to why a folder's model draws no such image,
    by its configuration alone ("" where it does, or where that does not say). trained: which of the names of a folder's
    tensors a mode trains, for the size of a checkpoint.
    """

    kind: str
    modes: tuple[str, ...]
    sampling_type: type
    matches: Callable[[Path], bool]
    contains: str
    load: Callable[[Path, torch.dtype, torch.device | str, Materialise | None, bool], UnifiedModel]
    inspect: Callable[[Path], tuple[Mapping[str, Any], str]]
    edit_sampling: Mapping[str, Any] | None = None
    costs: Callable[[Path | None], ModelCosts | None] | None = None
    refuses_size: Callable[[Path, int, int], str] | None = None
    trained: Callable[[str, Iterable[str]], list[str]] | None = None
