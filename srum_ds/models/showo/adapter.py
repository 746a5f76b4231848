"""Show-o behind the protocols of models/protocol.py, and how a checkpoint folder becomes one.

``ShowoAdapter`` holds a ``Reader`` that the two halves share: the answerer, which judges, and the generator, which
draws. ``models.load_model`` calls ``load_showo`` through the family in ``__init__``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from srum_ds.models.halves import TwoHalves
from srum_ds.models.library import FolderWeights, fill, meta_module
from srum_ds.models.protocol import Materialise
from srum_ds.models.showo.answerer import ShowoAnswerer
from srum_ds.models.showo.config import read_config
from srum_ds.models.showo.generator import ShowoGenerator
from srum_ds.models.showo.magvit import Magvit
from srum_ds.models.showo.model import Showo
from srum_ds.models.showo.modes import lora_targets, trained
from srum_ds.models.showo.reader import Reader
from srum_ds.models.showo.tokenizer import ShowoTokenizer
from srum_ds.models.showo.weights import export_folder, folder_weights, load_magvit


class ShowoAdapter(TwoHalves):
    """A loaded Show-o checkpoint folder: a ``UnifiedModel``. What its methods take and give, the protocol says."""

    answerer: ShowoAnswerer
    generator: ShowoGenerator

    def __init__(self, weights: FolderWeights, reader: Reader) -> None:
        super().__init__(weights, ShowoAnswerer(reader), ShowoGenerator(reader))
        self.reader = reader

    @property
    def module(self) -> Showo:
        """Everything that may train; the picture tokenizer does not."""
        return self.reader.module

    # ---- trains

    def trained_names(self, mode: str) -> list[str]:
        """See ``modes.trained``."""
        return trained(mode, (name for name, _ in self.module.named_parameters()))

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for ``lora``: inside ``judging()`` the model is the untrained one. ``transformer`` trains the judge."""
        return mode == "lora"

    def lora_names(self, targets: Sequence[str]) -> Sequence[str]:
        """Without targets: all linear layers of the blocks."""
        return lora_targets(self.module, targets)

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block in backward instead of keeping its activations."""
        self.module.enable_checkpointing(enabled)

    def compile_blocks(self) -> None:
        """Nothing: the blocks are the library's, and are used as they are."""

    def shard_units(self) -> list[type[torch.nn.Module]]:
        """A transformer layer."""
        return [PhiDecoderLayer]

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
