"""A folder of pictures, and what each was worth: what drawing, scoring and the report hand to each other.

DIR/prompts.jsonl            the prompts (srum_ds.prompts.records)
DIR/drawn.json               which benchmark, model, sampler and seed made the pictures; absent where another tool did
DIR/images/ID_000.png        picture 0 of the prompt ID
DIR/results.json, eval.md, report.html, replies.jsonl        what ``srum-ds eval score`` adds
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from srum_ds.evaluation.benchmarks import Grade
from srum_ds.types import Prompt

PROMPTS = "prompts.jsonl"
DRAWN = "drawn.json"
IMAGES = "images"
RESULTS = "results.json"
MARKDOWN = "eval.md"
REPORT = "report.html"


def picture_path(folder: Path, prompt_id: str, sample: int) -> Path:
    """Where a picture lies: named by the prompt's id, percent-encoded where it would be no plain file name."""
    name = quote(prompt_id, safe=" !#$&'()+,;=@[]{}~^")
    return folder / IMAGES / f"{name}_{sample:03d}.png"


@dataclass(frozen=True)
class Scored:
    """One picture of a prompt and its grade. picture: its path, from the folder on. sample: from 0."""

    prompt: Prompt
    sample: int
    picture: str
    grade: Grade
