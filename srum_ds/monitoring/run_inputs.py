"""What a run was made from, by content: prompts, models, questions, code of the user's.

Paths stay the same while what lies behind them changes. A run keeps a hash of each input in ``inputs.json``; whoever
goes on with it is told what has changed since.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srum_ds.common import heartbeats
from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.common.given import digest_of, given, is_given
from srum_ds.common.texts import parse_json
from srum_ds.config import Config
from srum_ds.config.external import ExternalJudge, externals_of
from srum_ds.config.loading import flat_config
from srum_ds.config.marks import QUESTIONS, ROOT, OneOf, PathOrName, TemplateName
from srum_ds.config.messages import marks
from srum_ds.config.reading import known_keys
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.shards import INDEX, load_index

INPUTS = "inputs.json"
FORKED = "forked_from.json"
"""Which checkpoint of another run a run began with (``run_fork``)."""
ACCEPT = "run.accept_changed_inputs"
# Prompts have a hash of their own split, and judges one each; DeepSpeed's settings change no weight but by rounding.
_OWN_WAY = ("data.shards", "data.prompts", "deepspeed.config", "run.dir", "run.fork", "judge.external")
_HASHED = (".safetensors", ".json", ".jsonl", ".txt", ".py", ".yaml", ".model")
# What ranks say of themselves beside what they write.
_SIGNS = (heartbeats.FOLDER, "crash")
# Larger files are hashed by their size and pieces: a model of 28 GB would take a minute at each start.
_WHOLE = 16 << 20
_PIECE = 1 << 16
_PIECES = 32


def check_inputs(run_dir: Path, cfg: Config, begun: bool) -> list[str]:
    """Compares the inputs with those that the run began with, and notes them where it has not begun.

    Returns, in words, the changes that ``run.accept_changed_inputs`` has let pass; ``inputs.json`` keeps them. Raises
    UserError naming the settings whose files have changed.
    """
    path = run_dir / INPUTS
    found = inputs_of(cfg)
    kept = _read(path) if begun else None
    if kept is None:
        # New, or begun by a version that kept none.
        _write(path, found, [])
        return []
    before: dict[str, str] = kept["inputs"]
    changed = [key for key in sorted(before.keys() | found.keys()) if before.get(key) != found.get(key)]
    if not changed:
        return []
    told = [f"{key}={_shown(cfg, key)}" for key in changed]
    if not cfg.run.accept_changed_inputs:
        raise UserError(
            f"{run_dir} was begun with other contents of {', '.join(told)}: what lies there has changed since. Put it "
            f"back, give another run.dir, or accept the change with {ACCEPT}=true, which is recorded."
        )
    accepted = {key: [before.get(key), found.get(key)] for key in changed}
    _write(path, found, [*kept["accepted"], accepted])
    return told


def inputs_of(cfg: Config) -> dict[str, str]:
    """Setting -> SHA-256 of what it names, for everything that is there."""
    return dict(sorted(_inputs(cfg)))


def moved(run_dir: Path, before: Config, now: Config) -> set[str]:
    """Settings that name another place than before, where the same contents lie as the run began with.

    What the run keeps no hash of is compared with what lies at the former place, where that is still there.
    """
    kept, _ = read_inputs(run_dir)
    old, new = flat_config(before), flat_config(now)
    return {key for key in new if key != "run.fork" and old[key] != new[key] and _is_moved(key, kept, before, now)}


def _is_moved(key: str, kept: dict[str, str], before: Config, now: Config) -> bool:
    old, new = flat_config(before)[key], flat_config(now)[key]
    if key == "judge.external":
        judges = [externals_of(cfg.judge, cfg.reads_environment(key)) for cfg in (before, now)]
        placeless = [[_without_place(judge) for judge in own] for own in judges]
        contents = [
            {name: sha for name, sha in of.items() if name.startswith(key)} for of in (kept, dict(_inputs(now)))
        ]
        return placeless[0] == placeless[1] and bool(contents[0]) and contents[0] == contents[1]
    if not any(isinstance(mark, PathOrName | TemplateName) for mark in marks(known_keys()[key])) or None in (old, new):
        return False
    if key == "data.prompts":
        # Their shards are in the run's folder and know the file: ``prompt_folder`` refuses another one.
        return True
    then = kept.get(key) or dict(_contents(key, old)).get(key)
    return then is not None and then == dict(_inputs(now) if key in kept else _contents(key, new)).get(key)


def _without_place(judge: ExternalJudge) -> dict[str, Any]:
    """A judge's settings without the places of its folder and of its functions' files."""
    settings = asdict(judge) | {"path": ""}
    files = {name: text for name, text in settings.items() if str(text).rpartition(":")[0].endswith(".py")}
    return settings | {name: text.rpartition(":")[2] for name, text in files.items()}


def read_inputs(run_dir: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The run's inputs as it keeps them, and for each one that changed, what was accepted in its stead before.

    Nothing where the run keeps none. UserError where they cannot be read.
    """
    kept = _read(run_dir / INPUTS)
    if kept is None:
        return {}, {}
    former: dict[str, list[str]] = {}
    for change in kept["accepted"]:
        for key, (before, _) in change.items():
            former.setdefault(key, []).extend([before] if before else [])
    return dict(kept["inputs"]), former


