"""What is looked at before a command starts ranks: the settings first, then everything that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.config import Config, load_config
from srum_ds.preflight.code import look_at_code
from srum_ds.preflight.data import look_at_data
from srum_ds.preflight.findings import Finding, Look, State, error, gathered, ok
from srum_ds.preflight.folder import is_finished, look_at_folder, look_at_run
from srum_ds.preflight.model import look_at_judges, look_at_model, look_at_segment_anything
from srum_ds.preflight.placing import look_at_deepspeed, look_at_ranks, look_at_room
from srum_ds.preflight.questions import look_at_questions


@dataclass(frozen=True)
class Start:
    """What a command is about to start.

    work: ``train``, ``rollout`` or ``rescore``. recipe, overrides: as the command line has them. ranks: how many, or
    None where only the launcher knows. out: the folder that ``rollout`` and ``rescore`` write. holds_folder: whether
    the folder that is written is looked at; of several ranks, one does.
    """

    work: str
    recipe: Path | str
    overrides: Sequence[str] = ()
    ranks: int | None = None
    out: Path | None = None
    holds_folder: bool = True


RanksOf = Callable[[Config], int | None]


def look_at(start: Start, ranks_of: RanksOf | None = None) -> tuple[Config | None, list[Finding]]:
    """The configuration (None where its recipe cannot be read) and everything that was found.

    ranks_of: how many ranks there are with these settings, where ``start.ranks`` does not say. Nothing is written, and
    nothing is imported that takes long, but for code of the user's own that imports it.
    """
    wrong: list[str] = []
    try:
        cfg = load_config(start.recipe, start.overrides, wrong)
    except UserError as problem:
        return None, [error("settings", str(problem))]
    ranks = start.ranks if ranks_of is None else ranks_of(cfg)
    found = list(gathered([("settings", lambda: _settings(start, wrong)), *_looks(cfg, start, ranks, bool(wrong))]))
    return cfg, found


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those without which no run can start."""
    return [finding for finding in findings if finding.state == State.ERROR]


def _settings(start: Start, wrong: Sequence[str]) -> list[Finding]:
    found = [error("settings", text) for text in dict.fromkeys(wrong)]
    return found or [ok("settings", " ".join([str(start.recipe), *start.overrides]))]


def _looks(cfg: Config, start: Start, ranks: int | None, wrong: bool) -> list[tuple[str, Look]]:
    looks: list[tuple[str, Look]] = []
    if start.work == "train" and start.holds_folder:
        # Of a run with a setting that is wrong, nobody can say whether it is the one that is there.
        folder = (
            partial(look_at_folder, Path(cfg.run.dir), "run.dir", "training") if wrong else partial(look_at_run, cfg)
        )
        looks.append(("run.dir", folder))
        looks.append(("disk", partial(look_at_room, cfg)))
    if start.work == "train":
        if not wrong and is_finished(cfg):
            return looks[:1]
        looks.append(("deepspeed.config", partial(look_at_deepspeed, cfg)))
    if start.out is not None and start.holds_folder:
        looks.append(("--out", partial(look_at_folder, start.out, "--out", "writing")))
    if start.work != "rescore":
        looks.append(("data", partial(look_at_data, cfg)))
    looks += [
        ("model.path", partial(look_at_model, cfg)),
        ("judge.external", partial(look_at_judges, cfg)),
        ("regions.sam_model", partial(look_at_segment_anything, cfg)),
        ("templates", partial(look_at_questions, cfg)),
        ("ranks", partial(look_at_ranks, cfg, ranks)),
    ]
    if not wrong:
        looks.append(("code", partial(look_at_code, cfg)))
    return looks
