"""BAGEL behind the protocol of ``srum_ds.models.base``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from srum_ds.errors import UserError
from srum_ds.models.bagel.configuration import read_config
from srum_ds.models.bagel.drawing import BagelPainter
from srum_ds.models.bagel.latents import Autoencoder
from srum_ds.models.bagel.model import Bagel
from srum_ds.models.bagel.packing import Packed, Part, pack
from srum_ds.models.bagel.tokens import BagelTokenizer
from srum_ds.models.bagel.transformer import MoTLayer
from srum_ds.models.bagel.weights import export_folder, load_autoencoder, load_into

GENERATION_PARTS = ("vae2llm.", "llm2vae.", "time_embedder.")
MODES = ("generation", "transformer")


def trains_in(mode: str, name: str) -> bool:
    """Whether training mode ``mode`` trains the parameter called ``name``.

    generation: the generation experts and what only they use. transformer: the released recipe,
    both experts as well, embeddings and heads included.
    """
    generation = "_moe_gen" in name or name.startswith(GENERATION_PARTS)
    if mode == "generation":
        return generation
    if mode == "transformer":
        return generation or name.startswith("language_model.")
    raise UserError(f"model.trains is {mode!r}; BAGEL knows 'generation' and 'transformer'.")


class BagelAdapter(BagelPainter):
    """A BAGEL checkpoint folder, loaded: draws, looks, trains, saves."""

    # ---- what trains, what judges

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains."""
        return [name for name, _ in self.module.named_parameters() if trains_in(mode, name)]

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for ``generation``: text and vision tokens never touch a ``_moe_gen`` weight."""
        return mode == "generation"

    # ---- training

    def leaf_modules(self) -> list[type[torch.nn.Module]]:
        """Module classes that ZeRO-3 gathers as one unit."""
        return [MoTLayer]

    def pack(self, samples: Sequence[Sequence[Part]], always_look: bool = False) -> Packed:
        """Packs training samples for ``losses``, or for an engine's ``("train", packed, ...)``."""
        return pack(samples, self.config, self.module.special, self.module.device, always_look)

    def losses(
        self,
        packed: Packed,
        noise_GC: Tensor,
        time_G: Tensor,
        targets_KMC: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One training forward; see ``Bagel.losses``. Under an engine, call the engine instead."""
        return self.module("train", packed, noise_GC, time_G, targets_KMC)

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block in backward instead of keeping its activations."""
        self.module.enable_checkpointing(enabled)

    # ---- saving

    def export(
        self,
        folder: Path,
        names: Iterable[str],
        tensors: Iterable[tuple[str, Tensor]],
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes the folder this model came from with some tensors replaced, streamed one at a time."""
        export_folder(self.folder, folder, names, tensors, dtype)

    def save(self, folder: Path) -> None:
        """Writes a checkpoint folder with the module's present weights."""
        tensors = dict(self.module.named_parameters())
        export_folder(self.folder, folder, list(tensors), tensors.items())


def load_bagel(
    folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> BagelAdapter:
    """Loads a BAGEL checkpoint folder (the released layout), strictly.

    Raises UserError naming the file or the keys when the folder is not whole or does not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    tokenizer = BagelTokenizer(folder, config.llm.vocab_size)
    with torch.device("meta"):
        module = Bagel(config, tokenizer.special)
        autoencoder = Autoencoder(config.vae)
    module = module.to(dtype).to_empty(device=device)
    load_into(module, folder)
    autoencoder = autoencoder.to_empty(device=device)
    load_autoencoder(autoencoder, folder / "ae.safetensors")
    module.eval().requires_grad_(False)
    autoencoder.eval().requires_grad_(False)
    return BagelAdapter(folder, config, module, autoencoder, tokenizer)
