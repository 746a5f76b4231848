"""The prompts that a Python program hands over, written into the run's folder, so that a run is bound to them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, write_atomic
from srum_ds.common.texts import require_encodable
from srum_ds.monitoring.run_folder import has_begun
from srum_ds.prompts.own import split_prompts
from srum_ds.prompts.prompt_set import FOLDER
from srum_ds.prompts.shards import INDEX, write_shards
from srum_ds.types import Prompt

TEXTS = "prompts.jsonl"
SHARDS = "prompt_shards"
Given = str | Path | Sequence[str] | Sequence[Prompt]
"""What ``data.prompts`` takes (a file, a URL, a folder), texts, or ``Prompt`` objects."""


@dataclass(frozen=True)
class GivenPrompts:
    """Prompts that are to be written into a run's folder: texts as ``data.prompts``, ``Prompt`` objects as shards.

    Raises UserError for none at all, an empty text, texts beside objects, and two objects of one id.
    """

    prompts: tuple[str | Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("prompts is empty; give texts, Prompt objects, or what data.prompts takes")
        kinds = {str if isinstance(one, str) else type(one) for one in self.prompts}
        if kinds not in ({str}, {Prompt}):
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise UserError(f"prompts holds {names}; expected either texts or srum_ds.types.Prompt objects")
        for number, one in enumerate(self.prompts):
            text = one.text if isinstance(one, Prompt) else one
            if not text.strip():
                raise UserError(f"prompts[{number}] is empty; give it a text")
            require_encodable(text, f"prompts[{number}]")
        ids = [one.id for one in self.prompts if isinstance(one, Prompt)]
        twice = next((name for name in ids if ids.count(name) > 1), None) if len(set(ids)) < len(ids) else None
        if twice is not None:
            raise UserError(f"prompts: two Prompt objects have the id {twice!r}; every one needs its own")

    def settings(self, run_dir: Path) -> dict[str, Any]:
        """The settings that name them, where they will stand: by absolute paths, since relative ones are looked up."""
        run_dir = run_dir.absolute()
        if isinstance(self.prompts[0], str):
            return {"data.prompts": run_dir / TEXTS}
        return {"data.prompts": None, "data.shards": run_dir / SHARDS}

    def write(self, run_dir: Path, train_share: float) -> None:
        """Writes them, the same bytes at every call; what a run that never began has left there is replaced.

        train_share: of ``Prompt`` objects, ``data.train_share``. UserError where the run began with other prompts.
        """
        if isinstance(self.prompts[0], str):
            lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in self.prompts)
            self._write_texts(run_dir, lines.encode())
            return
        with tempfile.TemporaryDirectory(dir=run_dir, prefix=f".{SHARDS}.") as scratch:
            made = Path(scratch) / SHARDS
            made.mkdir()
            objects = [one for one in self.prompts if isinstance(one, Prompt)]
            for split, members in split_prompts(objects, train_share).items():
                write_shards(made, split, members)
            there = run_dir / SHARDS
            if (there / INDEX).is_file() and file_bytes(there / INDEX) == file_bytes(made / INDEX):
                return
            _refuse_others(run_dir, there)
            shutil.rmtree(there, ignore_errors=True)
            made.rename(there)

    def _write_texts(self, run_dir: Path, content: bytes) -> None:
        path = run_dir / TEXTS
        if path.is_file() and file_bytes(path) == content:
            return
        _refuse_others(run_dir, path)
        # Shards of what stood there before; they are made anew.
        shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
        write_atomic(path, content)


def _refuse_others(run_dir: Path, path: Path) -> None:
    if has_begun(run_dir):
        raise UserError(
            f"{run_dir} holds a run that began with other prompts ({path}): give those again to go on with it, or "
            "another run.dir to start a new one"
        )


def given_prompts(prompts: Given | None) -> tuple[GivenPrompts | None, Mapping[str, Any]]:
    """Prompts to be written, if they are objects of this process, and else the settings that name them."""
    if prompts is None:
        return None, {}
    if isinstance(prompts, str | Path):
        return None, {"data.prompts": str(prompts)}
    try:
        members: tuple[Any, ...] = tuple(prompts)
    except TypeError as error:
        raise UserError(
            f"prompts is {type(prompts).__name__}; expected texts, Prompt objects, or a file (data.prompts)"
        ) from error
    return GivenPrompts(members), {}
