"""Gives every prompt its object phrases: the shard's own, the judge's answer, or a plain split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.common.texts import parse_json
from srum_ds.models.protocol import Judge
from srum_ds.rewards.phrases.extract import Phrases, noun_chunks, parse_phrases, split_prompt
from srum_ds.rewards.templates import Template
from srum_ds.types import Prompt

SPACY_MODEL = "en_core_web_sm"


@dataclass(frozen=True)
class Entry:
    """What a prompt was found to ask for. ``source``: shard, ask, spacy or split. reply: as said, if asked."""

    phrases: tuple[str, ...]
    counts: tuple[int, ...]
    source: str
    reply: str | None = None


class PhraseBook:
    """Phrases by prompt text, remembered in memory and, with a folder, from one call of a run to the next.

    mode: ``shard`` takes what the prompt set says; ``ask`` asks the judge, and splits the prompt
    where its reply holds no list; ``split`` splits; ``auto`` takes the shard's phrases where there are
    some, else as ``ask``. An entry once written never changes: a resumed run sees what the killed one saw.

    Each rank writes its own file, ``rank-00000.json`` and so on, and reads them all when it starts, its
    own last, so that another number of ranks starts with everything found so far.

    Args:
        mode: see above.
        template: question with ``prompt``, for ``ask`` and ``auto``.
        max_new_tokens: length of each reply.
        picture_hw: size of the blank image that goes with a question: judges answer about images.
        batch: most prompts in one call.
        folder: where entries are kept; None: nowhere.
        rank: this process's.
        asks: whether ``auto`` may ask the judge; else it splits at once.

    Raises:
        UserError: a template without ``prompt``, a file that is no phrase book, or one made with another
            question or mode.
    """

    def __init__(
        self,
        mode: str,
        template: Template | None = None,
        max_new_tokens: int = 96,
        picture_hw: tuple[int, int] = (64, 64),
        batch: int = 64,
        folder: Path | None = None,
        rank: int = 0,
        asks: bool = True,
    ) -> None:
        if template is not None and "prompt" not in template.variables:
            raise UserError(f"judge template {template.name} never mentions {{{{ prompt }}}}")
        if mode in ("ask", "auto") and template is None:
            raise ValueError(f"mode {mode!r} needs a template")
        self.mode = mode
        self.template = template
        self.max_new_tokens = max_new_tokens
        self.picture_hw = picture_hw
        self.batch = batch
        self.asks = asks
        self.path = None if folder is None else folder / f"rank-{rank:05d}.json"
        self.entries: dict[str, Entry] = {}
        self._saved = 0
        if folder is not None and folder.is_dir():
            own = [self.path] if self.path is not None and self.path.exists() else []
            for path in [p for p in sorted(folder.glob("rank-*.json")) if p != self.path] + own:
                self.entries.update(self._read(path))
            self._saved = len(self.entries) if own else 0

    def complete(self, judge: Judge, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
        """The prompts with ``phrases``, ``meta["counts"]`` and ``meta["phrases_from"]`` filled in.

        What is not known yet is found out, ``ceil(unknown prompts / batch)`` calls of the judge if
        it is asked, and saved.

        Raises:
            UserError: mode ``shard`` and a prompt without phrases.
        """
        unknown = list(dict.fromkeys(p.text for p in prompts if not self._has(p) and p.text not in self.entries))
        if self.mode == "shard" and unknown:
            bare = next(p for p in prompts if not p.phrases)
            raise UserError(
                f"prompt {bare.id!r} has no object phrases, which regions are judged against: add 'phrases' to its "
                f"record in the prompt shard, or set regions.phrases=auto"
            )
        if self.mode == "ask" or (self.mode == "auto" and self.asks):
            self._ask(judge, unknown)
        else:
            self.entries.update((text, split(text)) for text in unknown)
        if len(self.entries) > self._saved:
            self._save()
        return tuple(p if self._has(p) else _with(p, self.entries[p.text]) for p in prompts)

    def _has(self, prompt: Prompt) -> bool:
        return self.mode in ("shard", "auto") and bool(prompt.phrases)

    def _ask(self, judge: Judge, texts: Sequence[str]) -> None:
        assert self.template is not None
        blank = torch.zeros(3, *self.picture_hw)
        for start in range(0, len(texts), self.batch):
            batch = texts[start : start + self.batch]
            questions = [self.template.render(prompt=text) for text in batch]
            replies = judge.answer([blank], questions, self.max_new_tokens, [0] * len(questions))
            for text, reply in zip(batch, replies, strict=True):
                found = parse_phrases(reply, text)
                self.entries[text] = (
                    Entry(found.phrases, found.counts, "ask", reply)
                    if found is not None
                    else replace(split(text), reply=reply)
                )

    # ---- on disk

    def _head(self) -> dict[str, Any]:
        asks = self.mode in ("ask", "auto")
        return {"mode": self.mode, "template": self.template.sha256 if asks and self.template else None}

    def _read(self, path: Path) -> dict[str, Entry]:
        try:
            record = parse_json(path.read_bytes())
            head = {key: record[key] for key in ("mode", "template")}
            entries = {
                text: Entry(tuple(e["phrases"]), tuple(e["counts"]), e["source"], e["reply"])
                for text, e in record["entries"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is no phrase book ({type(error).__name__}: {error}); remove it to find phrases anew"
            ) from error
        if head != self._head():
            raise UserError(
                f"{path} was made with another regions.phrases or another text of regions.phrases_template: put "
                f"these back to go on with this run, or choose another run.dir"
            )
        return entries

    def _save(self) -> None:
        if self.path is None:
            return
        entries = {
            text: {"phrases": list(e.phrases), "counts": list(e.counts), "source": e.source, "reply": e.reply}
            for text, e in self.entries.items()
        }
        write_atomic(self.path, json.dumps(self._head() | {"entries": entries}, indent=1) + "\n")
        self._saved = len(self.entries)


def _with(prompt: Prompt, entry: Entry) -> Prompt:
    meta = {**prompt.meta, "counts": list(entry.counts), "phrases_from": entry.source}
    return replace(prompt, phrases=entry.phrases, meta=meta)


def split(text: str) -> Entry:
    """A prompt's phrases without asking: by spaCy's noun chunks where it is installed, else a plain split."""
    parser = spacy_parser()
    found: Phrases | None = None
    if parser is not None:
        found = noun_chunks(parser(text))
    if found is not None and found.phrases:
        return Entry(found.phrases, found.counts, "spacy")
    found = split_prompt(text)
    return Entry(found.phrases, found.counts, "split")


@lru_cache(maxsize=1)
def spacy_parser() -> Any | None:
    """spaCy's small English pipeline, loaded once, or None where spaCy or that model is not installed."""
    try:
        import spacy

        return spacy.load(SPACY_MODEL)
    except (ImportError, OSError):
        return None
