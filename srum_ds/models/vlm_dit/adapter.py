"""A diffusers pipeline behind the protocols of models/protocol.py, and how a checkpoint folder becomes one.

``VlmDitAdapter`` puts the two halves together: the generator draws with the transformer, and the text encoder, a whole
vision-language model, judges (``qwen_vl``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from srum_ds.models.halves import TwoHalves
from srum_ds.models.library import FolderWeights, fill, meta_module
from srum_ds.models.protocol import Materialise
from srum_ds.models.qwen_vl.answerer import QwenVLAnswerer
from srum_ds.models.qwen_vl.chat import Chat, open_tokenizer, read_ends
from srum_ds.models.qwen_vl.pictures import PictureReader, read_settings
from srum_ds.models.vlm_dit.asking import Conditioner, DryRun
from srum_ds.models.vlm_dit.config import PipelineFolder, read_folder
from srum_ds.models.vlm_dit.generator import VlmDitGenerator
from srum_ds.models.vlm_dit.model import VlmDit
from srum_ds.models.vlm_dit.modes import blocks, lora_targets, trained
from srum_ds.models.vlm_dit.parts import build_autoencoder, build_encoder, build_transformer, load_autoencoder
from srum_ds.models.vlm_dit.weights import folder_weights, library_name


class VlmDitAdapter(TwoHalves):
    """A loaded pipeline folder: a ``UnifiedModel``. What its methods take and give, the protocol says."""

    answerer: QwenVLAnswerer
    generator: VlmDitGenerator

    def __init__(
        self, folder: PipelineFolder, weights: FolderWeights, generator: VlmDitGenerator, answerer: QwenVLAnswerer
    ) -> None:
        super().__init__(weights, answerer, generator)
        self.pipeline = folder.pipeline

    @property
    def module(self) -> VlmDit:
        """The transformer and the text encoder, which an engine shards; the autoencoder stays outside."""
        return self.generator.module

    # ---- trains

    def trained_names(self, mode: str) -> list[str]:
        """See ``modes.trained``."""
        return trained(mode, [name for name, _ in self.module.named_parameters()], self.pipeline.unreached)

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for both modes: the text encoder judges, and it is never trained."""
        return mode in ("generation", "lora")

    def lora_names(self, targets: Sequence[str]) -> Sequence[str]:
        """Without targets: the transformer's projections of attention."""
        return lora_targets(self.module, targets, self.pipeline.unreached)

    def library_name(self, name: str) -> str:
        """See ``weights.library_name``."""
        return library_name(name)

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
