"""Whether readers take time linear in what they read: CPU seconds at n and at 8 n of shapes that parsers dislike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks.compbench import released_score
from srum_ds.evaluation.benchmarks.replies import read_object
from srum_ds.evaluation.benchmarks.unigenbench import read_scores
from srum_ds.evaluation.detectors.files import read_detections
from srum_ds.judges.store import read_store
from srum_ds.prompts.records import read_records
from srum_ds.rewards.judge.parsing import parse_regions, parse_reply
from srum_ds.rewards.phrases.extract import parse_phrases, split_prompt
from srum_ds.rewards.regions.ground import parse_boxes
from srum_ds.rewards.templates import Template

TIMES = 8
MOST = 3.0 * TIMES
"""A time that grows by more for 8 times the input is not linear; a quadratic one grows by 64."""
LEAST_SECONDS = 0.02
"""Below this a long input's time says nothing."""

SHAPES: dict[str, str] = {
    name: shape
    for name, shape in zip(
        "brackets braces opened stars digits points dashes quotes newlines blanks spaces tabs hashes pipes thinking "
        "closing scores labels regions objects numbers fractions ranges keys pairs escapes fences rules commas words "
        "letters counted finals decimals boxed parens slashes percents wide articles colons".split(),
        (
            "[",
            "{",
            '[{"a":',
            "*",
            "7",
            ".",
            "-",
            '"',
            "\n",
            "\n \n",
            " ",
            "\t",
            "#",
            "|",
            "<think>",
            "</think>",
            "score ",
            "score: ",
            "region 1 ",
            "object: ",
            "1. ",
            "3/5 ",
            "0.5-0.8 ",
            '{"score": ',
            '{"score": 1} ',
            "\\",
            "```json\n",
            "---\n",
            ", ",
            "a red dog ",
            "a",
            "two ",
            "final score ",
            "1.",
            "\\boxed{",
            "(",
            "/",
            "1% ",
            "７",
            "a the ",
            ":",
        ),
        strict=True,
    )
}

READERS: dict[str, Callable[[str], object]] = {
    "parse_reply": lambda text: parse_reply(text, ("yes", "no")),
    "parse_regions": lambda text: parse_regions(text, 3),
    "parse_boxes": lambda text: parse_boxes(text, (64, 64), "pixels"),
    "parse_phrases": lambda text: parse_phrases(text, "a red dog and two cats"),
    "split_prompt": split_prompt,
    "read_object": read_object,
    "released_score": released_score,
    "read_scores": lambda text: read_scores(text, 2),
    "template": lambda text: Template(text, "t", "0" * 64).render(prompt="a"),
}


def of_files(folder: Path) -> dict[str, Callable[[str], object]]:
    """Readers of files, which write what they are given into ``folder``."""

    def reading(read: Callable[[Path], object]) -> Callable[[str], object]:
        def reader(text: str) -> object:
            path = folder / "input.jsonl"
            path.write_bytes(text.encode())
            return read(path)

        return reader

    return {
        "read_records": reading(read_records),
        "read_detections": reading(read_detections),
        "read_store": reading(lambda path: list(read_store(path))),
    }


@dataclass(frozen=True)
class Growth:
    """What a reader took for a shape of ``length`` characters, and for one of 8 times as many."""

    reader: str
    shape: str
    length: int
    seconds: float
    seconds_of_long: float

    @property
    def ratio(self) -> float:
        """How many times as long the long one took."""
        return self.seconds_of_long / max(self.seconds, 1e-9)

    @property
    def is_linear(self) -> bool:
        """Whether the long one took no more than its length explains."""
        return self.seconds_of_long < LEAST_SECONDS or self.ratio <= MOST


def seconds_of(reader: Callable[[str], object], text: str, repeats: int = 2) -> float:
    """CPU seconds of a reading, the least of several."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        try:
            reader(text)
        except UserError:
            # Refusing takes time too.
            pass
        found.append(time.process_time() - start)
    return min(found)


def growths(length: int, reader: str, read: Callable[[str], object]) -> list[Growth]:
    """A reader's growth for every shape, before and behind words that make it look closer."""
    found = []
    for name, shape in SHAPES.items():
        for kind, before, behind in (("", "", ""), (", labelled", "Score: ", " x"), (", in JSON", '{"a": "', '"}')):
            short, long = (before + shape * (n // len(shape)) + behind for n in (length, TIMES * length))
            found.append(Growth(reader, name + kind, length, seconds_of(read, short), seconds_of(read, long)))
    return found


def all_growths(length: int) -> list[Growth]:
    """Every reader's."""
    with tempfile.TemporaryDirectory() as folder:
        readers = {**READERS, **of_files(Path(folder))}
        return [growth for name, read in readers.items() for growth in growths(length, name, read)]
