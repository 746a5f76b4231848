"""Safetensors files: which file of a folder holds which tensor, reading them mapped, and writing one as a stream."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.finite import refuse_not_finite
from srum_ds.common.texts import parse_json

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
STORED_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
"""torch's types by their names in safetensors headers."""

FLOATS = ("F32", "F16", "BF16", "F64")
"""Names of the types that weights may have."""


def weight_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Which file holds each key, from the files' headers alone: an index's shards, or the first of ``names`` there.

    A key that several shards hold is that of the shard that the index names for it. Raises UserError when the folder
    holds no weights, a file is damaged, or shards hold a key twice that the index does not place.
    """
    folder = Path(folder)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            said = parse_json(index.read_text(), object_pairs_hook=_no_key_twice)
            entries = {str(key): str(name) for key, name in said["weight_map"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{index} is not a safetensors index ({type(error).__name__}): expected the key weight_map, an object "
                "of KEY: FILE, each key once; copy it again."
            ) from None
        outside = sorted({name for name in entries.values() if os.path.isabs(name) or ".." in Path(name).parts})
        if outside:
            raise UserError(f"{index} names {', '.join(outside)}, outside {folder}: shards lie in it; copy it again.")
        missing = sorted({name for name in entries.values() if not _is_there(folder / name)})
        if missing:
            raise UserError(f"{index} names {', '.join(missing)}, which is not in {folder}; copy it there.")
        return _held({folder / name for name in entries.values()}, {k: folder / name for k, name in entries.items()})
    names = tuple(names)
    for name in names:
        path = folder / name
        if path.exists():
            return _held({path}, {})
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    hint = (
        f" {', '.join(pickled[:3])} is not read, since opening it can run code: convert it to safetensors."
        if pickled
        else ""
    )
    raise UserError(
        f"{folder} holds none of {', '.join(names)} or *.safetensors.index.json; copy the weights there.{hint}"
    )


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # A name that is too long, or holds a NUL.
        return False


def _held(paths: set[Path], placed: Mapping[str, Path]) -> dict[str, Path]:
    """Which file holds each key; ``placed`` says which one counts."""
    # An index may name a tensor that its file lacks: what the files hold is what counts.
    held: dict[str, Path] = {}
    for path in sorted(paths):
        with open_weights(path) as handle:
            for key in handle.keys():
                if placed.get(key, path) != path:
                    # A stale copy.
                    continue
                if key in held:
                    raise UserError(
                        f"{key} is in {held[key].name} and in {path.name} of {path.parent}, and the index does not say "
                        "which one counts; copy the index of these weights again."
                    )
                held[key] = path
    return held


def open_weights(path: Path) -> safe_open:
    """A safetensors file open for reading; UserError when it is missing or damaged."""
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy it from the release into this folder.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy it again.") from None


def mapped_tensors(files: Mapping[str, Path]) -> Iterator[tuple[str, Tensor, Path]]:
    """Yields (key, tensor, file) for every key of ``files``, in its stored dtype, one at a time.

    The tensors are windows on the memory-mapped files: no memory of one's own until they are copied,
    and a part that nobody reads is not read from the disk either.
    """
    for path in sorted(set(files.values())):
        with open_weights(path) as handle:
            for key in handle.keys():
                if files.get(key) == path:
                    yield key, handle.get_tensor(key), path


def stored_tensor(files: Mapping[str, Path], key: str) -> Tensor:
    """One tensor of ``files``, as stored."""
    with open_weights(files[key]) as handle:
        tensor: Tensor = handle.get_tensor(key)
    return tensor


def stored_forms(files: Mapping[str, Path]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(the type's name in the header, shape) of every key, from the headers alone."""
    forms: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in sorted(set(files.values())):
        with open_weights(path) as handle:
            for key in handle.keys():
                if files.get(key) != path:
                    continue
                piece = handle.get_slice(key)
                forms[key] = (piece.get_dtype(), tuple(piece.get_shape()))
    return forms


def finite_files(folder: Path) -> None:
    """Reads every tensor of every safetensors file in a folder. UserError naming file and tensor of one not finite."""
    for path in sorted(Path(folder).rglob("*.safetensors")):
        with open_weights(path) as handle:
            for key in handle.keys():
                refuse_not_finite(handle.get_tensor(key), f"{path}: {key}")


def some(names: Iterable[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are; ``none`` of an empty one."""
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


def copy_file(source: Path, target: Path) -> None:
    """Copies a file under a name of its own first. UserError where it cannot be written."""
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {target}: {error}. Free space or choose another folder.") from error
