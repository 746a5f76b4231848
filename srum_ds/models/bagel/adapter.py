"""BAGEL behind the protocols of models/protocol.py, and how a checkpoint folder becomes one.

``BagelAdapter`` holds a ``Reader`` that the two halves share: the answerer, which judges, and the generator, which
draws. ``models.load_model`` calls ``load_bagel`` through the family in ``__init__``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.bagel.answerer import BagelAnswerer
from srum_ds.models.bagel.config import read_config
from srum_ds.models.bagel.drop_generation import drop_generation
from srum_ds.models.bagel.generator import BagelGenerator
from srum_ds.models.bagel.latents import Autoencoder
from srum_ds.models.bagel.model import Bagel
from srum_ds.models.bagel.modes import lora_targets, trained
from srum_ds.models.bagel.reader import Reader
from srum_ds.models.bagel.tokenizer import BagelTokenizer
from srum_ds.models.bagel.transformer import MoTLayer
from srum_ds.models.bagel.weights import check_weights, fill, folder_weights, load_autoencoder, stored_weights
from srum_ds.models.flow import FlowSampling
from srum_ds.models.library.export import export_adapted
from srum_ds.models.lora import Binding, inject, switched_off
from srum_ds.models.matching import FlowMatching
from srum_ds.models.protocol import Forward, Materialise, ViewSettings
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView


class BagelAdapter:
    """A loaded BAGEL checkpoint folder: a ``UnifiedModel``. What its methods take and give, the protocol says."""

    def __init__(self, folder: Path, reader: Reader) -> None:
        self.folder = Path(folder)
        self.reader = reader
        self.answerer = BagelAnswerer(reader)
        self.generator = BagelGenerator(reader)
        self.lora: Binding | None = None

    @property
    def module(self) -> Bagel:
        """Everything that may train; the autoencoder does not."""
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
        """See ``BagelAnswerer.answer_logprobs``."""
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
        """See ``BagelAnswerer.answer``."""
        return self.answerer.answer(images, questions, max_new_tokens, image_index, temperature, seeds)

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """See ``BagelAnswerer.text_logprob``."""
        return self.answerer.text_logprob(images, texts, questions, image_index)

    # ---- draws

    @property
    def token_spec(self) -> TokenSpec:
        """See ``BagelGenerator.token_spec``."""
        return self.generator.token_spec

    @property
    def matching(self) -> FlowMatching:
        """See ``BagelGenerator.matching``."""
        return self.generator.matching

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See ``Reader.grid``."""
        return self.reader.grid(height, width)

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """See ``BagelGenerator.default_size``."""
        return self.generator.default_size(edit)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """See ``BagelGenerator.prompt_ids``."""
        self.generator.prompt_ids(prompts)

    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: FlowSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See ``BagelGenerator.generate``."""
        return self.generator.generate(prompts, keys, grid, sampling, edits, plans)

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """See ``BagelGenerator.plan``."""
        return self.generator.plan(prompts, max_new_tokens, edits, temperature, seeds)

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """See ``flow.noised_views``."""
        return self.generator.views(samples, settings, keys)

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """See ``BagelGenerator.predict``."""
        return self.generator.predict(forward, prompts, view, grid)

    # ---- trains

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains; ValueError for ``lora`` before ``add_lora``."""
        if mode == "lora" and self.lora is None:
            raise ValueError("mode lora trains an adapter: call add_lora first")
        return trained(mode, (name for name, _ in self.module.named_parameters()))

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for ``generation``: text and vision tokens never touch a ``_moe_gen`` weight.

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

        targets: see ``match_targets``; none means the projections of the generation experts. The
        adapter changes nothing until it is trained. UserError for a target that names no module, ValueError where
        there is an adapter already.
        """
        if self.lora is not None:
            raise ValueError("this model has an adapter already")
        self.lora = inject(self.module, lora_targets(self.module, targets), rank, alpha, seed)
        return self.lora

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block in backward instead of keeping its activations."""
        self.module.enable_checkpointing(enabled)

    def compile_blocks(self) -> None:
        """Compiles what a block does to noised pictures, in training and drawing; see ``MoTModel.compile_blocks``."""
        self.module.language_model.model.compile_blocks()

    def shard_units(self) -> list[type[torch.nn.Module]]:
        """A transformer layer with both its experts."""
        return [MoTLayer]

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """The folder's tensors as stored, memory-mapped, one at a time."""
        return stored_weights(self.folder)

    def export(
        self,
        folder: Path,
        names: Iterable[str],
        tensors: Iterable[tuple[str, Tensor | None]],
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes the folder this model came from with some tensors replaced, streamed one at a time.

        With LoRA, ``tensors`` are the adapter's: the folder holds the merged model, and the adapter
        alone, as peft's files, under ``lora/``.
        """
        if self.lora is None:
            folder_weights(self.folder).export(folder, names, tensors, dtype)
        else:
            export_adapted(folder_weights(self.folder), folder, self.lora, tensors, dtype)


def load_bagel(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    materialise: Materialise | None = None,
    only_judges: bool = False,
) -> BagelAdapter:
    """Loads a BAGEL checkpoint folder (the released layout), strictly.

    materialise: what gives the module its memory and values instead (an engine that shards it, see
    ``protocol.Materialise``); dtype and device then concern the autoencoder alone. only_judges: without the
    generation experts, for a judge: it answers the same and cannot draw.

    Raises UserError naming the file or the keys when the folder is not whole or does not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    tokenizer = BagelTokenizer(folder, config.llm.vocab_size)
    with torch.device("meta"):
        module = Bagel(config, tokenizer.special)
        autoencoder = Autoencoder(config.vae)
    check_weights(module, folder)
    if only_judges:
        drop_generation(module)
    if materialise is None:
        module = module.to(dtype).to_empty(device=device)
        fill(module, stored_weights(folder))
    else:
        materialise(module, stored_weights(folder))
    autoencoder = autoencoder.to_empty(device=device)
    load_autoencoder(autoencoder, folder / "ae.safetensors")
    module.eval().requires_grad_(False)
    autoencoder.eval().requires_grad_(False)
    return BagelAdapter(folder, Reader(config, module, autoencoder, tokenizer))
