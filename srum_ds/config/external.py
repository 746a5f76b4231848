"""``judge.external``: who judges beside the model's own judge. One name, or a list of judges with a weight each."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from srum_ds.common.errors import UserError
from srum_ds.config.marks import Count, Seconds, Share, Whole, find_path, find_template
from srum_ds.config.schema import JudgeConfig

Kind = Literal["function", "checkpoint", "http"]
_NEEDS: Mapping[str, str] = {"function": "function", "checkpoint": "path", "http": "url"}
_OF_HTTP = ("url", "model", "template", "concurrency", "timeout", "retries", "max_tokens")
_OF_FUNCTION = ("function", "crops")


@dataclass(frozen=True)
class ExternalJudge:
    """A judge beside the model's own.

    kind: a function of images and prompts, a checkpoint that is asked the same questions, or an OpenAI-compatible
    server. weight: its share of every score that it gives. name: what metrics call it.

    function: ``module:function`` or ``file.py:function``; crops: another one, or the same, for crops of regions; empty:
    the function judges whole images alone. path: of the checkpoint's folder. url: of the server's API;
    model: the name it knows, empty where it has one; template: the question about the whole image, empty:
    ``judge.global_template``; concurrency: requests of a rank in flight; timeout: seconds of one request; retries:
    further attempts; max_tokens: of a reply.
    """

    kind: Kind
    weight: Share = 0.5
    name: str = ""
    function: str = ""
    crops: str = ""
    path: str = ""
    url: str = ""
    model: str = ""
    template: str = ""
    concurrency: Count = 8
    timeout: Seconds = 60.0
    retries: Whole = 3
    max_tokens: Count = 512

    @property
    def what(self) -> str:
        """Who it is: the function, the folder, or the server and its model."""
        return f"{self.url} {self.model}".strip() if self.kind == "http" else self.function or self.path

    @property
    def judges_regions(self) -> bool:
        """Whether it judges regions beside whole images."""
        return self.kind == "checkpoint" or bool(self.crops)


def externals_of(judge: JudgeConfig, secret: bool = False) -> tuple[ExternalJudge, ...]:
    """The judges that ``judge.external`` lists, each with a name of its own.

    secret: whether the setting reads the environment: a judge without a name is then called by its kind, since names
    stand in files and messages.

    An entry without a weight has ``judge.external_weight``. Raises UserError, naming the entry and its key, for one
    that is none, and for weights that sum to more than 1.
    """
    given = judge.external
    if given is None:
        return ()
    if isinstance(given, str):
        return _named([_of_text(given, judge.external_weight, "judge.external")], secret)
    if not isinstance(given, list | tuple):
        raise UserError(f"judge.external={given!r}: expected a name, or a list of judges (docs/judging.md)")
    found = [_entry(entry, judge.external_weight, f"judge.external[{k}]") for k, entry in enumerate(given)]
    total = math.fsum(one.weight for one in found)
    if total > 1 + 1e-9:
        listed = " + ".join(f"{one.weight:g}" for one in found)
        raise UserError(
            f"judge.external: the weights {listed} sum to {total:g}; they are shares of a score, of which the model's "
            f"own judge has the rest: lower them to 1 at most"
        )
    return _named(found, secret)


def own_share(judges: Sequence[ExternalJudge]) -> float:
    """The share in [0, 1] of every score that the model's own judge has beside these; at 0 nobody asks it."""
    rest = 1 - math.fsum(one.weight for one in judges)
    return rest if rest > 1e-9 else 0.0


def _entry(entry: Any, weight: float, where: str) -> ExternalJudge:
    if isinstance(entry, str):
        return _of_text(entry, weight, where)
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{where} is {entry!r}; expected a name, or settings such as {{kind: http, url: ..., weight: 0.2}}"
        )
    known = [one.name for one in fields(ExternalJudge)]
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{where}: unknown key '{key}'; known are {', '.join(known)}{hint}")
    try:
        found = TypeAdapter(ExternalJudge).validate_python({"weight": weight} | dict(entry))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}.{key}: {first['msg']} (got {first['input']!r})") from error
    needed = _NEEDS[found.kind]
    if not getattr(found, needed):
        raise UserError(f"{where}: a judge of the kind {found.kind} needs {needed}")
    others = [name for name in (*_OF_HTTP, *_NEEDS.values(), "crops") if name in entry and not _reads(found.kind, name)]
    if others:
        raise UserError(f"{where}: a judge of the kind {found.kind} does not read {others[0]}; remove it")
    template = find_template(found.template) if found.template else ""
    return replace(found, path=str(find_path(found.path)) if found.path else "", template=template)


def _reads(kind: str, name: str) -> bool:
    further = {"http": _OF_HTTP, "function": _OF_FUNCTION}
    return name == _NEEDS[kind] or name in further.get(kind, ())


def _of_text(text: str, weight: float, where: str) -> ExternalJudge:
    """A checkpoint's folder, or else ``module:function``."""
    if not text:
        raise UserError(f"{where} is empty; expected a checkpoint folder, module:function, or null")
    folder = find_path(text)
    if folder.is_dir():
        return ExternalJudge("checkpoint", weight, path=str(folder))
    if ":" not in text:
        # Whoever asks it finds out whether it is there: a run's recipe is also read where it is not.
        return ExternalJudge("checkpoint", weight, path=text)
    return ExternalJudge("function", weight, function=text)


def _named(found: list[ExternalJudge], secret: bool) -> tuple[ExternalJudge, ...]:
    """The same with names that differ, from each other and from ``own``, and fit a metric's."""
    taken = {"own"}
    named = []
    for one in found:
        last = one.model.rsplit("/", 1)[-1] or "http"
        said = (
            {}
            if secret
            else {"function": one.function.rsplit(":", 1)[-1], "checkpoint": Path(one.path).name, "http": last}
        )
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", one.name or said.get(one.kind, "")).strip("_") or one.kind
        number = 2
        unique = name
        while unique in taken:
            unique = f"{name}_{number}"
            number += 1
        taken.add(unique)
        named.append(replace(one, name=unique))
    return tuple(named)
