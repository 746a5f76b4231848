"""BLIP3-o behind the protocols of models/protocol.py, and how a checkpoint folder becomes one.

``Blip3oAdapter`` puts the two halves together: the generator draws with the transformer and the decoder, and the frozen
language model, a whole Qwen2.5-VL, judges (``qwen_vl``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from srum_ds.models.blip3o.config import read_config
from srum_ds.models.blip3o.decoder import load_decoder
from srum_ds.models.blip3o.generator import Blip3oGenerator
from srum_ds.models.blip3o.model import Blip3o
from srum_ds.models.blip3o.modes import lora_targets, trained
from srum_ds.models.blip3o.prompts import PromptWriter
from srum_ds.models.blip3o.weights import folder_weights, library_name
from srum_ds.models.halves import TwoHalves
from srum_ds.models.library import FolderWeights, fill, meta_module
from srum_ds.models.protocol import Materialise
from srum_ds.models.qwen_vl.answerer import QwenVLAnswerer
from srum_ds.models.qwen_vl.chat import Chat, open_tokenizer, read_ends
from srum_ds.models.qwen_vl.pictures import PictureReader, read_settings


class Blip3oAdapter(TwoHalves):
    """A loaded BLIP3-o folder: a ``UnifiedModel``. What its methods take and give, the protocol says."""

    answerer: QwenVLAnswerer
    generator: Blip3oGenerator

    def __init__(self, weights: FolderWeights, generator: Blip3oGenerator, answerer: QwenVLAnswerer) -> None:
        super().__init__(weights, answerer, generator)

    @property
    def module(self) -> Blip3o:
        """The language model, the queries and the transformer, which an engine shards; the decoder stays outside."""
        return self.generator.module

    # ---- trains

    def trained_names(self, mode: str) -> list[str]:
        """See ``modes.trained``."""
        return trained(mode, [name for name, _ in self.module.named_parameters()])

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for both modes: the language model judges, and it is never trained."""
        return mode in ("generation", "lora")

    def lora_names(self, targets: Sequence[str]) -> Sequence[str]:
        """Without targets: the transformer's projections of attention."""
        return lora_targets(self.module, targets)

    def library_name(self, name: str) -> str:
        """See ``weights.library_name``."""
        return library_name(name)

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
    return Blip3oAdapter(weights, Blip3oGenerator(whole, prompts, decoder), answerer)
