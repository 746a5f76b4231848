"""WISE's prompts, from the user's own checkout: nothing of it is shipped here. Two editions, two prompt sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.prompts.files import id_of, read_objects, text_of
from srum_ds.types import Prompt

WISE_CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")
_CATEGORY = {
    "cultural knowledge": "culture",
    "time": "time",
    "space": "space",
    "biology": "biology",
    # One record of the rewritten prompts; its number is one of biology's.
    "ecology": "biology",
    "physical knowledge": "physics",
    "chemistry": "chemistry",
}
_STEMS = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
_LEGACY = tuple(f"{stem}.json" for stem in _STEMS)
_VERIFIED = tuple(f"{stem}_verified.json" for stem in _STEMS)
_MERGED = "merge.json"


def read_wise(source: Path) -> dict[str, list[Prompt]]:
    """The prompts of the first edition as one split, "test": 400 of culture and 600 of five other categories.

    source: the checkout of PKU-YuanGroup/WISE (now, or before it had two editions), its folder ``WISE_legacy/data``,
    or one file of such records. The
    rewritten prompts beside them (``*_rewrite.json``) are another question to a model: they are read where named.
    ``meta`` has the explanation, the subcategory and the number. Raises UserError naming file and item.
    """
    return _read(source, "wise", ("WISE_legacy/data", "data"), _LEGACY, (*_VERIFIED, _MERGED))


def read_wise_verified(source: Path) -> dict[str, list[Prompt]]:
    """The prompts of WISE_Verified (2026), likewise; source: the checkout, ``data_verified``, or one file."""
    return _read(source, "wise_verified", ("data_verified",), _VERIFIED, _LEGACY)


def _read(
    source: Path, name: str, folders: tuple[str, ...], files: tuple[str, ...], others: tuple[str, ...]
) -> dict[str, list[Prompt]]:
    folder = folders[0]
    if source.is_dir():
        places = [*(source / inside for inside in folders), source]
        root = next((place for place in places if any((place / file).is_file() for file in files)), source)
        paths = [root / file for file in files]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise UserError(
                f"{root}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there; expected a checkout "
                f"of PKU-YuanGroup/WISE, or its folder {folder}; looked in {', '.join(map(str, places))}"
            )
    elif source.name in others:
        raise UserError(f"{source}: holds the prompts of WISE's other edition; {name} needs those of {folder}")
    else:
        paths = [source]
    prompts: dict[str, Prompt] = {}
    for where, prompt in _prompts(paths, name):
        if prompt.id in prompts:
            raise UserError(f"{where}: the prompt_id {prompt.meta['prompt_id']} occurs twice")
        prompts[prompt.id] = prompt
    return {"test": list(prompts.values())}


def _prompts(paths: list[Path], name: str) -> Iterator[tuple[str, Prompt]]:
    for path in paths:
        for where, record in read_objects(path):
            number = id_of(record, "prompt_id", where)
            said = text_of(record, "Category", where)
            category = _CATEGORY.get(said.lower())
            if category is None:
                raise UserError(f"{where}: Category is {said!r}; known are {', '.join(_CATEGORY)}")
            meta: dict[str, Any] = {
                "prompt_id": number,
                "explanation": text_of(record, "Explanation", where),
                "subcategory": text_of(record, "Subcategory", where),
            }
            yield where, Prompt(f"{name}-{number:04d}", text_of(record, "Prompt", where), category, (), meta)
