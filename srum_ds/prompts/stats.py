"""What a folder of prompt shards holds, in figures: counts, lengths, phrases, and texts that occur more than once."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.shards import load_index
from srum_ds.types import Prompt

SHOWN_TEXTS = 3


@dataclass(frozen=True)
class Spread:
    """The smallest, median, mean and largest of a number that each prompt has."""

    smallest: int
    median: float
    mean: float
    largest: int

    @classmethod
    def of(cls, numbers: list[int]) -> Spread:
        """Of at least one number."""
        return cls(min(numbers), statistics.median(numbers), statistics.fmean(numbers), max(numbers))


@dataclass(frozen=True)
class SplitStats:
    """A split's figures.

    prompts: how many. categories: prompts by category. words, characters: of a prompt's text; words are what stands
    between blanks. with_phrases: prompts that name objects. phrases: of a prompt that names some, None where none does.
    distinct_phrases: over the split. repeated: prompts whose text stood in the split before.
    """

    prompts: int
    categories: Mapping[str, int]
    words: Spread
    characters: Spread
    with_phrases: int
    phrases: Spread | None
    distinct_phrases: int
    repeated: int


@dataclass(frozen=True)
class Shared:
    """Texts that two splits have in common. texts: how many. prompts: of the second split, with such a text.

    examples: the first few, in the second split's order.
    """

    first: str
    second: str
    texts: int
    prompts: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class PromptStats:
    """A folder's figures: of each split, and what every two splits share, where they share something."""

    splits: Mapping[str, SplitStats]
    shared: tuple[Shared, ...]

    def facts(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return asdict(self)


def prompt_stats(folder: Path) -> PromptStats:
    """Reads every prompt of a folder of shards once. UserError for a folder or a shard that cannot be read."""
    splits: dict[str, SplitStats] = {}
    texts: dict[str, Counter[str]] = {}
    for name in load_index(folder):
        with PromptReader(folder, name) as reader:
            prompts = list(reader)
        texts[name] = Counter(_same_text(prompt.text) for prompt in prompts)
        splits[name] = split_stats(prompts)
    shared = [_shared(a, texts[a], b, texts[b]) for a, b in combinations(texts, 2)]
    return PromptStats(splits, tuple(found for found in shared if found.texts))


def split_stats(prompts: Iterable[Prompt]) -> SplitStats:
    """The figures of some prompts, at least one."""
    found = list(prompts)
    texts = [prompt.text for prompt in found]
    named = [prompt.phrases for prompt in found if prompt.phrases]
    return SplitStats(
        prompts=len(found),
        categories=dict(Counter(prompt.category for prompt in found)),
        words=Spread.of([len(text.split()) for text in texts]),
        characters=Spread.of([len(text) for text in texts]),
        with_phrases=len(named),
        phrases=Spread.of([len(phrases) for phrases in named]) if named else None,
        distinct_phrases=len({phrase for phrases in named for phrase in phrases}),
        repeated=len(found) - len({_same_text(text) for text in texts}),
    )


def _same_text(text: str) -> str:
    """Texts that differ in blanks and capitals alone are one: they ask for the same picture."""
    return " ".join(text.split()).casefold()


def _shared(first: str, ours: Counter[str], second: str, theirs: Counter[str]) -> Shared:
    common = [text for text in theirs if text in ours]
    return Shared(first, second, len(common), sum(theirs[text] for text in common), tuple(common[:SHOWN_TEXTS]))
