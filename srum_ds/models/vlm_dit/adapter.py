"""A diffusers pipeline behind the protocols of models/protocol.py, and how a checkpoint folder becomes one.

``VlmDitAdapter`` puts the two halves together: the generator draws with the transformer, and the text encoder, a whole
vision-language model, judges (``qwen_vl``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.library import FolderWeights, export_adapted, fill, meta_module
from srum_ds.models.lora import Binding, inject, switched_off
from srum_ds.models.matching import FlowMatching
from srum_ds.models.protocol import Forward, Materialise, ViewSettings
from srum_ds.models.qwen_vl.answerer import QwenVLAnswerer
from srum_ds.models.qwen_vl.chat import Chat, open_tokenizer, read_ends
from srum_ds.models.qwen_vl.pictures import PictureReader, read_settings
from srum_ds.models.vlm_dit.asking import Conditioner, DryRun
from srum_ds.models.vlm_dit.config import PipelineFolder, read_folder
from srum_ds.models.vlm_dit.generator import VlmDitGenerator
from srum_ds.models.vlm_dit.model import VlmDit
from srum_ds.models.vlm_dit.modes import blocks, lora_targets, trained
from srum_ds.models.vlm_dit.parts import build_autoencoder, build_encoder, build_transformer, load_autoencoder
from srum_ds.models.vlm_dit.sampling import PipelineSampling
from srum_ds.models.vlm_dit.weights import folder_weights, library_name
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView


class VlmDitAdapter:
    """A loaded pipeline folder: a ``UnifiedModel``. What its methods take and give, the protocol says."""

    def __init__(
        self, folder: PipelineFolder, weights: FolderWeights, generator: VlmDitGenerator, answerer: QwenVLAnswerer
    ) -> None:
        self.folder = folder.folder
        self.pipeline = folder.pipeline
        self.weights = weights
        self.generator = generator
        self.answerer = answerer
        self.lora: Binding | None = None

    @property
    def module(self) -> VlmDit:
        """The transformer and the text encoder, which an engine shards; the autoencoder stays outside."""
        return self.generator.module

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
        """See ``QwenVLAnswerer.answer_logprobs``."""
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
        """See ``QwenVLAnswerer.answer``."""
        return self.answerer.answer(images, questions, max_new_tokens, image_index, temperature, seeds)

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """See ``QwenVLAnswerer.text_logprob``."""
        return self.answerer.text_logprob(images, texts, questions, image_index)

    # ---- draws

    @property
    def token_spec(self) -> TokenSpec:
        """See ``VlmDitGenerator.token_spec``."""
        return self.generator.token_spec

    @property
    def matching(self) -> FlowMatching:
        """See ``VlmDitGenerator.matching``."""
        return self.generator.matching

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See ``VlmDitGenerator.grid``."""
        return self.generator.grid(height, width)

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """See ``VlmDitGenerator.default_size``."""
        return self.generator.default_size(edit)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """See ``VlmDitGenerator.check_prompts``."""
        self.generator.check_prompts(prompts)

    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: PipelineSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See ``VlmDitGenerator.generate``."""
        return self.generator.generate(prompts, keys, grid, sampling, edits, plans)

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """See ``VlmDitGenerator.plan``."""
        return self.generator.plan(prompts, max_new_tokens, edits, temperature, seeds)

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """See ``flow.noised_views``."""
        return self.generator.views(samples, settings, keys)

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """See ``VlmDitGenerator.predict``."""
        return self.generator.predict(forward, prompts, view, grid)

    # ---- trains

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains; ValueError for ``lora`` before ``add_lora``."""
        if mode == "lora" and self.lora is None:
            raise ValueError("mode lora trains an adapter: call add_lora first")
        names = [name for name, _ in self.module.named_parameters()]
        return trained(mode, names, self.pipeline.unreached)

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for both modes: the text encoder judges, and it is never trained."""
        return mode in ("generation", "lora")

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Inside, LoRA is off. The judge has no adapter anyway."""
        with switched_off(self.module):
            yield

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> Binding:
        """Puts a LoRA adapter on the transformer's layers that ``targets`` name, for mode ``lora``.

        targets: see ``match_targets``; none means the projections of attention. The adapter changes nothing until it is
        trained. UserError for a target that names no module, ValueError where there is an adapter already.
        """
        if self.lora is not None:
            raise ValueError("this model has an adapter already")
        names = lora_targets(self.module, targets, self.pipeline.unreached)
        self.lora = inject(self.module, names, rank, alpha, seed)
        return self.lora

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block of the transformer in backward instead of keeping its activations."""
        self.module.enable_checkpointing(enabled)

    def compile_blocks(self) -> None:
        """Compiles the transformer's repeated blocks."""
        for block in blocks(self.module.transformer):
            block.compile()

    def shard_units(self) -> list[type[torch.nn.Module]]:
        """A block of the transformer, a layer of the text encoder, and a block of its vision tower."""
        names = set(self.module.text_encoder._no_split_modules or ())
        units = {type(block) for block in blocks(getattr(self.module, "transformer", torch.nn.Module()))}
        units |= {type(part) for part in self.module.text_encoder.modules() if type(part).__name__ in names}
        return sorted(units, key=lambda unit: unit.__name__)

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """The folder's tensors as stored under the module's names, memory-mapped, one at a time."""
        return self.weights.stored()

    def export(
        self,
        folder: Path,
        names: Iterable[str],
        tensors: Iterable[tuple[str, Tensor | None]],
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes the folder this model came from with some tensors replaced, streamed one at a time.

        The pipeline's own ``from_pretrained`` reads it. With LoRA, ``tensors`` are the adapter's: the folder holds the
        merged model, and the adapter alone, as peft's files for the library's transformer, under ``lora/``.
        """
        if self.lora is None:
            self.weights.export(folder, names, tensors, dtype)
        else:
            export_adapted(self.weights, folder, self.lora, tensors, dtype, library_name)


def load_vlm_dit(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    materialise: Materialise | None = None,
    only_judges: bool = False,
) -> VlmDitAdapter:
    """Loads the folder of a diffusers pipeline, strictly.

    materialise: what gives the module its memory and values instead (an engine that shards it, see
    ``protocol.Materialise``); dtype and device then concern the autoencoder alone. only_judges: without the
    transformer, for a judge: it answers the same and cannot draw.

    Raises UserError naming the file or the keys when the folder is not whole or does not fit.
    """
    found = read_folder(Path(folder))
    tokenizer = open_tokenizer(found.text_folder)
    transformer = meta_module(lambda: build_transformer(found))
    text_encoder = meta_module(lambda: build_encoder(found))
    autoencoder = meta_module(lambda: build_autoencoder(found))
    load_autoencoder(autoencoder, found, dtype, device)
    conditioner = Conditioner(found, transformer, text_encoder, autoencoder, tokenizer)
    dry = DryRun(found, transformer, text_encoder, autoencoder, tokenizer)
    whole = VlmDit(transformer, text_encoder, conditioner, dry)
    weights = folder_weights(found, text_encoder).settle_ties(whole)
    weights.check(whole, "the config.json of transformer/ and text_encoder/ belong")
    module = VlmDit(None, text_encoder, conditioner, dry) if only_judges else whole
    if materialise is None:
        fill(module, weights.stored(), dtype, device)
    else:
        materialise(module, weights.stored())
    module.eval().requires_grad_(False)
    autoencoder.eval().requires_grad_(False)
    settings = read_settings(found.path("processor"), found.text_folder, found.path("text_encoder"), found.folder)
    answerer = QwenVLAnswerer(
        text_encoder,
        Chat(tokenizer, text_encoder.config.image_token_id, read_ends(found.path("text_encoder"))),
        PictureReader(text_encoder.config.vision_config, settings),
    )
    return VlmDitAdapter(found, weights, VlmDitGenerator(module, dry, tokenizer), answerer)
