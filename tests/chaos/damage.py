"""Ways to damage files, each drawn from a generator; none writes in place, for copies share what they link."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

from safetensors.torch import load_file, save_file

FLIP, CUT, EMPTY, GONE = "flipped bit", "cut", "emptied", "removed"


def replace(path: Path, content: bytes) -> None:
    """Gives the name other content; whoever links to the former keeps it."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def damage_file(path: Path, how: str, rng: Random, first_bytes: int | None = None) -> str:
    """Damages a file; returns what was done. first_bytes: a flip lies among these."""
    content = bytearray(path.read_bytes())
    if how == GONE:
        path.unlink()
        return f"{path.name} removed"
    if how == EMPTY:
        replace(path, b"")
        return f"{path.name} emptied"
    if how == CUT:
        size = rng.randrange(1, len(content))
        replace(path, bytes(content[:size]))
        return f"{path.name} cut from {len(content)} to {size} bytes"
    place, bit = rng.randrange(first_bytes or len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    replace(path, bytes(content))
    return f"{path.name}: bit {bit} of byte {place} flipped"


def header_bytes(path: Path) -> int:
    """Length of a safetensors file's header with the eight bytes before it."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def alter_state(path: Path, rng: Random) -> str:
    """Alters a checkpoint's state.json so that it stays JSON; returns what was done."""
    state: dict[str, Any] = json.loads(path.read_text())
    what = rng.choice(["step", "optimizer_steps", "adam_steps", "lost", "retyped", "extra", "world_size", "format"])
    if what == "lost":
        key = rng.choice(sorted(state))
        del state[key]
        said = f"{key} lost"
    elif what == "retyped":
        key = rng.choice(["step", "files", "kinds", "parameters", "extra", "world_size"])
        state[key] = rng.choice([None, "1", [], -1, 1.5, True])
        said = f"{key} is {state[key]!r}"
    elif what == "extra":
        state["extra"]["watch"] = {"altered": rng.randrange(100)}
        said = "extra altered"
    elif what == "format":
        state["format"] = rng.choice([0, 1])
        said = f"format is {state['format']}"
    else:
        state[what] += rng.choice([-2, -1, 1, 2, 100])
        said = f"{what} is {state[what]}"
    replace(path, json.dumps(state, indent=1).encode())
    return f"{path.parent.name}/{path.name}: {said}"


def lose_key(path: Path, rng: Random) -> str:
    """Writes a safetensors file anew without one of its tensors; returns what was done."""
    tensors = load_file(path)
    key = rng.choice(sorted(tensors))
    del tensors[key]
    temporary = path.with_name(path.name + ".new")
    save_file(tensors, temporary)
    os.replace(temporary, path)
    return f"{path.name}: {key} lost"


def restore(folder: Path, backup: Path) -> None:
    """Puts a folder back as its backup has it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(backup, folder)
