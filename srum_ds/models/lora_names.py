"""Names of an adapter's parameters and of the modules it binds to: nothing heavy is imported here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from srum_ds.common.errors import UserError

ADAPTER = "default"
"""peft's name of the only adapter."""

PARTS = ("lora_A", "lora_B")


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return any(f".{part}.{ADAPTER}." in name for part in PARTS)


def match_targets(candidates: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """The candidate modules that any target names, in the candidates' order.

    A target is a module's dotted name or an end of it (``q_proj``, ``mlp.up_proj``); ``*`` stands for
    any characters and ``?`` for one. Raises UserError for a target that names none, with the nearest
    names, and for no targets at all.
    """
    if not targets:
        raise UserError("lora.targets is empty: name at least one module.")
    ends = {name: _ends(name) for name in candidates}
    chosen: set[str] = set()
    for target in targets:
        found = [name for name in candidates if any(fnmatchcase(end, target) for end in ends[name])]
        if not found:
            raise UserError(
                f"lora.targets: {target!r} names no module that an adapter can bind to. "
                f"The nearest names are {', '.join(_nearest(target, ends.values()))}."
            )
        chosen.update(found)
    return tuple(name for name in candidates if name in chosen)


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _nearest(target: str, ends: Iterable[list[str]], count: int = 3) -> list[str]:
    known = sorted({end for several in ends for end in several if not end[0].isdigit()})
    return difflib.get_close_matches(target.strip("*."), known, n=count, cutoff=0.0)
