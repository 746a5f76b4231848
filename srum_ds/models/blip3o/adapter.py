"""BLIP3-o behind the protocols of models/protocol.py, and how a checkpoint folder becomes one.

``Blip3oAdapter`` puts the two halves together: the generator draws with the transformer and the decoder, and the frozen
language model, a whole Qwen2.5-VL, judges (``qwen_vl``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.blip3o.config import read_config
from srum_ds.models.blip3o.decoder import load_decoder
from srum_ds.models.blip3o.generator import Blip3oGenerator
from srum_ds.models.blip3o.model import Blip3o
from srum_ds.models.blip3o.modes import lora_targets, trained
from srum_ds.models.blip3o.prompts import PromptWriter
from srum_ds.models.blip3o.settings import Blip3oSampling
from srum_ds.models.blip3o.weights import folder_weights, library_name
from srum_ds.models.library import FolderWeights, export_adapted, fill, meta_module
from srum_ds.models.lora import Binding, inject, switched_off
from srum_ds.models.matching import FlowMatching
from srum_ds.models.protocol import Forward, Materialise, ViewSettings
from srum_ds.models.qwen_vl.answerer import QwenVLAnswerer
from srum_ds.models.qwen_vl.chat import Chat, open_tokenizer, read_ends
from srum_ds.models.qwen_vl.pictures import PictureReader, read_settings
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView


class Blip3oAdapter:
    """A loaded BLIP3-o folder: a ``UnifiedModel``. What its methods take and give, the protocol says."""

    def __init__(
        self, folder: Path, weights: FolderWeights, generator: Blip3oGenerator, answerer: QwenVLAnswerer
    ) -> None:
        self.folder = folder
        self.weights = weights
        self.generator = generator
        self.answerer = answerer
        self.lora: Binding | None = None

    @property
    def module(self) -> Blip3o:
        """The language model, the queries and the transformer, which an engine shards; the decoder stays outside."""
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
        """See ``Blip3oGenerator.token_spec``."""
        return self.generator.token_spec

    @property
    def matching(self) -> FlowMatching:
        """See ``Blip3oGenerator.matching``."""
        return self.generator.matching

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See ``Blip3oGenerator.grid``."""
        return self.generator.grid(height, width)

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """See ``Blip3oGenerator.default_size``."""
        return self.generator.default_size(edit)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """See ``Blip3oGenerator.check_prompts``."""
        self.generator.check_prompts(prompts)

    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: Blip3oSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See ``Blip3oGenerator.generate``."""
        return self.generator.generate(prompts, keys, grid, sampling, edits, plans)

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """See ``Blip3oGenerator.plan``."""
        return self.generator.plan(prompts, max_new_tokens, edits, temperature, seeds)

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """See ``flow.noised_views``."""
        return self.generator.views(samples, settings, keys)

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """See ``Blip3oGenerator.predict``."""
        return self.generator.predict(forward, prompts, view, grid)

    # ---- trains

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains; ValueError for ``lora`` before ``add_lora``."""
        if mode == "lora" and self.lora is None:
            raise ValueError("mode lora trains an adapter: call add_lora first")
        return trained(mode, [name for name, _ in self.module.named_parameters()])

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for both modes: the language model judges, and it is never trained."""
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
        self.lora = inject(self.module, lora_targets(self.module, targets), rank, alpha, seed)
        return self.lora

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block in backward instead of keeping its activations; see ``Blip3o.enable_checkpointing``."""
        self.module.enable_checkpointing(enabled)

    def compile_blocks(self) -> None:
        """Compiles the transformer's repeated blocks."""
        for block in self.module.dit.blocks:
            block.compile()

    def shard_units(self) -> list[type[torch.nn.Module]]:
        """A block of the transformer, a layer of the language model, and a block of its vision tower."""
        names = set(self.module.vlm._no_split_modules or ())
        units = {type(part) for part in self.module.vlm.modules() if type(part).__name__ in names}
        if hasattr(self.module, "dit"):
            units |= {type(block) for block in self.module.dit.blocks}
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

        The keys are those of the released class; the decoder is copied. With LoRA, ``tensors`` are the adapter's: the
        folder holds the merged model, and the adapter alone, as peft's files for the released transformer, under
        ``lora/``.
        """
        if self.lora is None:
            self.weights.export(folder, names, tensors, dtype)
        else:
            export_adapted(self.weights, folder, self.lora, tensors, dtype, library_name)


def load_blip3o(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    materialise: Materialise | None = None,
    only_judges: bool = False,
) -> Blip3oAdapter:
    """Loads a BLIP3-o folder in the layout of ``config`` and ``weights``, strictly.

    materialise: what gives the module its memory and values instead (an engine that shards it, see
    ``protocol.Materialise``); dtype and device then concern the decoder alone. only_judges: without the transformer,
    the queries and the decoder, for a judge: it answers the same and cannot draw.

    Raises UserError naming the file or the keys when the folder is not whole or does not fit.
    """
    config = read_config(Path(folder))
    tokenizer = open_tokenizer(config.folder)
    prompts = PromptWriter(tokenizer, config)
    whole = meta_module(lambda: Blip3o(config))
    weights = folder_weights(config.folder, whole)
    weights.check(whole, "config.json (its dit and n_query, too) belongs")
    if only_judges:
        whole.keep_judge()
    if materialise is None:
        fill(whole, weights.stored(), dtype, device)
    else:
        materialise(whole, weights.stored())
    whole.eval().requires_grad_(False)
    channels = config.denoiser.in_channels
    decoder = None if only_judges else load_decoder(config.decoder_folder, channels, dtype, device)
    answerer = QwenVLAnswerer(
        whole.vlm,
        Chat(tokenizer, config.vlm.image_token_id, read_ends(config.folder)),
        PictureReader(config.vlm.vision_config, read_settings(config.folder)),
    )
    return Blip3oAdapter(config.folder, weights, Blip3oGenerator(whole, prompts, decoder), answerer)
