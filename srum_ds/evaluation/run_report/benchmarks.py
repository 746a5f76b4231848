"""What benchmarks said of a run: the scored folders under its ``eval/``, base against trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import is_number, parse_json
from srum_ds.evaluation.result_tables import judge_line, with_error
from srum_ds.evaluation.results import OVERALL, Score, read_results, read_scores
from srum_ds.evaluation.scored import REPORT, RESULTS

FOLDER = "eval"
COMPARISON = "compare.json"


@dataclass(frozen=True)
class Measured:
    """A benchmark of a run: texts for the page, and the paired difference (in shares of the scale) where it is known.

    independent: whether somebody else than the model under test judged. link: its own report, relative to the run.
    """

    name: str
    folder: Path
    judge: str
    independent: bool
    full: float
    n: int
    base: str
    trained: str
    difference: str
    mean: float | None
    stderr: float | None
    link: str
    scores: tuple[Score, ...]


def benchmarks_of(run_dir: Path, told: list[str]) -> list[Measured]:
    """The benchmarks under RUN/eval, in the order of their names; what cannot be read is told."""
    found = []
    for path in sorted((run_dir / FOLDER).glob(f"*/trained/{RESULTS}")):
        try:
            found.append(_measured(run_dir, path.parent.parent))
        except UserError as error:
            told.append(f"{error}.")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            told.append(f"{path} is no result of a benchmark ({error!r}) and is left out.")
    return found


def _measured(run_dir: Path, folder: Path) -> Measured:
    trained = read_results(folder / "trained")
    full = float(trained["full"])
    base = read_results(folder / "base") if (folder / "base" / RESULTS).is_file() else None
    difference = _difference(folder / COMPARISON)
    mean, stderr = (difference.get(key) for key in ("mean", "stderr"))
    link = folder if (folder / REPORT).is_file() else folder / "trained"
    return Measured(
        name=f"{trained['benchmark']} {trained['version']}".strip(),
        folder=folder,
        judge=judge_line(trained["judge"]),
        independent=not trained["judge"]["under_test"],
        full=full,
        n=int(trained["n"]),
        base="-" if base is None else with_error(base["overall"], full),
        trained=with_error(trained["overall"], full),
        difference=with_error({"mean": mean, "stderr": stderr}, full, True) if is_number(mean) else "-",
        mean=mean / full if is_number(mean) else None,
        stderr=stderr / full if is_number(stderr) else None,
        link=(link / REPORT).relative_to(run_dir).as_posix() if (link / REPORT).is_file() else "",
        scores=tuple(map(_whole, read_scores(folder / "trained"))),
    )


def _whole(score: Score) -> Score:
    """A score whose fields are of their types; ValueError else."""
    texts = (score.id, score.category, score.text, score.picture, score.words)
    ends = [end for box in score.boxes for end in box["box"]]
    known = [value for value in (score.value, *(box.get("score") for box in score.boxes)) if value is not None]
    if not all(isinstance(text, str) for text in texts) or not all(map(is_number, [*known, *ends])):
        raise ValueError(f"the score of {score.id!r} has a field of another type")
    if any(len(box["box"]) != 4 for box in score.boxes):
        raise ValueError(f"a box of {score.id!r} is not of four numbers")
    return score


def _difference(path: Path) -> Mapping[str, Any]:
    """The overall difference of a comparison of two sides; nothing where it is not there."""
    try:
        found = parse_json(file_bytes(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); repeat the evaluation") from None
    differences = found["figures"][OVERALL]["differences"]
    return dict(differences[0]) if differences else {}
