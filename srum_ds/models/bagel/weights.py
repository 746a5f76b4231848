"""BAGEL checkpoint folders: strict loading, and export in the very same layout."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.models.bagel.latents import Autoencoder

WEIGHT_FILES = ("ema.safetensors", "model.safetensors")
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
)
CONFIG_FILES = ("config.json", "llm_config.json", "vit_config.json", "generation_config.json")

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
FLOATS = ("F32", "F16", "BF16", "F64")


def weight_files(folder: Path) -> dict[str, Path]:
    """Which file holds each key of the model, from the files' headers alone.

    Raises UserError when the folder holds no weights or a file is damaged.
    """
    folder = Path(folder)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            entries = {str(key): str(name) for key, name in json.loads(index.read_text())["weight_map"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{index} is not a safetensors index ({type(error).__name__}): expected the key weight_map, an object "
                "of KEY: FILE; copy it again."
            ) from None
        missing = sorted({name for name in entries.values() if not (folder / name).exists()})
        if missing:
            raise UserError(f"{index} names {', '.join(missing)}, which is not in {folder}; copy it there.")
        return {key: folder / name for key, name in entries.items()}
    for name in WEIGHT_FILES:
        path = folder / name
        if path.exists():
            with open_weights(path) as handle:
                return dict.fromkeys(handle.keys(), path)
    raise UserError(
        f"{folder} holds none of {', '.join(WEIGHT_FILES)} or *.safetensors.index.json; copy the weights there."
    )


def open_weights(path: Path) -> safe_open:
    """A safetensors file open for reading; UserError when it is missing or damaged."""
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy it from the release into this folder.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy it again.") from None


def check_weights(module: nn.Module, folder: Path) -> None:
    """Compares a module's tensors with the folder's, from the files' headers alone.

    Every key must be there with its shape, and no other: UserError lists what differs.
    """
    files = weight_files(folder)
    wanted = _tensors(module)
    present: set[str] = set()
    misshapen = []
    for path in sorted(set(files.values())):
        with open_weights(path) as handle:
            for key in handle.keys():
                present.add(key)
                if key not in wanted:
                    continue
                found = tuple(handle.get_slice(key).get_shape())
                expected = tuple(wanted[key].shape)
                if found != expected:
                    misshapen.append(f"{key} is {list(found)}, expected {list(expected)}")
                elif (kind := handle.get_slice(key).get_dtype()) not in FLOATS:
                    misshapen.append(f"{key} is of type {kind}, expected one of {', '.join(FLOATS)}")
    missing = sorted(set(wanted) - present)
    unexpected = sorted(present - set(wanted))
    problems = []
    if missing:
        problems.append("missing: " + _some(missing))
    if unexpected:
        problems.append("unexpected: " + _some(unexpected))
    if misshapen:
        problems.append("misshapen: " + _some(sorted(misshapen)))
    if problems:
        raise UserError(
            f"the weights in {folder} do not fit its configuration. " + "; ".join(problems) + ". "
            "Check that llm_config.json, vit_config.json and config.json belong to these weights."
        )


def stored_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields (key, tensor) for every tensor of the folder, in its stored dtype, one at a time.

    The tensors are windows on the memory-mapped files: no memory of one's own until they are copied,
    and a part that nobody reads is not read from the disk either.
    """
    for path in sorted(set(weight_files(folder).values())):
        with open_weights(path) as handle:
            for key in handle.keys():
                yield key, handle.get_tensor(key)


@torch.no_grad()
def fill(module: nn.Module, stored: Iterable[tuple[str, Tensor]]) -> None:
    """Copies stored tensors into the module's of the same names, in the module's dtype."""
    wanted = _tensors(module)
    for key, tensor in stored:
        if key in wanted:
            wanted[key].copy_(tensor)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    return tensors | dict(module.named_buffers())


def load_autoencoder(autoencoder: Autoencoder, path: Path) -> None:
    """Loads ``ae.safetensors`` (FLUX's key names) into the diffusers module, strictly."""
    levels = len(autoencoder.config.ch_mult)
    wanted = {_flux_name(name, levels) for name in autoencoder.kl.state_dict()}
    with open_weights(path) as handle:
        stored = {key: handle.get_tensor(key) for key in handle.keys()}
    if stored.keys() != wanted:
        raise UserError(
            f"{path} does not fit config.json's vae_config. "
            f"missing: {_some(sorted(wanted - stored.keys()))}; "
            f"unexpected: {_some(sorted(stored.keys() - wanted))}."
        )
    config = {"down_block_types": autoencoder.kl.config.down_block_types}
    config["up_block_types"] = autoencoder.kl.config.up_block_types
    converted = convert_ldm_vae_checkpoint(stored, config)
    misshapen = [
        f"{_flux_name(name, levels)} is {list(converted[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in autoencoder.kl.state_dict().items()
        if converted[name].shape != tensor.shape
    ]
    if misshapen:
        raise UserError(f"{path} does not fit config.json's vae_config. misshapen: {_some(sorted(misshapen))}.")
    autoencoder.kl.load_state_dict(converted)


