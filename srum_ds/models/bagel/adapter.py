"""BAGEL behind the protocols of ``models/protocol.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from srum_ds.models.bagel.adapted import export_adapted, lora_targets
from srum_ds.models.bagel.configuration import read_config
from srum_ds.models.bagel.drawing import BagelPainter
from srum_ds.models.bagel.latents import Autoencoder
from srum_ds.models.bagel.looking import drop_generation
from srum_ds.models.bagel.model import Bagel
from srum_ds.models.bagel.modes import trains_in
from srum_ds.models.bagel.packing import Packed, Part, pack
from srum_ds.models.bagel.tokens import BagelTokenizer
from srum_ds.models.bagel.transformer import MoTLayer
from srum_ds.models.bagel.weights import (
    check_weights,
    export_folder,
    fill,
    load_autoencoder,
    stored_weights,
)
from srum_ds.models.lora import Binding, inject, switched_off
from srum_ds.models.protocol import Materialise


class BagelAdapter(BagelPainter):
    """A BAGEL checkpoint folder, loaded: draws, looks, trains, saves."""

    lora: Binding | None = None
    """What the LoRA adapter is bound to, where there is one."""

    # ---- what trains, what judges

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> Binding:
        """Puts a LoRA adapter on the modules that ``targets`` name, for mode ``lora``.

        targets: see ``match_targets``; none means the projections of the generation experts. The
        adapter changes nothing until it is trained. UserError for a target that names no module.
        """
        if self.lora is not None:
            raise ValueError("this model has an adapter already")
        self.lora = inject(self.module, lora_targets(self.module, targets), rank, alpha, seed)
        return self.lora

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains; ``lora`` needs ``add_lora`` first."""
        if mode == "lora" and self.lora is None:
            raise ValueError("mode lora trains an adapter: call add_lora first")
        return [name for name, _ in self.module.named_parameters() if trains_in(mode, name)]

    def judge_unchanged_by(self, mode: str) -> bool:
        """True for ``generation``: text and vision tokens never touch a ``_moe_gen`` weight.

        True for ``lora`` too: inside ``judging()`` the model is the untrained one.
        """
        return mode in ("generation", "lora")

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Inside, LoRA is off: the model looks as it did before training. No effect without LoRA."""
        with switched_off(self.module):
            yield

    # ---- training

    def shard_units(self) -> list[type[torch.nn.Module]]:
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

    # ---- the checkpoint folder

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
            export_folder(self.folder, folder, names, tensors, dtype)
        else:
            export_adapted(self.folder, folder, self.lora, tensors, dtype)


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
    return BagelAdapter(folder, config, module, autoencoder, tokenizer)
