"""Looks at a model's folder: its design, its configuration, its tensors' headers, and the size that it is to draw."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.common.model_files import bytes_announced, files_inside, refuse_special_files, tensor_header
from srum_ds.common.texts import parse_json
from srum_ds.config import Config, externals_of
from srum_ds.models import family_of
from srum_ds.models.protocol import ModelFamily
from srum_ds.preflight.findings import Finding, error, not_checked, ok

MOST_JSON = 2 << 20
"""Bytes of a JSON file up to which it is parsed here; of a longer one, a tokenizer's, its reader says what is wrong."""


def look_at_model(cfg: Config) -> Iterator[Finding]:
    """The folder of ``model.path``: whether it is whole, and draws images of ``rollout.image_size``."""
    path = Path(cfg.model.path)
    if not path.exists():
        yield error(
            "model.path", f"model.path={cfg.written('model.path')}: there is no such folder. {_where_from(cfg)}"
        )
        return
    family = family_of(path, cfg.model.kind)
    problems = list(folder_problems(path, "model.path"))
    yield from problems
    if not problems:
        tensors, size = _weights(path)
        yield ok("model.path", f"{path}: {family.kind}, {tensors} tensors, {size / 1e9:.3g} GB")
    yield from _size(cfg, family, path)


def look_at_judges(cfg: Config) -> Iterator[Finding]:
    """The folders of the checkpoints that ``judge.external`` names."""
    for judge in externals_of(cfg.judge, cfg.reads_environment("judge.external")):
        if judge.kind == "http":
            yield not_checked("judge.external", f"{judge.name}: {judge.url} is asked when the run has drawn")
        if judge.kind != "checkpoint":
            continue
        folder = Path(judge.path)
        if not folder.is_dir():
            yield error(
                "judge.external",
                f"judge.external={judge.path}: there is no such folder; give a checkpoint's folder, module:function or "
                "file.py:function.",
            )
            continue
        kind = family_of(folder).kind
        problems = list(folder_problems(folder, "judge.external"))
        yield from problems or [ok("judge.external", f"{judge.name}: {folder}, {kind}")]


def look_at_segment_anything(cfg: Config) -> Iterator[Finding]:
    """The weights of ``regions.sam_model``, in a folder or in the local cache of Hugging Face, where they are used."""
    name = cfg.regions.sam_model
    if cfg.regions.kind != "sam":
        return
    folder = Path(name)
    if folder.is_dir():
        problems = list(folder_problems(folder, "regions.sam_model"))
        yield from problems or [ok("regions.sam_model", str(folder))]
        return
    cache = hub_cache() / f"models--{name.replace('/', '--')}"
    if any(cache.glob("snapshots/*/config.json")):
        yield ok("regions.sam_model", f"{name} in {cache.parent}")
        return
    yield error(
        "regions.sam_model",
        f"regions.sam_model={name} is neither a folder nor a model in the local cache {cache.parent}: fetch it with "
        f"`hf download {name}`, or set another regions.kind.",
    )


def hub_cache() -> Path:
    """Where Hugging Face's models are kept on this machine."""
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub"))).expanduser()


def folder_problems(folder: Path, part: str) -> Iterator[Finding]:
    """What is wrong with a checkpoint's files as files: JSON, indices, the length of files of tensors."""
    refuse_special_files(folder)
    files = [path for path in files_inside(folder) if path.is_file()]
    for path in files:
        if path.name.endswith(".safetensors.index.json"):
            yield from _index_problems(path, part)
        elif path.suffix == ".json" and path.stat().st_size <= MOST_JSON:
            yield from _json_problems(path, part)
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights:
        yield error(
            part,
            f"{folder} holds no weights (*.safetensors); copy them there. Other formats are not read, since opening "
            "them can run code.",
        )
    for path in weights:
        yield from _length_problems(path, part)


def trained_elements(family: ModelFamily, folder: Path, mode: str) -> int | None:
    """How many numbers a mode trains, from the headers of a folder's tensors; None where nobody can say."""
    if family.trained is None or mode == "lora":
        return None
    shapes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, form in (tensor_header(path) or {}).items():
            if isinstance(form, dict) and isinstance(form.get("shape"), list):
                shapes[name] = math.prod(form["shape"])
    try:
        return sum(shapes[name] for name in family.trained(mode, shapes)) or None
    except UserError:
        # A mode that the design does not have: the settings say so.
        return None


def _size(cfg: Config, family: ModelFamily, path: Path) -> Iterator[Finding]:
    if cfg.train.mode == "offline":
        return
    height, width = cfg.rollout.image_size
    if family.refuses_size is None:
        yield not_checked(
            "image_size", f"{family.kind} says whether it draws {height} x {width} pixels when it is loaded"
        )
        return
    problem = family.refuses_size(path, height, width)
    if problem:
        yield error(
            "image_size",
            f"rollout.image_size=[{height},{width}] is no size that {path} draws: {problem}. Set another one.",
        )
    else:
        yield ok("image_size", f"{height} x {width} pixels")


def _where_from(cfg: Config) -> str:
    hint = "srum_ds/assets/tiny_bagel comes with the package"
    return f"Give a checkpoint folder ({hint}), or download the release into it (docs/models.md)."


def _weights(folder: Path) -> tuple[int, int]:
    """(tensors, bytes) of a folder's files of tensors."""
    files = [path for path in files_inside(folder) if path.suffix == ".safetensors"]
    return sum(len(tensor_header(path) or ()) for path in files), sum(path.stat().st_size for path in files)


def _json_problems(path: Path, part: str) -> Iterator[Finding]:
    try:
        parse_json(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        yield error(part, f"{path} is not valid JSON ({problem}); copy it again from the release.")


def _index_problems(path: Path, part: str) -> Iterator[Finding]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict):
        yield error(
            part,
            f"{path} is not a safetensors index: expected the key weight_map, an object of KEY: FILE; copy it again.",
        )
        return
    missing = sorted({str(name) for name in placed.values() if not (path.parent / str(name)).exists()})
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        yield error(part, f"{path} names {shown}, which is not in {path.parent}; copy it there.")


def _length_problems(path: Path, part: str) -> Iterator[Finding]:
    found = path.stat().st_size
    announced = bytes_announced(path)
    if announced is None:
        yield error(part, f"{path} is not a whole safetensors file: it has no header; copy it again.")
    elif announced != found:
        how = "cut off" if found < announced else "too long"
        yield error(
            part, f"{path} is {how}: its header announces {announced:,} bytes, the file has {found:,}; copy it again."
        )
