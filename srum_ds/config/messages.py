"""Settings in words: what a type allows, and which known key a mistyped one was meant to be."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from srum_ds.common.errors import UserError
from srum_ds.config.marks import JudgeList, OneOf

_ELSEWHERE = {
    "learning_rate": "train.lr",
    "batch_size": "rollout.prompts_per_step",
    "group_size": "rollout.images_per_prompt",
    "num_generations": "rollout.images_per_prompt",
    "num_samples": "rollout.images_per_prompt",
    "guidance_scale": "rollout.text_scale",
    "cfg_scale": "rollout.text_scale",
    "num_inference_steps": "rollout.num_timesteps",
    "max_steps": "train.steps",
    "output_dir": "run.dir",
    "model_name_or_path": "model.path",
}
"""What other trainers call a setting, in letters that are like those of another one here."""


def nearest(key: str, known: Sequence[str]) -> str:
    """The known ``section.name`` that ``key`` most probably meant."""
    key = key.lower()
    name = key.rsplit(".", 1)[-1]
    if _ELSEWHERE.get(name) in known:
        return _ELSEWHERE[name]
    # The right name in the wrong section (or in none) is the commonest slip.
    same_name = [other for other in known if other.split(".")[1] == name]
    if same_name:
        return difflib.get_close_matches(key, same_name, n=1, cutoff=0.0)[0]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return close[0]
    names = difflib.get_close_matches(name, [other.split(".")[1] for other in known], n=1, cutoff=0.6)
    if names and "." not in key:
        return next(other for other in known if other.split(".")[1] == names[0])
    return difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]


def is_text(kind: Any) -> bool:
    """Whether values of this (annotated) type are words, which need no YAML on the command line."""
    if typing.get_origin(kind) is Annotated:
        return is_text(typing.get_args(kind)[0])
    return kind is str or typing.get_origin(kind) is Literal


def switch(kind: Any, value: Any) -> Any:
    """YAML reads a bare on or off as a truth value; it is the word again where a setting has these words."""
    words = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    return ("on" if value else "off") if isinstance(value, bool) and {"on", "off"} <= set(words) else value


def wants_text(kind: Any) -> bool:
    """Whether a setting holds text, a list of texts, or one of these or nothing; no truth value belongs there."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Annotated:
        return wants_text(parts[0])
    if typing.get_origin(kind) in (typing.Union, UnionType, tuple):
        texts = [part for part in parts if part not in (type(None), Ellipsis)]
        return all(wants_text(part) for part in texts)
    return is_text(kind)


def is_options(kind: Any) -> bool:
    """Whether values of this type are mappings of further settings."""
    return typing.get_origin(kind) is dict


def marks(kind: Any) -> list[Any]:
    """What an annotated type says beside its type, in all of its alternatives."""
    if typing.get_origin(kind) is Annotated:
        return list(typing.get_args(kind)[1:])
    if typing.get_origin(kind) in (typing.Union, UnionType):
        return [mark for part in typing.get_args(kind) for mark in marks(part)]
    return []


def expected(kind: Any) -> str:
    """What values an annotated type allows, such as "a whole number of at least 1"."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return f"a list: each {expected(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: each {expected(arguments[0])}"
    if origin in (typing.Union, UnionType):
        return " or ".join(expected(part) for part in arguments)
    if origin is dict:
        return "settings by name"
    if origin is Annotated:
        names = [mark for mark in arguments[1:] if isinstance(mark, OneOf)]
        if names:
            return f"one of {', '.join(names[0].names())}, or your own as module:name or file.py:name"
        lists = [mark for mark in arguments[1:] if isinstance(mark, JudgeList)]
        if lists:
            return lists[0].words
        limits = [_limit(part) for part in arguments[1:]]
        return " ".join([expected(arguments[0]), " and ".join(limit for limit in limits if limit)]).strip()
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "null",
    }
    return words[kind]


def _limit(part: Any) -> str:
    if isinstance(part, Ge) and isinstance(part.ge, float) and 0 < part.ge < 1e-6:
        # The least that does not overflow when something is divided by it.
        return f"above 0 (at least {part.ge:g})"
    if isinstance(part, Ge):
        return f"of at least {part.ge}"
    if isinstance(part, Gt):
        return f"above {part.gt}"
    if isinstance(part, Le):
        return f"at most {part.le}"
    if isinstance(part, Lt):
        return "finite" if part.lt == float("inf") else f"below {part.lt}"
    if isinstance(part, MinLen):
        return "that is not empty"
    return ""


def refuse_others(overrides: Sequence[str], allowed: Sequence[str], why: str) -> None:
    """Raises UserError for a ``key=value`` whose key is none of ``allowed`` (keys, or whole sections)."""
    for word in overrides:
        key = word.partition("=")[0].strip()
        if key not in allowed and key.partition(".")[0] not in allowed:
            raise UserError(f"'{word}': {why} Settings that may be given: {', '.join(allowed)}.")
