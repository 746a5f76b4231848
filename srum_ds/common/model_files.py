"""What a model's folder says of itself, held against its weights before anything is built of it: sizes and kinds.

A configuration that says a thousand million layers would be built for hours, and a pipe among its files be read for
ever, before anyone compares names.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError

_REPEATED = re.compile(r"(?<!window_)(layers|depths?|blocks|experts|layers_per_block|n_layer)$")
_SIZE = re.compile(r"(size|sizes|positions?|embeddings?|dim|dims|heads|channels|features|width|length|patches|seqlen)$")
LARGEST = 10**8
"""Above every width, vocabulary and length of a model."""
MOST_LAYERS = 1000
"""Above every model's number of layers, for a folder without weights."""
_CONFIGURATIONS = ("config.json", "llm_config.json", "vit_config.json")
_MOST_BYTES = 1 << 20
_DEEPEST = 3
_LONGEST_HEADER = 100 << 20


def refuse_special_files(folder: Path) -> None:
    """UserError where something in a model's folder is neither a file nor a folder."""
    for path in files_inside(folder):
        with suppress(OSError):
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UserError(
                    f"{path} is a pipe, a device or a socket, expected a file: reading it might never end. Put the "
                    "release's file there."
                )


def refuse_wild_sizes(folder: Path) -> None:
    """UserError where a configuration says more layers than its weights have tensors, or a size beyond any model's.

    Layers of a folder without weights are held against ``MOST_LAYERS``.
    """
    tensors = sum(_tensors(path) for path in files_inside(folder) if path.suffix == ".safetensors") or MOST_LAYERS
    for path in files_inside(folder):
        if path.name in _CONFIGURATIONS:
            for name, number in _numbers(_read(path)):
                key = name.rpartition(".")[2]
                if _REPEATED.search(key) and number > tensors:
                    raise UserError(
                        f"{path}: {name} is {number}, but the weights in {folder} have {tensors} tensors: they do not "
                        "fit. Put the release's value there."
                    )
                if number > LARGEST and _SIZE.search(key):
                    raise UserError(
                        f"{path}: {name} is {number}, expected at most {LARGEST}. Put the release's value there."
                    )


def files_inside(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, hidden ones apart."""
    for here, names, files in os.walk(folder):
        if len(Path(here).relative_to(folder).parts) >= _DEEPEST:
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (Path(here) / name for name in sorted(files) if not name.startswith("."))


def _tensors(path: Path) -> int:
    """How many tensors the header of a safetensors file names; 0 where it is none, which its reader says."""
    return len(tensor_header(path) or ())


def tensor_header(path: Path) -> dict[str, Any] | None:
    """Name -> form (dtype, shape, data_offsets) of the tensors of a safetensors file; None where it is none."""
    with suppress(OSError, ValueError, RecursionError, struct.error), open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length < _LONGEST_HEADER:
            header = json.loads(stream.read(length))
            if isinstance(header, dict):
                return {name: form for name, form in header.items() if name != "__metadata__"}
    return None


def bytes_announced(path: Path) -> int | None:
    """How long a safetensors file is by its own header; None where it has none."""
    header = tensor_header(path)
    if header is None:
        return None
    with suppress(OSError, struct.error, KeyError, TypeError, IndexError, ValueError), open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return 8 + int(length) + max((int(form["data_offsets"][1]) for form in header.values()), default=0)
    return None


def _read(path: Path) -> Any:
    """A configuration's content; nothing where it is none, which its reader says."""
    with suppress(OSError, ValueError, RecursionError):
        return json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size < _MOST_BYTES else None
    return None


def configuration(path: Path) -> dict[str, Any]:
    """A configuration's object; an empty one where there is none, which its reader says."""
    content = _read(path)
    return content if isinstance(content, dict) else {}


def whole_number(content: Any, key: str, default: int) -> int:
    """A whole number above 0 of an object; the default where it says none."""
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else default


def _numbers(content: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """(dotted key, whole number) of everything in a configuration, members of lists by their list's key."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, name)
    elif isinstance(content, int) and not isinstance(content, bool):
        yield name, content
