"""Show-o's weights: which file holds them, strict loading, and export in the released layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.models.library import FolderWeights, Part, export_adapted, fill
from srum_ds.models.library.files import copy_file
from srum_ds.models.lora import Binding
from srum_ds.models.showo.config import MAGVIT_FOLDER, WEIGHTS, find_llm, read_json
from srum_ds.models.showo.magvit import Magvit

LLM_FOLDER = "llm"
"""Where export puts the language model's files where they stood outside of the checkpoint's folder."""

_PREFIX = "showo."


def folder_weights(folder: Path, module: nn.Module | None = None) -> FolderWeights:
    """The folder's weights, whose keys are the module's names. module: what may share parameters."""
    folder = Path(folder)
    _refuse_pickles(folder)
    weights = FolderWeights(folder, (Part(files=WEIGHTS),))
    return weights if module is None else weights.settle_ties(module)


def _refuse_pickles(folder: Path) -> None:
    if any((folder / name).exists() for name in WEIGHTS) or list(folder.glob("*.safetensors.index.json")):
        return
    pickled = folder / "pytorch_model.bin"
    if pickled.exists():
        code = (
            "import torch, safetensors.torch as s; "
            f"w = torch.load('{pickled}', map_location='cpu', weights_only=True); "
            f"s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{folder / WEIGHTS[0]}')"
        )
        raise UserError(
            f"{folder} holds its weights as pytorch_model.bin alone, which is not read, since opening it can run code. "
            f'Where you trust its source, write {WEIGHTS[0]} beside it: python -c "{code}"'
        )


def load_magvit(magvit: Magvit, folder: Path, device: torch.device | str) -> None:
    """Fills the picture tokenizer from ``magvitv2/``, strictly, in float32 on a device."""

    def name_of(key: str) -> str | None:
        # The quantiser's tables follow from the number of bits.
        return None if key.startswith("quantize.") else key

    inside = Path(folder) / MAGVIT_FOLDER
    _refuse_pickles(inside)
    weights = FolderWeights(inside, (Part(files=WEIGHTS, name_of=name_of),))
    weights.check(magvit, f"{MAGVIT_FOLDER}/config.json belongs")
    fill(magvit, weights.stored(), torch.float32, device)


def export_folder(
    weights: FolderWeights,
    target: Path,
    names: Iterable[str],
    tensors: Iterable[tuple[str, Tensor | None]],
    dtype: torch.dtype | None,
    binding: Binding | None,
) -> None:
    """Writes the folder with parameters replaced, or with an adapter merged into them; see ``FolderWeights.export``.

    A language model's folder outside of it is copied into it, so that what is written can be moved anywhere.
    """
    target = Path(target)
    if binding is None:
        weights.export(target, names, tensors, dtype)
    else:
        export_adapted(weights, target, binding, tensors, dtype, lambda name: name.removeprefix(_PREFIX))
    values = read_json(weights.folder / "config.json")
    llm = find_llm(weights.folder, values["llm_model_path"])
    if not llm.resolve().is_relative_to(weights.folder.resolve()) or Path(values["llm_model_path"]).is_absolute():
        for path in sorted(llm.iterdir()):
            if path.suffix in (".json", ".txt", ".jinja", ".model"):
                copy_file(path, target / LLM_FOLDER / path.name)
        values["llm_model_path"] = LLM_FOLDER
        write_atomic(target / "config.json", json.dumps(values, indent=2) + "\n")