def _inputs(cfg: Config) -> Iterator[tuple[str, str]]:
    if cfg.train.mode != "offline" and ((folder := prompt_folder(cfg)) / INDEX).is_file():
        shards = load_index(folder).get(cfg.data.split, ())
        yield "data.shards", _digest("".join(f"{shard.sha256} {len(shard.samples)}\n" for shard in shards))
    if (forked := Path(cfg.run.dir) / FORKED).is_file():
        yield "run.fork", _of_file(forked)
    for key, value in flat_config(cfg).items():
        if key in _OWN_WAY or not isinstance(value, str) or not value:
            continue
        yield from _contents(key, value)
        if any(isinstance(mark, OneOf) for mark in marks(known_keys()[key])) and ":" in value:
            yield from _of_code(key, value)
    for judge in externals_of(cfg.judge, cfg.reads_environment("judge.external")):
        if judge.path:
            yield from _of_path(f"judge.external.{judge.name}", Path(judge.path))
        if judge.function:
            yield from _of_code(f"judge.external.{judge.name}", judge.function)
        if judge.crops:
            yield from _of_code(f"judge.external.{judge.name}.crops", judge.crops)


def _contents(key: str, value: str) -> Iterator[tuple[str, str]]:
    """The key and the hash of what a path or a template's name means; nothing where it is neither, or not there."""
    kinds = marks(known_keys()[key])
    if any(isinstance(mark, TemplateName) for mark in kinds):
        own = ROOT / QUESTIONS / f"{value}.jinja"
        yield from _of_path(key, own if own.is_file() else Path(value))
    elif any(isinstance(mark, PathOrName) for mark in kinds):
        yield from _of_path(key, Path(value))


def _of_path(key: str, path: Path) -> Iterator[tuple[str, str]]:
    try:
        if path.is_file():
            yield key, _of_file(path)
        elif path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix in _HASHED and file.is_file())
            named = [(file.relative_to(path), file) for file in inside]
            visible = [(name, file) for name, file in named if not any(_is_hidden(part) for part in name.parts)]
            yield key, _digest("".join(f"{name.as_posix()} {_of_file(file)}\n" for name, file in visible))
    except OSError as error:
        raise UserError(
            f"{error.filename or path}, of {key}, could not be read ({error.strerror or error}). That says nothing of "
            "the run, and nothing was touched: see to the disk, and run the same command again."
        ) from error


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part in _SIGNS


def _of_code(key: str, name: str) -> Iterator[tuple[str, str]]:
    """The file of ``file.py:name`` or ``module:name``, the source of ``python:name``; nothing where there is none."""
    if is_given(name):
        yield key, digest_of(given(name, key))
        return
    source = name.rpartition(":")[0]
    path = Path(source).expanduser()
    if not source.endswith(".py"):
        beside = Path(*source.split(".")).with_suffix(".py")
        try:
            found = None if beside.is_file() else importlib.util.find_spec(source)
        except (ImportError, ValueError):
            return
        path = Path(found.origin or "") if found is not None else beside
    if path.is_file():
        yield from _of_path(key, path)


def _of_file(path: Path) -> str:
    """SHA-256 of a file; of a large one over its size, its beginning, its end and pieces between."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        if size <= _WHOLE:
            digest.update(stream.read())
            return digest.hexdigest()
        # The beginning holds the header of a file of tensors: names, types and places.
        digest.update(stream.read(_WHOLE // 4))
        for number in range(_PIECES):
            stream.seek(size // _PIECES * number)
            digest.update(stream.read(_PIECE))
        stream.seek(size - _PIECE)
        digest.update(stream.read())
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(cfg: Config, key: str) -> str:
    """A setting as it was written."""
    known = ".".join(key.split(".")[:2])
    return str(cfg.written(known))


def _read(path: Path) -> dict[str, Any] | None:
    """What the run kept; None where it kept nothing."""
    if not path.exists():
        return None
    try:
        kept: dict[str, Any] = parse_json(path.read_bytes())
        if isinstance(kept["inputs"], dict) and isinstance(kept["accepted"], list):
            return kept
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); repeat the command when it can.") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(
        f"{path}: damaged: it says by which contents the run was begun. Restore it, or remove it to go on unchecked."
    )


def _write(path: Path, found: dict[str, str], accepted: list[dict[str, Any]]) -> None:
    write_atomic(path, json.dumps({"inputs": found, "accepted": accepted}, indent=2) + "\n")
