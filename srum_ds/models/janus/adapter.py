"""Janus behind the protocols of models/protocol.py, and how a checkpoint folder becomes one.

``JanusAdapter`` holds a ``Reader`` that the two halves share: the answerer, which judges, and the generator, which
draws. ``models.load_model`` calls ``load_janus`` through the family in ``__init__``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from srum_ds.models.halves import TwoHalves
from srum_ds.models.janus.answerer import JanusAnswerer
from srum_ds.models.janus.config import read_config
from srum_ds.models.janus.generator import JanusGenerator
from srum_ds.models.janus.model import Janus
from srum_ds.models.janus.modes import lora_targets, trained
from srum_ds.models.janus.reader import Reader, load_processor
from srum_ds.models.janus.texts import JanusTexts
from srum_ds.models.janus.weights import build, module_weights, vq_weights
from srum_ds.models.library import FolderWeights, fill
from srum_ds.models.protocol import Materialise


class JanusAdapter(TwoHalves):
    """A loaded Janus checkpoint folder: a ``UnifiedModel``. What its methods take and give, the protocol says."""

    answerer: JanusAnswerer
    generator: JanusGenerator

    def __init__(self, reader: Reader, weights: FolderWeights) -> None:
        super().__init__(weights, JanusAnswerer(reader), JanusGenerator(reader))
        self.reader = reader

    @property
    def module(self) -> Janus:
        """Everything that may train; the VQ does not."""
        return self.reader.module

    # ---- trains

    def trained_names(self, mode: str) -> list[str]:
        """See ``modes.trained``."""
        return trained(mode, (name for name, _ in self.module.named_parameters()))

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for ``generation``: no question is answered through the codes' embeddings, their aligner or their head.

        True for ``lora`` too: inside ``judging()`` the model is the untrained one.
        """
        return mode in ("generation", "lora")

    def lora_names(self, targets: Sequence[str]) -> Sequence[str]:
        """Without targets: all projections of the language model."""
        return lora_targets(self.module, targets)

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each layer of the language model in backward instead of keeping its activations."""
        self.module.checkpointing = enabled

    def compile_blocks(self) -> None:
        """Nothing: the layers are the library's, and what they are given has another shape for every prompt."""

    def shard_units(self) -> list[type[torch.nn.Module]]:
        """A layer of the language model."""
        return [LlamaDecoderLayer]


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
    return JanusAdapter(Reader(settings, module, vq, texts, processor), weights)
