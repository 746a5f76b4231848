"""BAGEL behind the protocols of models/protocol.py, and how a checkpoint folder becomes one.

``BagelAdapter`` holds a ``Reader`` that the two halves share: the answerer, which judges, and the generator, which
draws. ``models.load_model`` calls ``load_bagel`` through the family in ``__init__``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

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
from srum_ds.models.halves import TwoHalves
from srum_ds.models.protocol import Materialise


class BagelAdapter(TwoHalves):
    """A loaded BAGEL checkpoint folder: a ``UnifiedModel``. What its methods take and give, the protocol says."""

    answerer: BagelAnswerer
    generator: BagelGenerator

    def __init__(self, folder: Path, reader: Reader) -> None:
        super().__init__(folder_weights(folder), BagelAnswerer(reader), BagelGenerator(reader))
        self.reader = reader

    @property
    def module(self) -> Bagel:
        """Everything that may train; the autoencoder does not."""
        return self.reader.module

    # ---- trains

    def trained_names(self, mode: str) -> list[str]:
        """See ``modes.trained``."""
        return trained(mode, (name for name, _ in self.module.named_parameters()))

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for ``generation``: text and vision tokens never touch a ``_moe_gen`` weight.

        True for ``lora`` too: inside ``judging()`` the model is the untrained one.
        """
        return mode in ("generation", "lora")

    def lora_names(self, targets: Sequence[str]) -> Sequence[str]:
        """Without targets: the projections of the generation experts."""
        return lora_targets(self.module, targets)

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block in backward instead of keeping its activations."""
        self.module.enable_checkpointing(enabled)

    def compile_blocks(self) -> None:
        """Compiles what a block does to noised pictures, in training and drawing; see ``MoTModel.compile_blocks``."""
        self.module.language_model.model.compile_blocks()

    def shard_units(self) -> list[type[torch.nn.Module]]:
        """A transformer layer with both its experts."""
        return [MoTLayer]


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
