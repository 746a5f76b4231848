"""Plans an ablation: recipes, each with every seed, and the settings by which all of them are measured.

``ablation`` calls it before anything is trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.config import COMMAND_LINE, Config, check_world, load_config
from srum_ds.evaluation.evaluate import draw_settings
from srum_ds.monitoring import run_folder
from srum_ds.rollouts.collect import SAMPLER_SETTINGS

# What a word must begin with to be a setting; anything else is a recipe.
SETTING = re.compile(r"^[a-z_]+(\.\w+)*=")
OWN = ("run.dir", "run.seed")


@dataclass(frozen=True)
class PlannedRun:
    """One run of an ablation: a recipe with what was set on top of it, a seed, and its folder."""

    recipe: str
    path: Path
    seed: int
    run_dir: Path
    overrides: tuple[str, ...]
    cfg: Config

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.recipe}, seed {self.seed}"


def split_words(arguments: Sequence[str]) -> tuple[list[tuple[str, Path, tuple[str, ...]]], list[str]]:
    """Recipes (name, file, its own settings) and the settings of all, from ``FILE... [key=value ...]``.

    ``FILE:key=value:key=value`` is a recipe with settings of its own: its row is named by them. Raises
    UserError without a recipe, for two rows of one name, and for settings that the command chooses itself.
    """
    shared = [word for word in arguments if SETTING.match(word)]
    recipes = []
    for word in arguments:
        if SETTING.match(word):
            continue
        file, *own = re.split(r":(?=[a-z_]+(?:\.\w+)+=)", word)
        recipes.append((" ".join([Path(file).stem, *own]), Path(file), tuple(own)))
    if not recipes:
        raise UserError("which recipes? Give one or more files, such as launch/recipes/srum.yaml.")
    names = [name for name, _, _ in recipes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two recipes would both be called '{twice[0]}' in the table: rename one of the files.")
    for word in [*shared, *(setting for _, _, own in recipes for setting in own)]:
        if word.split("=")[0] in OWN:
            raise UserError(f"{word} {COMMAND_LINE}: each run has its own; give --seeds and --runs instead.")
    return recipes, shared


def plan_runs(arguments: Sequence[str], seeds: Sequence[int], runs: Path, jobs: int = 1) -> list[PlannedRun]:
    """All runs, seed by seed, so that a table of every recipe stands as early as possible.

    Raises UserError for a recipe that cannot be loaded, does not fit the number of ranks, has another
    base model or other prompts than the first one, or whose folder holds a run with other settings.
    """
    recipes, shared = split_words(arguments)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: give one or more different whole numbers.")
    if jobs > 1 and not any(word.startswith("deepspeed.ranks=") for word in shared):
        shared = [*shared, "deepspeed.ranks=1"]
    planned = []
    for seed in seeds:
        for name, path, own in recipes:
            run_dir = runs / (re.sub(r"[^\w.+-]+", "_", name) + f"-seed{seed}")
            words = (*shared, *own, f"run.dir={run_dir}", f"run.seed={seed}")
            cfg = load_config(path, words)
            check_world(cfg, cfg.deepspeed.ranks)
            try:
                run_folder.refuse_other_settings(run_dir, cfg)
            except UserError as error:
                raise UserError(f"{error} (For an ablation: another folder by --runs.)") from error
            planned.append(PlannedRun(name, path, seed, run_dir, words, cfg))
    first = planned[0].cfg
    for run in planned:
        for key in ("model.path", "data.shards"):
            section, name = key.split(".")
            mine, theirs = (getattr(getattr(cfg, section), name) for cfg in (run.cfg, first))
            if mine != theirs:
                raise UserError(
                    f"{run.path} has {key}={run.cfg.written(key)}, but {planned[0].path} has {first.written(key)}: "
                    f"one table, one base."
                )
    if len({run.run_dir for run in planned}) < len(planned):
        raise UserError("two recipes would share a run's folder: rename one of the files.")
    return planned


def evaluation_words(cfg: Config) -> list[str]:
    """The ``eval.*`` settings, fully resolved, by which every run of the table is measured."""
    words = [
        f"eval.split={cfg.eval.split}",
        f"eval.prompts={cfg.eval.prompts}",
        f"eval.seed={cfg.eval.seed}",
        f"eval.batch={cfg.eval.batch}",
        f"eval.benchmark={cfg.eval.benchmark}",
    ]
    for name, value in asdict(draw_settings(cfg).sampling).items():
        key = f"eval.{name}" if name in SAMPLER_SETTINGS else f"eval.sampler.{name}"
        words.append(f"{key}={_word(value)}")
    return words


def _word(value: object) -> str:
    """A setting's value as the command line takes it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(value)