_TO_FLUX = (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("attn_1.group_norm", "attn_1.norm"),
    ("attn_1.to_q", "attn_1.q"),
    ("attn_1.to_k", "attn_1.k"),
    ("attn_1.to_v", "attn_1.v"),
    ("attn_1.to_out.0", "attn_1.proj_out"),
    ("down_blocks.", "down."),
    (".resnets.", ".block."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


def _flux_name(name: str, levels: int) -> str:
    """FLUX's name of a key of diffusers' AutoencoderKL; FLUX counts the decoder's levels from the image."""
    for ours, theirs in _TO_FLUX:
        name = name.replace(ours, theirs)
    parts = name.split(".")
    if parts[1] == "up_blocks":
        parts[1:3] = ["up", str(levels - 1 - int(parts[2]))]
    return ".".join(parts)


def save_autoencoder(autoencoder: Autoencoder, path: Path) -> None:
    """Writes ``ae.safetensors`` in FLUX's key names and shapes, in the weights' own dtype.

    ``load_autoencoder`` reads it back bit for bit. UserError when the file cannot be written.
    """
    levels = len(autoencoder.config.ch_mult)
    stored: dict[str, Tensor] = {}
    for name, tensor in autoencoder.kl.state_dict().items():
        key = _flux_name(name, levels)
        # FLUX's attention projections are 1 x 1 convolutions.
        is_projection = ".attn_1." in key and tensor.ndim == 2
        stored[key] = tensor[:, :, None, None] if is_projection else tensor
    shapes = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in sorted(stored.items())}
    write_safetensors(Path(path), shapes, ((key, stored[key]) for key in shapes))


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "") if names else "none"


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor | None]],
) -> None:
    """Streams one safetensors file: the header first, then one tensor at a time, then the rename.

    ``tensors`` must yield exactly the keys of ``shapes`` in their order. A crash or a full disk
    leaves no file of that name (or the earlier one untouched).
    """
    header: dict[str, object] = {}
    offset = 0
    for key, (dtype, shape) in shapes.items():
        count = 1
        for side in shape:
            count *= side
        size = count * torch.empty(0, dtype=dtype).element_size()
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    encoded += b" " * (-len(encoded) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as out:
            out.write(struct.pack("<Q", len(encoded)))
            out.write(encoded)
            expected = iter(shapes.items())
            for key, tensor in tensors:
                name, (dtype, shape) = next(expected)
                if tensor is None:
                    raise ValueError(f"{path}: {key} is on another rank")
                if name != key or tuple(tensor.shape) != tuple(shape):
                    raise ValueError(f"expected {name} {shape}, got {key} {tuple(tensor.shape)}")
                if tensor.numel():
                    flat = tensor.detach().to("cpu", dtype).contiguous().view(-1)
                    out.write(flat.view(torch.uint8).numpy().data)
                    del flat
                # Whoever makes the next tensor must not find this one still held.
                del tensor
            if next(expected, None) is not None:
                raise ValueError(f"{path}: fewer tensors than announced")
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({offset / 1e6:.0f} MB): {error}. Free space or choose another folder."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def export_folder(
    source: Path,
    target: Path,
    names: Iterable[str],
    tensors: Iterable[tuple[str, Tensor | None]],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a BAGEL folder: ``source``'s with the tensors called ``names`` replaced.

    tensors: the (name, tensor) pairs in the order of ``names``, so that a caller can stream them one
    at a time; they are stored in ``dtype`` (None: as the source stores them). Frozen tensors, the
    autoencoder, configuration and tokenizer are copied unchanged.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        raise UserError(f"refusing to export over the model's own folder {source}; choose another one.")
    target.mkdir(parents=True, exist_ok=True)
    for name in (*CONFIG_FILES, *TOKENIZER_FILES, "ae.safetensors"):
        if (source / name).exists():
            _copy(source / name, target / name)
    files = weight_files(source)
    trained = list(names)
    unknown = sorted(set(trained) - set(files))
    if unknown:
        raise ValueError(f"trained tensors the source does not have: {_some(unknown)}")
    handles = {path: open_weights(path) for path in set(files.values())}
    frozen = sorted(set(files) - set(trained))
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for key in (*trained, *frozen):
        piece = handles[files[key]].get_slice(key)
        kept = _DTYPES[piece.get_dtype()]
        shapes[key] = (dtype if dtype is not None and key in set(trained) else kept, tuple(piece.get_shape()))
    unchanged = ((key, handles[files[key]].get_tensor(key)) for key in frozen)
    write_safetensors(target / "ema.safetensors", shapes, chain(tensors, unchanged))


def _copy(source: Path, target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {target}: {error}. Free space or choose another folder.") from error
