"""Options that the forms of `srum-ds eval` share. They import nothing heavy: `--help` answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    from srum_ds.evaluation.draw_request import DrawOptions, PromptChoice
    from srum_ds.evaluation.score_request import JudgeChoice

Words = Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class Prompts:
    """Which prompts."""

    prompts: Annotated[Path | None, Parameter(help="File or folder of the benchmark's own prompts.")] = None
    limit: Annotated[int | None, Parameter(help="At most so many prompts, of the categories in turn.")] = None
    categories: Annotated[Words, Parameter(help="Only prompts of these categories.")] = None

    def choice(self, benchmark: str) -> PromptChoice:
        """What the evaluation calls it."""
        from srum_ds.evaluation.draw_request import PromptChoice

        names, _ = split_words(self.categories or ())
        return PromptChoice(benchmark, self.prompts, self.limit, tuple(names))


@Parameter(name="*")
@dataclass(frozen=True)
class Drawn:
    """How pictures are drawn."""

    samples: Annotated[int | None, Parameter(help="Pictures of each prompt (default: the benchmark's protocol).")] = (
        None
    )
    seed: Annotated[int | None, Parameter(help="Seeds the pictures (default: the run's eval.seed).")] = None
    size: Annotated[Words, Parameter(help="Height and width in pixels, such as 512x768.")] = None
    batch: Annotated[int | None, Parameter(help="Pictures drawn at once (default: the run's eval.batch).")] = None

    def options(self, words: Sequence[str]) -> DrawOptions:
        """What the evaluation calls it. UserError for a size that is none."""
        from srum_ds.commands.generate import parse_size
        from srum_ds.evaluation.draw_request import DrawOptions

        numbers, _ = split_words(self.size or ())
        return DrawOptions(tuple(words), self.seed, self.samples, self.batch, parse_size(numbers))


@Parameter(name="*")
@dataclass(frozen=True)
class Judging:
    """Who judges."""

    judge: Annotated[
        str | None,
        Parameter(help="http, transformers, self, replay, or checker: the benchmark looks itself."),
    ] = None
    judge_url: Annotated[str, Parameter(help="Of an OpenAI-compatible server, such as http://host:8000/v1.")] = ""
    judge_model: Annotated[str, Parameter(help="The judge's name on that server, or its folder or hub id.")] = ""
    replies: Annotated[Words, Parameter(help="Files of recorded replies (--judge replay).")] = None
    detections: Annotated[Path | None, Parameter(help="File of boxes that a detector has found.")] = None
    detector: Annotated[str, Parameter(help="Folder or hub id of a detector that finds them now.")] = ""
    concurrency: Annotated[int, Parameter(help="Requests in flight at once.")] = 8
    timeout: Annotated[float, Parameter(help="Seconds for one request.")] = 120.0
    retries: Annotated[int, Parameter(help="Further attempts after the first.")] = 4
    failures: Annotated[
        Literal["exclude", "zero"], Parameter(help="Whether failed pictures are left out of means, or count as zero.")
    ] = "exclude"
    srum_compat: Annotated[bool, Parameter(negative=(), help="SRUM's released arithmetic (its -1s count).")] = False

    def choice(self, kind: str) -> JudgeChoice:
        """What the evaluation calls it. UserError for an unknown judge and for numbers out of range."""
        from srum_ds.evaluation.score_request import JudgeChoice

        files = tuple(Path(word) for word in self.replies or ())
        choice = JudgeChoice(
            kind,
            self.judge_url,
            self.judge_model,
            files,
            self.detections,
            self.detector,
            self.concurrency,
            self.timeout,
            self.retries,
        )
        choice.check()
        return choice


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names, key=value): an option that takes several words takes the settings behind them too."""
    return [word for word in words if "=" not in word], [word for word in words if "=" in word]


def settings_behind(prompts: Prompts, drawn: Drawn) -> list[str]:
    """The key=value that stood behind --categories and --size."""
    return [*split_words(prompts.categories or ())[1], *split_words(drawn.size or ())[1]]


def one_folder(arguments: Sequence[str], what: str) -> tuple[Path, list[str]]:
    """The folder and the settings of ``FOLDER [key=value ...]``. UserError for none or several folders."""
    folders, words = split_words(arguments)
    if len(folders) != 1:
        found = " ".join(folders) or "none"
        raise UserError(f"expected one {what} and then key=value settings; found {found}.")
    return Path(folders[0]), words
