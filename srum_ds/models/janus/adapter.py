"""Janus behind the protocols of models/protocol.py, and how a checkpoint folder becomes one.

``JanusAdapter`` holds a ``Reader`` that the two halves share: the answerer, which judges, and the generator, which
draws. ``models.load_model`` calls ``load_janus`` through the family in ``__init__``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.janus.answerer import JanusAnswerer
from srum_ds.models.janus.config import read_config
from srum_ds.models.janus.generator import JanusGenerator
from srum_ds.models.janus.model import Janus
from srum_ds.models.janus.modes import lora_targets, trained
from srum_ds.models.janus.reader import Reader, load_processor
from srum_ds.models.janus.sampling import CodeSampling
from srum_ds.models.janus.texts import JanusTexts
from srum_ds.models.janus.weights import build, module_weights, vq_weights
from srum_ds.models.library import FolderWeights, export_adapted, fill
from srum_ds.models.lora import Binding, inject, switched_off
from srum_ds.models.matching import CategoricalTokens
from srum_ds.models.protocol import Forward, Materialise, ViewSettings
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView


class JanusAdapter:
    """A loaded Janus checkpoint folder: a ``UnifiedModel``. What its methods take and give, the protocol says."""

    def __init__(self, folder: Path, reader: Reader, weights: FolderWeights) -> None:
        self.folder = Path(folder)
        self.weights = weights
        self.reader = reader
        self.answerer = JanusAnswerer(reader)
        self.generator = JanusGenerator(reader)
        self.lora: Binding | None = None

    @property
    def module(self) -> Janus:
        """Everything that may train; the VQ does not."""
        return self.reader.module

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        return self.module.device

    # ---- judges

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """See ``JanusAnswerer.answer_logprobs``."""
        return self.answerer.answer_logprobs(images, questions, answers, image_index)

    def answer(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        image_index: Sequence[int] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """See ``JanusAnswerer.answer``."""
        return self.answerer.answer(images, questions, max_new_tokens, image_index, temperature, seeds)

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """See ``JanusAnswerer.text_logprob``."""
        return self.answerer.text_logprob(images, texts, questions, image_index)

    # ---- draws

    @property
    def token_spec(self) -> TokenSpec:
        """See ``JanusGenerator.token_spec``."""
        return self.generator.token_spec

    @property
    def matching(self) -> CategoricalTokens:
        """See ``JanusGenerator.matching``."""
        return self.generator.matching

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See ``JanusGenerator.grid``."""
        return self.generator.grid(height, width)

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """See ``JanusGenerator.default_size``."""
        return self.generator.default_size(edit)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """See ``JanusGenerator.prompt_ids``."""
        self.generator.prompt_ids(prompts)

    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: CodeSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See ``JanusGenerator.generate``."""
        return self.generator.generate(prompts, keys, grid, sampling, edits, plans)

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """See ``JanusGenerator.plan``."""
        return self.generator.plan(prompts, max_new_tokens, edits, temperature, seeds)

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """See ``JanusGenerator.views``."""
        return self.generator.views(samples, settings, keys)

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """See ``JanusGenerator.predict``."""
        return self.generator.predict(forward, prompts, view, grid)

    # ---- trains

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains; ValueError for ``lora`` before ``add_lora``."""
        if mode == "lora" and self.lora is None:
            raise ValueError("mode lora trains an adapter: call add_lora first")
        return trained(mode, (name for name, _ in self.module.named_parameters()))

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for ``generation``: no question is answered through the codes' embeddings, their aligner or their head.

        True for ``lora`` too: inside ``judging()`` the model is the untrained one.
        """
        return mode in ("generation", "lora")

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Inside, LoRA is off: the model judges as it did before training. No effect without LoRA."""
        with switched_off(self.module):
            yield

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> Binding:
        """Puts a LoRA adapter on the modules that ``targets`` name, for mode ``lora``.

        targets: see ``match_targets``; none means all projections of the language model. The
        adapter changes nothing until it is trained. UserError for a target that names no module, ValueError where
        there is an adapter already.
        """
        if self.lora is not None:
            raise ValueError("this model has an adapter already")
        self.lora = inject(self.module, lora_targets(self.module, targets), rank, alpha, seed)
        return self.lora

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each layer of the language model in backward instead of keeping its activations."""
        self.module.checkpointing = enabled

    def compile_blocks(self) -> None:
        """Nothing: the layers are the library's, and what they are given has another shape for every prompt."""

    def shard_units(self) -> list[type[torch.nn.Module]]:
        """A layer of the language model."""
        return [LlamaDecoderLayer]

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """The folder's tensors as stored, memory-mapped, one at a time, the VQ's left out."""
        return self.weights.stored()

    def export(
        self,
        folder: Path,
        names: Iterable[str],
        tensors: Iterable[tuple[str, Tensor | None]],
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes the folder this model came from with some tensors replaced, streamed one at a time.

        The library loads it as it loads the original. With LoRA, ``tensors`` are the adapter's: the folder holds the
        merged model, and the adapter alone, as peft's files, under ``lora/``.
        """
        if self.lora is None:
            self.weights.export(folder, names, tensors, dtype)
        else:
            export_adapted(self.weights, folder, self.lora, tensors, dtype)


def load_janus(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    materialise: Materialise | None = None,
) -> JanusAdapter:
    """Loads a Janus checkpoint folder (the library's layout), strictly.

    materialise: what gives the module its memory and values instead (an engine that shards it, see
    ``protocol.Materialise``); dtype and device then concern the VQ alone.

    Raises UserError naming the file or the keys when the folder is not whole or does not fit.
    """
    folder = Path(folder)
    settings = read_config(folder)
    texts = JanusTexts(folder, settings)
    processor = load_processor(folder, settings)
    module, vq, name_of = build(folder, settings)
    weights = module_weights(folder, name_of).settle_ties(module)
    weights.check(module)
    of_vq = vq_weights(folder, name_of)
    of_vq.check(vq)
    if materialise is None:
        fill(module, weights.stored(), dtype, device)
    else:
        materialise(module, weights.stored())
    fill(vq, of_vq.stored(), dtype, device)
    module.eval().requires_grad_(False)
    vq.eval().requires_grad_(False)
    return JanusAdapter(folder, Reader(settings, module, vq, texts, processor), weights)
