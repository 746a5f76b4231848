"""Show-o behind the protocols of models/protocol.py, and how a checkpoint folder becomes one.

``ShowoAdapter`` holds a ``Reader`` that the two halves share: the answerer, which judges, and the generator, which
draws. ``models.load_model`` calls ``load_showo`` through the family in ``__init__``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.library import FolderWeights, fill, meta_module
from srum_ds.models.lora import Binding, inject, switched_off
from srum_ds.models.matching import CategoricalTokens
from srum_ds.models.protocol import Forward, Materialise, ViewSettings
from srum_ds.models.showo.answerer import ShowoAnswerer
from srum_ds.models.showo.config import read_config
from srum_ds.models.showo.generator import ShowoGenerator
from srum_ds.models.showo.magvit import Magvit
from srum_ds.models.showo.model import Showo
from srum_ds.models.showo.modes import lora_targets, trained
from srum_ds.models.showo.reader import Reader
from srum_ds.models.showo.sampling import MaskedSampling
from srum_ds.models.showo.tokenizer import ShowoTokenizer
from srum_ds.models.showo.weights import export_folder, folder_weights, load_magvit
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView


class ShowoAdapter:
    """A loaded Show-o checkpoint folder: a ``UnifiedModel``. What its methods take and give, the protocol says."""

    def __init__(self, weights: FolderWeights, reader: Reader) -> None:
        self.weights = weights
        self.reader = reader
        self.answerer = ShowoAnswerer(reader)
        self.generator = ShowoGenerator(reader)
        self.lora: Binding | None = None

    @property
    def folder(self) -> Path:
        """The checkpoint folder."""
        return self.weights.folder

    @property
    def module(self) -> Showo:
        """Everything that may train; the picture tokenizer does not."""
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
        """See ``ShowoAnswerer.answer_logprobs``."""
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
        """See ``ShowoAnswerer.answer``."""
        return self.answerer.answer(images, questions, max_new_tokens, image_index, temperature, seeds)

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """See ``ShowoAnswerer.text_logprob``."""
        return self.answerer.text_logprob(images, texts, questions, image_index)

    # ---- draws

    @property
    def token_spec(self) -> TokenSpec:
        """See ``ShowoGenerator.token_spec``."""
        return self.generator.token_spec

    @property
    def matching(self) -> CategoricalTokens:
        """See ``ShowoGenerator.matching``."""
        return self.generator.matching

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See ``ShowoGenerator.grid``."""
        return self.generator.grid(height, width)

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """See ``ShowoGenerator.default_size``."""
        return self.generator.default_size(edit)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """See ``ShowoGenerator.check_prompts``."""
        self.generator.check_prompts(prompts)

    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: MaskedSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See ``ShowoGenerator.generate``."""
        return self.generator.generate(prompts, keys, grid, sampling, edits, plans)

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """See ``ShowoGenerator.plan``."""
        return self.generator.plan(prompts, max_new_tokens, edits, temperature, seeds)

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """See ``ShowoGenerator.views``."""
        return self.generator.views(samples, settings, keys)

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """See ``ShowoGenerator.predict``."""
        return self.generator.predict(forward, prompts, view, grid)

    # ---- trains

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains; ValueError for ``lora`` before ``add_lora``."""
        if mode == "lora" and self.lora is None:
            raise ValueError("mode lora trains an adapter: call add_lora first")
        return trained(mode, (name for name, _ in self.module.named_parameters()))

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for ``lora``: inside ``judging()`` the model is the untrained one. ``transformer`` trains the judge."""
        return mode == "lora"

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Inside, LoRA is off: the model judges as it did before training. No effect without LoRA."""
        with switched_off(self.module):
            yield

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> Binding:
        """Puts a LoRA adapter on the blocks' linear layers that ``targets`` name (none: on all), for mode ``lora``.

        It changes nothing until it is trained. UserError for a target that names no module, ValueError where there is
        an adapter already.
        """
        if self.lora is not None:
            raise ValueError("this model has an adapter already")
        self.lora = inject(self.module, lora_targets(self.module, targets), rank, alpha, seed)
        return self.lora

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block in backward instead of keeping its activations."""
        self.module.enable_checkpointing(enabled)

    def compile_blocks(self) -> None:
        """Nothing: the blocks are the library's, and are used as they are."""

    def shard_units(self) -> list[type[torch.nn.Module]]:
        """A transformer layer."""
        return [PhiDecoderLayer]

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """The folder's tensors as stored, memory-mapped, one at a time."""
        return self.weights.stored()

    def export(
        self,
        folder: Path,
        names: Iterable[str],
        tensors: Iterable[tuple[str, Tensor | None]],
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes the folder this model came from with some tensors replaced, streamed one at a time.

        With LoRA, ``tensors`` are the adapter's: the folder holds the merged model, and the adapter alone, as peft's
        files for ``PhiForCausalLM``, under ``lora/``.
        """
        export_folder(self.weights, folder, names, tensors, dtype, self.lora)


def load_showo(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    materialise: Materialise | None = None,
    only_judges: bool = False,
    max_text_len: int | None = None,
) -> ShowoAdapter:
    """Loads a Show-o checkpoint folder (the released layout, with ``magvitv2/`` in it), strictly.

    materialise: what gives the module its memory and values instead (an engine that shards it, see
    ``protocol.Materialise``); dtype and device then concern nothing but where the picture tokenizer is, which computes
    in float32. only_judges: no effect, since all of the module judges. max_text_len: instead of config.json's.

    Raises UserError naming the file or the keys when the folder is not whole or does not fit.
    """
    del only_judges
    folder = Path(folder)
    config = read_config(folder, max_text_len)
    tokenizer = ShowoTokenizer(config)
    module = meta_module(lambda: Showo(config.phi, tokenizer.vocabulary, config.facts.num_vq_tokens))
    weights = folder_weights(folder, module)
    weights.check(module)
    if materialise is None:
        fill(module, weights.stored(), dtype, device)
    else:
        materialise(module, weights.stored())
    magvit = meta_module(lambda: Magvit(config.magvit))
    load_magvit(magvit, folder, device)
    module.eval().requires_grad_(False)
    magvit.eval().requires_grad_(False)
    return ShowoAdapter(weights, Reader(config, module, magvit, tokenizer))
